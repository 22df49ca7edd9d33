"""Decoding: frames of a probed range, once, in presentation order, each with its index in the probe.

One thread: frame threading makes error concealment depend on timing, and workers are parallel over videos anyway.
Damaged packets are counted and passed over; what decodes is kept. Decoded frames are not held back: a decoder that gets its
buffers back at once works in warm memory (docs/LOG.md).
"""

import gc
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import av.error
import numpy as np
import numpy.typing as npt

from ov2_core.config import Decoder
from ov2_core.media.container import Source, configure, open_video
from ov2_core.media.kept import KeptPackets
from ov2_core.media.probe import VideoProbe
from ov2_core.storage.failpoint import failpoint

MIN_SEEK_FRAMES = 12
"""A seek must save at least this many decoded frames."""


COLLECT_EVERY_FRAMES = 4


@contextmanager
def frames_collected() -> Iterator[None]:
    """Around all that has to do with one clip's frames, if their side data is read; within it `collect_frames`.

    PyAV ties a frame and its side data into a reference cycle, and Python's collector, which counts objects and not bytes,
    lets hundreds of decoded frames pile up (400 MB at 720p). Objects older than this context are frozen meanwhile, so that a
    full collection every few frames costs microseconds.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()  # what is let go now is old from then on, and no collector would soon look at it
        gc.unfreeze()


def collect_frames(number: int) -> None:
    """To be called after each frame that is done with, and counted."""
    if number % COLLECT_EVERY_FRAMES == 0:
        gc.collect()


@dataclass(slots=True)
class DecodeStats:
    """Counted while decoding; read it when the iterator has ended."""

    decode_errors: int = 0
    corrupt_frames: int = 0
    unexpected_frames: int = 0
    """Frames whose time stamp the probe does not know, or that came twice."""


def decode_frames(
    source: Source,
    probe: VideoProbe,
    *,
    stats: DecodeStats,
    wanted: Sequence[int] | None = None,
    seek: bool = True,
    export_vectors: bool = False,
    loop_filter: bool = True,
    decoder: Decoder = "software",
    kept: KeptPackets | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (index in the probe, av.VideoFrame), indices strictly ascending.

    Frames that are not wanted and that no other frame needs are never handed to the decoder.

    Args:
        wanted: ascending indices; only these are yielded. None: every frame.
        seek: jump over stretches without a wanted frame where keyframes allow it.
        export_vectors: export motion vectors as side data (H.264, MPEG-4 and older; other codecs give none).
        loop_filter: False leaves the loop filters of H.264 and HEVC out, without `seek`.
        decoder: where frames are decoded (hardware.py).
        kept: what probing this file has left of it (kept.py), used up now; the file is opened anew where that is nothing. It has
            options of its own, and there is no seeking in it.
    """
    if kept is not None and kept.usable:
        yield from _decode_kept(kept, probe, wanted, stats)
        return
    if wanted is not None and probe.pts_T is not None and seek:
        done = -1
        try:
            for index, frame in _decode_sparse(source, probe, wanted, stats, decoder):
                done = index
                yield index, frame
            return
        except _SeekMissedError:
            wanted = [i for i in wanted if i > done]
    seeks = probe.pts_T is not None and probe.num_skipped > 0 and _lands_before(source, int(probe.pts_T[0]), decoder)
    with open_video(source, stage="tokenize", decoder=decoder) as (container, stream):
        configure(stream, export_vectors=export_vectors, loop_filter=loop_filter)
        if seeks:
            assert probe.pts_T is not None
            container.seek(int(probe.pts_T[0]), stream=stream, backward=True)
        packets = _needed(container.demux(stream), probe, wanted)
        yield from _wanted(_indexed(decoded(packets, stream, stats), probe, stats), probe, wanted)


def _decode_kept(
    kept: KeptPackets, probe: VideoProbe, wanted: Sequence[int] | None, stats: DecodeStats
) -> Iterator[tuple[int, Any]]:
    stream, first, packets = kept.take()
    frames = decoded(_needed(packets, probe, wanted), stream, stats, first)
    del first
    yield from _wanted(_indexed(frames, probe, stats), probe, wanted)


def _wanted(
    frames: Iterator[tuple[int, Any]], probe: VideoProbe, wanted: Sequence[int] | None
) -> Iterator[tuple[int, Any]]:
    """Up to the last that is wanted."""
    chosen = None if wanted is None else set(wanted)
    last_index = probe.num_frames - 1 if wanted is None else max(wanted, default=-1)
    for index, frame in frames:
        if chosen is None or index in chosen:
            yield index, frame
        del frame
        if index >= last_index:
            return


