"""Live and endless sources: frames as they come, each with what its packet says, in bounded memory and with time-outs.

Enters: a file, a named pipe, "-" (standard input), a readable object, or a URL (RTSP, HTTP, UDP, TCP, RTMP, SRT). Leaves:
LiveFrames in displayed order. Nothing is probed ahead and nothing is sought: the source may be a pipe and may never end. One that
falls silent, breaks off or ends in the middle of a frame is no error here: what decodes is given out, and LiveStatus says how it
ended.

A frame's vectors can be read only when the distance to the next anchor (I/P) in displayed order is known; AnchorQueue holds what
waits for it. That is as long as a run of B frames, at most MAX_WAITING.
"""

import os
import select
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, Literal, TypeVar

import av
import av.error
import numpy as np

from ov2_core.errors import BadItemError
from ov2_core.media.container import CONTAINER_FORMATS, Source, choose_stream, configure
from ov2_core.media.decode import DecodeStats, decoded
from ov2_core.media.probe import anchor_distances

_Item = TypeVar("_Item")
Ended = Literal["end", "stalled", "failed"]

PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp", "rtsps": "rtsp,rtsps,rtp,udp,tcp,tls", "http": "http,tcp", "https": "https,http,tls,tcp",
    "tcp": "tcp", "udp": "udp", "rtmp": "rtmp,tcp", "srt": "srt,udp",
}  # fmt: skip
"""FFmpeg protocols that a URL of each scheme may use. A playlist (HLS, DASH) opens further URLs and is not among them."""
LIVE_FORMATS = (*CONTAINER_FORMATS, "rtsp", "sdp", "rtp", "live_flv")
MAX_WAITING = 64
_REMEMBERED_PACKETS = 512
_ANALYSE_MICROSECONDS = 1_000_000
"""How far FFmpeg reads to learn what a stream holds; its default of 5 s would delay a live one."""


@dataclass(slots=True)
class LiveStatus:
    """How a live source ended; read it when the iterator has ended."""

    ended: Ended | None = None
    message: str = ""


@dataclass(slots=True)
class LiveFrame:
    """A decoded frame and its packet."""

    frame: Any
    stamp: int
    """In units of time_base; counts frames where the source has no time stamps."""
    time_base: Fraction
    num_bytes: int
    keyframe: bool
    anchor: bool
    """No frame that is shown later was sent earlier."""
    new_clock: bool
    """The time stamps before it were of another clock."""


@dataclass(slots=True)
class _Packet:
    num_bytes: int
    keyframe: bool
    anchor: bool
    new_clock: bool
    clock: int = 0


@contextmanager
def open_live(
    source: Source, *, timeout_seconds: float, options: dict[str, str] | None = None
) -> Iterator[tuple[Any, Any]]:
    """Open a source that need not be seekable and choose its video stream.

    Args:
        source: path (also of a named pipe), "-", URL of one of PROTOCOLS, or a binary object with read().
        timeout_seconds: longest wait for data, in opening and later. An object's own read() is not interrupted.
        options: for FFmpeg's demuxer and protocol, e.g. rtsp_transport=tcp.

    Yields:
        (container, stream).

    Raises:
        ValueError: timeout_seconds is not positive.
        BadItemError: source_missing, refused_uri, not_media, no_video_stream, or transient_error where nothing came in time.
    """
    if not 0 < timeout_seconds < float("inf"):
        raise ValueError(f"timeout_seconds must be > 0 and finite, got {timeout_seconds}")
    name = source if isinstance(source, str) else getattr(source, "name", "the source")
    opened, own, protocols = _openable(source, timeout_seconds)
    settings = {"format_whitelist": ",".join(LIVE_FORMATS), "analyzeduration": str(_ANALYSE_MICROSECONDS)}
    if protocols is not None:
        settings["protocol_whitelist"] = protocols
    container = None
    try:
        try:
            container = av.open(
                opened,
                mode="r",
                options={**settings, **(options or {})},
                timeout=(timeout_seconds, timeout_seconds),
                metadata_errors="replace",
            )
        except (TimeoutError, av.error.ExitError) as error:
            raise BadItemError(
                "transient_error", f"{name}: no data within {timeout_seconds:g} s", stage="probe"
            ) from error
        except FileNotFoundError as error:
            raise BadItemError(
                "source_missing", f"{name}: no such source; check the path or URL", stage="probe"
            ) from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            refused = isinstance(error, (ConnectionError, av.error.HTTPClientError, av.error.HTTPServerError))
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if refused:
                raise BadItemError("source_missing", f"{name}: {reason}", stage="probe") from error
            raise BadItemError(
                "not_media",
                f"{name}: no demuxer reads it ({reason}); a pipe must carry a format that needs no seeking (MPEG-TS, Matroska, "
                "fragmented MP4, FLV, raw H.264)",
                stage="probe",
            ) from error
        yield container, choose_stream(container, stage="probe")
    finally:
        if container is not None:
            with suppress(Exception):
                container.close()
        if own is not None:
            own.close()


