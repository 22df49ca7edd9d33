"""A short video that is opened once: the packets that the probe has read are kept, and decoded from memory.

FFmpeg decodes a few frames to open a file, and the first frame has to be decoded to know how it is turned: for a clip of ten
seconds that is a twentieth of decoding it, paid twice where probe and decoder open it each. So the frame decoded for the probe
is handed on, and the decoder goes on behind it. Where anything is odd (an error, too many bytes, a file that breaks off)
nothing is kept, and the decoder opens the file anew.

Enters: the packets of a stream, in decode order. Leaves: the first frames and the packets not decoded yet, once.
"""

from collections.abc import Iterator
from typing import Any

import av.error

from ov2_core.media.container import configure

MAX_KEPT_BYTES = 16 << 20
"""A minute of video at 2 Mbit/s; beyond, a second opening is hardly seen in the cost."""


class KeptPackets:
    """Packets of the stream that a probe reads. Good while the container is open.

    Args:
        export_vectors, loop_filter: as of decode_frames.
    """

    def __init__(self, *, export_vectors: bool, loop_filter: bool) -> None:
        self._options = {"export_vectors": export_vectors, "loop_filter": loop_filter}
        self._packets: list[Any] | None = []
        self._bytes = 0
        self._num_decoded = 0
        self._frames: list[Any] = []
        self._stream: Any = None

    @property
    def usable(self) -> bool:
        """Whether all packets are here, undamaged so far."""
        return self._stream is not None and self._packets is not None

    def add(self, packet: Any) -> None:
        """Takes the next packet, the empty one at the end included."""
        self._bytes += packet.size
        if self._bytes > MAX_KEPT_BYTES:
            self._packets = None
        if self._packets is not None:
            self._packets.append(packet)

    def first_frame(self, stream: Any) -> Any | None:
        """Decodes up to the first frame, which is kept as well. None: nothing is kept, and the decoder is as new."""
        if self._packets is None:
            return None
        configure(stream, **self._options)
        try:
            while not self._frames and self._num_decoded < len(self._packets):
                self._num_decoded += 1
                self._frames += self._packets[self._num_decoded - 1].decode()
        except (av.error.FFmpegError, EOFError):
            self._frames = []
        if not self._frames:
            self._packets = None
            stream.codec_context.flush_buffers()
            return None
        self._stream = stream
        return self._frames[0]

    def take(self) -> tuple[Any, list[Any], Iterator[Any]]:
        """(stream, frames decoded already, packets not decoded yet). Afterwards nothing is left.

        Raises:
            ValueError: not usable.
        """
        if not self.usable:
            raise ValueError("no packets are kept, or they were taken before; open the file anew")
        assert self._packets is not None
        stream, frames, packets = self._stream, self._frames, self._packets[self._num_decoded :]
        self._packets, self._frames, self._stream = None, [], None
        packets.reverse()
        return stream, frames, (packets.pop() for _ in range(len(packets)))
