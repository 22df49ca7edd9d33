"""Demuxing: what the packets of a video stream say, of the whole file or of those around a range.

Enters: an open container and its stream. Leaves: Packets, decode order. A range of a long file is read alone where the container
has an index (MP4, Matroska): a few packets from the start, for the time that all others count from, then from the keyframe
before the range to the first frame behind it. Where anything is odd (a packet without time stamps, a seek that lands too
late) the whole file is read as ever.
"""

from dataclasses import dataclass, field
from typing import Any

import av.error

from ov2_core.media.kept import KeptPackets
from ov2_core.media.reference import discardable_test

INDEXED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_SEEK_BACK_SECONDS = (0.0, 10.0)
"""A seek goes by decoding times in some containers, so it may land behind the frame; then it is tried from earlier on."""


@dataclass(slots=True)
class Packets:
    """Per packet, decode order."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    discardable: list[bool] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    total: int = 0
    failed: bool = False
    rotation_degrees: int = 0
    origin: int | None = None
    """Of a range: time stamp of the file's first shown frame. None: all packets are here."""
    ended: bool = True
    """The file was read to its end."""


class _OddError(Exception):
    """The range cannot be told from a part of the file."""


def demux(container: Any, stream: Any, kept: KeptPackets | None = None) -> Packets:
    """All packets. A file that breaks off gives those before, and `failed`.

    kept: takes them too, and the first frame.
    """
    packets = Packets()
    is_discardable = discardable_test(stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
    first = None
    try:
        for packet in container.demux(stream):
            if kept is not None:
                kept.add(packet)
            if first is None and packet.size:
                first = packet
            _add(packets, packet, is_discardable)
    except av.error.FFmpegError:
        packets.failed = True
    if first is not None:
        frame = None if kept is None or packets.failed else kept.first_frame(stream)
        packets.rotation_degrees = _rotation(stream, first) if frame is None else _turn(frame)
    return packets


def demux_range(
    container: Any, stream: Any, *, start_seconds: float | None, end_seconds: float | None
) -> Packets | None:
    """Packets of at least the frames in a range, the frame behind it, and those from the keyframe before it on.

    Returns:
        None where that cannot be told without reading the whole file, which must be opened anew then.
    """
    if container.format.name not in INDEXED_CONTAINERS or not stream.time_base:
        return None
    try:
        head = _head(container, stream)
        assert head.origin is not None
        ticks = 1 / float(stream.time_base)
        first = head.origin + (start_seconds or 0.0) * ticks
        last = None if end_seconds is None else head.origin + end_seconds * ticks
        for back_seconds in _SEEK_BACK_SECONDS:
            target = max(int(first - back_seconds * ticks) - 1, head.origin)
            container.seek(target, stream=stream, backward=True)
            found = _read_until(container, stream, last)
            landing = found.pts[0] if found.pts and found.key[0] else None
            if landing is not None and (landing <= first - 1 or landing == head.origin):
                found.origin, found.rotation_degrees = head.origin, head.rotation_degrees
                return found
    except (_OddError, av.error.FFmpegError):
        return None
    return None


def _head(container: Any, stream: Any) -> Packets:
    """The first packets, until no later one can be shown before them."""
    packets = Packets(ended=False)
    earliest: int | None = None
    for packet in container.demux(stream):
        if packets.total == 0 and packet.size:
            packets.rotation_degrees = _rotation(stream, packet)
        _add(packets, packet, lambda _: False)
        if not packets.pts:
            continue
        pts, dts = packets.pts[-1], packets.dts[-1]
        if pts is None:
            raise _OddError
        earliest = pts if earliest is None else min(earliest, pts)
        if dts is not None and dts > earliest:  # Matroska has none, and FFmpeg guesses it but for the first ones
            break
    if earliest is None:
        raise _OddError
    packets.origin = earliest
    return packets


def _read_until(container: Any, stream: Any, last: float | None) -> Packets:
    """Packets from here on, until no later one can be the first frame at or behind `last`."""
    packets = Packets(ended=False, total=1)
    is_discardable = discardable_test(stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
    behind: int | None = None
    for packet in container.demux(stream):
        num_before = len(packets.pts)
        _add(packets, packet, is_discardable)
        if len(packets.pts) == num_before:
            continue
        pts, dts = packets.pts[-1], packets.dts[-1]
        if pts is None:
            raise _OddError
        if last is not None and pts >= last:
            behind = pts if behind is None else min(behind, pts)
        if behind is not None and dts is not None and dts > behind:
            return packets
    packets.ended = True
    return packets


def _add(packets: Packets, packet: Any, is_discardable: Any) -> None:
    if packet.size == 0:
        return
    packets.total += 1
    packets.failed |= packet.is_corrupt
    if packet.is_discard:
        return
    packets.pts.append(packet.pts)
    packets.dts.append(packet.dts)
    packets.size.append(packet.size)
    packets.key.append(packet.is_keyframe)
    packets.discardable.append(is_discardable(packet))
    packets.duration.append(packet.duration or 0)


def _rotation(stream: Any, packet: Any) -> int:
    """Counter-clockwise turn of the display matrix, from the first packet's frame; 0 where that does not decode."""
    try:
        frames = [*packet.decode(), *stream.codec_context.decode(None)]
    except (av.error.FFmpegError, EOFError):
        return 0
    return _turn(frames[0]) if frames else 0


def _turn(frame: Any) -> int:
    degrees: int = round(frame.rotation / 90) * 90 % 360
    return degrees