def live_frames(container: Any, stream: Any, *, stats: DecodeStats, status: LiveStatus) -> Iterator[LiveFrame]:
    """Every frame that decodes, in displayed order, with vectors where the codec gives them. Never raises for the source."""
    configure(stream, export_vectors=True)
    log = _PacketLog()
    packets = _noted(container.demux(stream), log, status)
    for frame in decoded(packets, stream, stats):
        yield log.bind(frame, stream)
    if status.ended != "end":  # the decoder was not told that nothing follows
        with suppress(av.error.FFmpegError, EOFError):
            for frame in stream.codec_context.decode(None):
                yield log.bind(frame, stream)


class AnchorQueue(Generic[_Item]):
    """Holds items until the next anchor in displayed order has come, then gives them out with their distances to both."""

    def __init__(self) -> None:
        self._waiting: list[tuple[_Item, bool]] = []
        self._anchored = False
        """Whether an anchor was given out before what waits."""

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, item: _Item, *, anchor: bool) -> list[tuple[_Item, int, int]]:
        """Returns (item, frames back, frames ahead) of all that is certain now, in order; see media/probe.py."""
        self._waiting.append((item, anchor))
        return self.flush() if anchor or len(self._waiting) >= MAX_WAITING else []

    def flush(self) -> list[tuple[_Item, int, int]]:
        """The same of all that waits, where no anchor will come."""
        if not self._waiting:
            return []
        shown = [anchor for _, anchor in self._waiting]
        offset = 1 if self._anchored else 0
        order = [0] if self._anchored else []  # decode order of one run: the anchors around it, then what lies between
        order += [i + offset for i, a in enumerate(shown) if a] + [i + offset for i, a in enumerate(shown) if not a]
        if not shown[-1]:  # the anchor that these were sent after was lost: as if it came next
            order.insert(offset, len(shown) + offset)
        stamps = np.array(order, np.int64)
        distance = anchor_distances(stamps, np.argsort(stamps, kind="stable"))[offset : offset + len(shown)]
        given = [(item, int(b), int(a)) for (item, _), (b, a) in zip(self._waiting, distance.tolist(), strict=True)]
        self._anchored = shown[-1]
        self._waiting = []
        return given


def _openable(source: Source, timeout_seconds: float) -> tuple[Any, Any, str | None]:
    """(what PyAV opens, what is to be closed afterwards, protocols it may use)."""
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return _Readable(source), None, "file"
    if source == "-":
        return _TimedReader(sys.stdin.fileno(), timeout_seconds, owned=False), None, "file"
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme:
        if scheme not in PROTOCOLS:
            raise BadItemError(
                "refused_uri",
                f"{source}: scheme not allowed; use a path, - or one of {', '.join(PROTOCOLS)}",
                stage="probe",
            )
        return source, None, PROTOCOLS[scheme]
    if os.path.isdir(source):
        raise BadItemError("not_media", f"{source} is a folder; give a file, a pipe or a URL", stage="probe")
    if os.path.isfile(source) and os.path.getsize(source) == 0:
        raise BadItemError("source_empty", f"{source} is 0 bytes long; fetch it again", stage="probe")
    if os.path.exists(source) and not os.path.isfile(source):
        reader = _TimedReader(os.open(source, os.O_RDONLY | os.O_NONBLOCK), timeout_seconds, owned=True)
        return reader, reader, "file"
    return source, None, "file"