def motion_vectors(frame: Any) -> npt.NDArray[np.void] | None:
    """FFmpeg's exported vectors; None where the codec gives none, or where the frame's fields make them useless."""
    if frame.interlaced_frame:
        return None
    vectors = frame.side_data.get("MOTION_VECTORS")
    array = None if vectors is None else vectors.to_ndarray()
    return array if array is not None and len(array) else None


def _lands_before(source: Source, stamp: int, decoder: Decoder) -> bool:
    """Whether a seek to a time stamp lands on a keyframe at or before it. In containers without an index (MPEG-TS) it may not."""
    with open_video(source, stage="tokenize", decoder=decoder) as (container, stream):
        try:
            container.seek(stamp, stream=stream, backward=True)
            first = next((packet for packet in container.demux(stream) if packet.size), None)
        except av.error.FFmpegError:
            return False
        return first is not None and first.is_keyframe and first.pts is not None and first.pts <= stamp


class _SeekMissedError(Exception):
    """A seek did not land where the probe said: decode in sequence instead."""


def _decode_sparse(
    source: Source, probe: VideoProbe, wanted: Sequence[int], stats: DecodeStats, decoder: Decoder
) -> Iterator[tuple[int, Any]]:
    assert probe.pts_T is not None
    keyframes = [int(i) for i in np.flatnonzero(probe.keyframe_T)]
    with open_video(source, stage="tokenize", decoder=decoder) as (container, stream):
        configure(stream, export_vectors=False)
        frames: Iterator[tuple[int, Any]] | None = None
        position = -1
        for target in wanted:
            at = bisect_right(keyframes, target) - 1
            jump = at >= 0 and keyframes[at] - position >= MIN_SEEK_FRAMES
            if frames is None or jump:
                landing = keyframes[at] if at >= 0 else 0
                if landing or probe.num_skipped:
                    container.seek(int(probe.pts_T[landing]), stream=stream, backward=True)
                packets = _needed(container.demux(stream), probe, wanted)
                frames = _indexed(decoded(packets, stream, stats), probe, stats)
            position, frame = next((item for item in frames if item[0] >= target), (-1, None))
            if position != target:
                raise _SeekMissedError
            yield target, frame


def _needed(packets: Iterator[Any], probe: VideoProbe, wanted: Sequence[int] | None) -> Iterator[Any]:
    """The packets without those of frames that are neither wanted nor needed by others. All, where stamps do not tell."""
    if wanted is None or probe.pts_T is None or "missing_pts" in probe.flags:
        return packets
    free = probe.discardable_T.copy()
    free[list(wanted)] = False
    stamps = frozenset(probe.pts_T[free].tolist())
    return (packet for packet in packets if packet.pts not in stamps)


def decoded(packets: Iterator[Any], stream: Any, stats: DecodeStats, first: Sequence[Any] = ()) -> Iterator[Any]:
    """Frames of the packets, in displayed order. Where the source fails, what the decoder still holds is given out first.

    first: frames that were decoded before.
    """
    frames = [*first]
    del first
    while True:
        while frames:
            stats.corrupt_frames += bool(frames[0].is_corrupt)
            failpoint("mid_decode")
            yield frames.pop(0)
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            stats.decode_errors += 1
            with suppress(av.error.FFmpegError):
                yield from stream.codec_context.decode(None)
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            stats.decode_errors += 1


def _indexed(frames: Iterator[Any], probe: VideoProbe, stats: DecodeStats) -> Iterator[tuple[int, Any]]:
    """Match frames to the probe: by time stamp, or by order where the file has none."""
    previous = count = -1
    for frame in frames:
        count += 1
        if probe.pts_T is None:
            index = count - probe.num_skipped
        else:
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is None:
                index = previous + 1
            else:
                index = int(np.searchsorted(probe.pts_T, stamp))
                if index >= probe.num_frames or probe.pts_T[index] != stamp:
                    inside = probe.pts_T[0] <= stamp <= probe.pts_T[-1]
                    stats.unexpected_frames += bool(inside)
                    if stamp > probe.pts_T[-1]:
                        return
                    continue
        if index < 0:
            continue
        if index >= probe.num_frames:
            return
        if index <= previous:
            stats.unexpected_frames += 1
            continue
        previous = index
        yield index, frame
        del frame
