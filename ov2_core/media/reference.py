"""Which coded pictures no other picture needs: they can be left out without harm to the rest, and are, where time is dear.

H.264 says so in `nal_ref_idc` of a slice's header byte, HEVC in the type of the NAL unit (the even ones below 16), AV1 by a frame
that refreshes no reference (media/av1.py). Of other codecs none is known to be free: a VP9 frame without references still leaves
motion and probabilities to the next. Sources: ITU-T H.264 7.4.1, H.265 7.4.2.2.
"""

from collections.abc import Callable, Iterator
from typing import Any

from ov2_core.media.av1 import Av1Units

_START = b"\x00\x00\x01"


def discardable_test(codec: str, extradata: bytes | None) -> Callable[[Any], bool]:
    """For a codec by FFmpeg's name, whether a packet's picture is one that no other picture refers to.

    Args:
        extradata: of the stream; says how NAL units are cut apart.

    Returns:
        A function of a packet (any buffer), given in decode order. False where it cannot tell.
    """
    if codec == "av1":
        return Av1Units(extradata).is_free
    slices = {"h264": _h264_slice_is_free, "hevc": _hevc_slice_is_free}.get(codec)
    if slices is None:
        return lambda packet: False
    prefix_bytes = _prefix_bytes(codec, extradata)

    def test(packet: Any) -> bool:
        free = [f for f in map(slices, _unit_heads(memoryview(packet), prefix_bytes)) if f is not None]
        return bool(free) and all(free)

    return test


def _prefix_bytes(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each NAL unit (ISO/IEC 14496-15); 0: start codes."""
    where = 4 if codec == "h264" else 21
    if not extradata or len(extradata) <= where or extradata[0] != 1:
        return 0
    return (extradata[where] & 3) + 1


def _unit_heads(packet: memoryview, prefix_bytes: int) -> Iterator[int]:
    """First byte of each NAL unit."""
    if prefix_bytes == 0:
        data = bytes(packet)
        at = data.find(_START)
        while 0 <= at < len(data) - len(_START):
            yield data[at + len(_START)]
            at = data.find(_START, at + len(_START))
        return
    at = 0
    while at + prefix_bytes < len(packet):
        yield packet[at + prefix_bytes]
        at += prefix_bytes + int.from_bytes(packet[at : at + prefix_bytes], "big")


def _h264_slice_is_free(head: int) -> bool | None:
    """None: not a slice. Types 1 to 5; 5 (IDR) always has a reference count."""
    return None if not 1 <= head & 31 <= 5 else (head >> 5) & 3 == 0


def _hevc_slice_is_free(head: int) -> bool | None:
    kind = head >> 1 & 63
    return None if kind >= 32 else kind < 16 and kind % 2 == 0