class _Readable:
    """An object's read(), and nothing else of it: a pipe object may offer a seek that fails."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.name = str(getattr(file, "name", "stream"))

    def read(self, size: int) -> bytes:
        return bytes(self._file.read(size) or b"")


class _TimedReader:
    """Reads a file descriptor that may fall silent."""

    def __init__(self, descriptor: int, timeout_seconds: float, *, owned: bool) -> None:
        self._descriptor, self._timeout, self._owned = descriptor, timeout_seconds, owned
        self.name = "pipe"
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP | select.POLLERR)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end.

        Raises:
            TimeoutError: nothing came in time.
        """
        if not self._poll.poll(self._timeout * 1000):
            raise TimeoutError(f"no data within {self._timeout:g} s")
        return os.read(self._descriptor, size)

    def close(self) -> None:
        """Only what was opened here."""
        if self._owned:
            os.close(self._descriptor)
            self._owned = False


class _PacketLog:
    """What packets said, until their frames come; the last few hundred, so that lost frames do not pile up."""

    def __init__(self) -> None:
        self._by_stamp: OrderedDict[int, _Packet] = OrderedDict()
        self._in_order: deque[_Packet] = deque(maxlen=_REMEMBERED_PACKETS)
        self._newest: int | None = None
        self._last_dts: int | None = None
        self._count = -1
        self._new_clock = False
        self._clock = 0

    def note(self, packet: Any, time_base: float) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is not None:
            if self._last_dts is not None and (dts - self._last_dts) * time_base < -1.0:
                self._newest, self._new_clock = None, True
                self._clock += 1
            self._last_dts = dts
        anchor = stamp is None or self._newest is None or stamp > self._newest
        noted = _Packet(packet.size, bool(packet.is_keyframe), anchor, self._new_clock, self._clock)
        self._new_clock = False
        if stamp is None:
            self._in_order.append(noted)
            return
        if anchor:
            self._newest = stamp
        known = self._by_stamp.get(stamp)
        if known is not None and known.clock == self._clock:  # a frame in several packets, as fields are
            known.num_bytes += noted.num_bytes
            known.keyframe |= noted.keyframe
            return
        self._by_stamp[stamp] = noted
        if len(self._by_stamp) > _REMEMBERED_PACKETS:
            self._by_stamp.popitem(last=False)

    def bind(self, frame: Any, stream: Any) -> LiveFrame:
        self._count += 1
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            known = self._in_order.popleft() if self._in_order else None
            rate = stream.guessed_rate or stream.average_rate or Fraction(25)
            base, stamp = 1 / Fraction(rate), self._count
        else:
            known = self._by_stamp.pop(stamp, None)
            base = Fraction(frame.time_base or stream.time_base or Fraction(1, 1000))
        known = known or _Packet(0, False, True, False)
        return LiveFrame(frame, int(stamp), base, known.num_bytes, known.keyframe, known.anchor, known.new_clock)


def _noted(packets: Iterator[Any], log: _PacketLog, status: LiveStatus) -> Iterator[Any]:
    """The packets, each written down; ends where the source does, in whatever way."""
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            status.ended = status.ended or "end"
            return
        except (TimeoutError, av.error.ExitError) as error:
            status.ended, status.message = "stalled", str(error) or "no data in time"
            return
        except (av.error.FFmpegError, OSError) as error:
            status.ended, status.message = "failed", getattr(error, "strerror", None) or str(error)
            return
        if packet.size and not packet.is_discard:
            log.note(packet, float(packet.time_base or 0))
        yield packet
