"""Probe: all that demuxing alone tells of a video, which is enough to partition it into groups.

Only the first keyframe is decoded, because PyAV shows a display rotation on frames alone.

In: a path or binary file, optionally a range in seconds. Out: a VideoProbe: per shown frame, in presentation order, its tick
on the timeline, its bytes, whether it is a keyframe, and how far its reference anchors (I/P) are.

Times are seconds since the file's first shown frame, whatever clock the container starts at; packets that an edit list
discards are not shown and do not count. Of a range of an MP4 or Matroska file only that part is read (packets.py), and the
flags tell of that part alone. Shape letter: T shown frames in the range.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from ov2_core.config import Decoder
from ov2_core.errors import BadItemError
from ov2_core.media.container import MAX_SOURCE_PX, Source, limit_pixels, open_video
from ov2_core.media.kept import KeptPackets
from ov2_core.media.packets import Packets, demux, demux_range
from ov2_core.media.timeline import Timeline, fit_timeline
from schemas.video import ProbeRecord

TRUNCATED_SHARE = 0.98
"""A file with fewer packets or seconds than this share of what its header promises is flagged "truncated"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoProbe:
    """Everything a tokenizer needs to know before it decodes."""

    container: str
    codec: str
    pixel_format: str
    coded_width_px: int
    coded_height_px: int
    width_px: int
    """As shown: sample aspect ratio and rotation applied."""
    height_px: int
    rotation_degrees: int
    """Counter-clockwise turn that shows the decoded frame upright: 0, 90, 180 or 270."""
    timeline: Timeline
    pts_T: npt.NDArray[np.int64] | None
    """Time stamps in stream units, strictly ascending; None where the file has none and frames are told apart by order."""
    num_skipped: int
    """Without time stamps: decoded frames before the range. Else above 0 where there are any."""
    frame_bytes_T: npt.NDArray[np.int64]
    keyframe_T: npt.NDArray[np.bool_]
    discardable_T: npt.NDArray[np.bool_]
    """Frames that no other frame needs (media/reference.py)."""
    anchor_distance_T2: npt.NDArray[np.int32]
    """[T, 2] frames back to the previous anchor (I/P), frames on to the next (0 for an anchor itself)."""
    seconds_T: npt.NDArray[np.float64]
    """Presentation times, from the file's first shown frame."""
    duration_seconds: float
    size_bytes: int
    flags: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """Shown frames in the range."""
        return len(self.frame_bytes_T)

    @property
    def fps(self) -> float:
        """Ticks a second of the timeline."""
        return float(self.timeline.fps)

    def record(self) -> ProbeRecord:
        """The summary that a plan stores."""
        return ProbeRecord(
            media="video",
            container=self.container,
            codec=self.codec,
            pixel_format=self.pixel_format,
            width_px=self.width_px,
            height_px=self.height_px,
            num_frames=self.num_frames,
            duration_seconds=self.duration_seconds,
            fps=self.fps,
            variable_rate=self.timeline.variable_rate,
            rotation_degrees=self.rotation_degrees,
            size_bytes=self.size_bytes,
            video_bytes=int(self.frame_bytes_T.sum()),
            num_keyframes=int(self.keyframe_T.sum()),
            num_discardable=int(self.discardable_T.sum()),
            flags=list(self.flags),
        )


def probe_video(
    source: Source,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    max_source_px: int = MAX_SOURCE_PX,
) -> VideoProbe:
    """Demux a video and describe it.

    Args:
        source: local path, or seekable binary file.
        start_seconds, end_seconds: half-open range from the file's first shown frame; None: the whole file.
        max_source_px: width x height above which nothing is decoded.

    Raises:
        BadItemError: source_missing, not_media, no_video_stream, no_decodable_frame (no packet at all), empty_range or
            too_large.
    """
    if start_seconds is not None or end_seconds is not None:
        with _opened(source, max_source_px) as (container, stream):
            part = demux_range(container, stream, start_seconds=start_seconds, end_seconds=end_seconds)
            with suppress(BadItemError):  # an empty range is told of with the length of the whole
                if part is not None:
                    return _describe(container, stream, part, start_seconds, end_seconds)
    with _opened(source, max_source_px) as (container, stream):
        return _describe(container, stream, _demuxed(container, stream), start_seconds, end_seconds)


@contextmanager
def probed_and_kept(
    source: Source, kept: KeptPackets, *, max_source_px: int = MAX_SOURCE_PX, decoder: Decoder = "software"
) -> Iterator[VideoProbe]:
    """Probe a whole video as probe_video does, and leave it open, so that `kept` can be decoded."""
    with _opened(source, max_source_px, decoder) as (container, stream):
        yield _describe(container, stream, _demuxed(container, stream, kept), None, None)


def _demuxed(container: Any, stream: Any, kept: KeptPackets | None = None) -> Packets:
    packets = demux(container, stream, kept)
    if not packets.size:
        raise BadItemError(
            "no_decodable_frame", "the video stream holds no packet; the file is cut off or empty", stage="probe"
        )
    return packets


@contextmanager
def _opened(source: Source, max_source_px: int, decoder: Decoder = "software") -> Iterator[tuple[Any, Any]]:
    with open_video(source, stage="probe", decoder=decoder) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_source_px:
            raise BadItemError(
                "too_large",
                f"{width} x {height} px exceeds max_source_px ({max_source_px}); raise it or drop the row",
                stage="probe",
            )
        limit_pixels(stream, max_source_px)
        yield container, stream


def restrict(probe: VideoProbe, indices_T: npt.NDArray[np.int64]) -> VideoProbe:
    """The probe of a damaged clip cut down to the frames that decode; t counts from the first of them. None is discardable.

    Args:
        indices_T: ascending, not empty.
    """
    seconds = probe.seconds_T[indices_T]
    last = float(probe.seconds_T[-1])
    end = probe.seconds_T[0] + probe.duration_seconds if seconds[-1] == last else probe.seconds_T[indices_T[-1] + 1]
    return replace(
        probe,
        timeline=fit_timeline(seconds, [probe.timeline.fps]),
        pts_T=None if probe.pts_T is None else probe.pts_T[indices_T],
        frame_bytes_T=probe.frame_bytes_T[indices_T],
        keyframe_T=probe.keyframe_T[indices_T],
        discardable_T=np.zeros(len(indices_T), bool),
        anchor_distance_T2=probe.anchor_distance_T2[indices_T],
        seconds_T=seconds,
        duration_seconds=float(end - seconds[0]),
    )


def frames_in_range(
    seconds_T: npt.NDArray[np.float64], last_seconds: float, start_seconds: float | None, end_seconds: float | None
) -> npt.NDArray[np.int64]:
    """Indices of the frames in the half-open range; `last_seconds` is how long the last one is shown.

    Raises:
        BadItemError: empty_range.
    """
    inside = np.ones(len(seconds_T), bool)
    if start_seconds is not None:
        inside &= seconds_T >= start_seconds - 1e-6
    if end_seconds is not None:
        inside &= seconds_T < end_seconds - 1e-6
    chosen = np.flatnonzero(inside)
    if not len(chosen):
        raise BadItemError(
            "empty_range",
            f"no frame in [{start_seconds}, {end_seconds}) s: the video lasts {seconds_T[-1] + last_seconds:.3f} s",
            stage="probe",
        )
    return chosen


def _describe(
    container: Any, stream: Any, packets: Packets, start_seconds: float | None, end_seconds: float | None
) -> VideoProbe:
    if not stream.codec_context.width or not stream.codec_context.height:
        raise BadItemError(
            "no_decodable_frame",
            "neither header nor first frame says how large the picture is; the file is damaged or no video",
            stage="probe",
        )
    flags: list[str] = []
    time_base = float(stream.time_base or Fraction(1, 1000))
    size = np.array(packets.size, np.int64)
    key = np.array(packets.key, bool)
    stamps, by_order = _time_stamps(packets, flags)
    rates = [r for r in (stream.guessed_rate, stream.average_rate, stream.base_rate) if r]
    if by_order:
        seconds = np.arange(len(size)) / float(rates[0] if rates else 25)
        frame_bytes, keyframe, anchor = size, key, np.ones((len(size), 2), np.int32)
        discardable = np.zeros(len(size), bool)
        pts = None
    else:
        pts, first_packet, owner = np.unique(stamps, return_index=True, return_inverse=True)
        frame_bytes = np.bincount(owner, size).astype(np.int64)
        keyframe = np.bincount(owner, key) > 0
        discardable = np.bincount(owner, ~np.array(packets.discardable, bool)) == 0
        anchor = anchor_distances(stamps, first_packet)
        seconds = (pts - (pts[0] if packets.origin is None else packets.origin)) * time_base

    last_seconds = max(packets.duration[-1] * time_base, 0.0)
    if not 0 < last_seconds < 10:
        last_seconds = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
    end_on_its_clock = 0.0 if pts is None else float(pts[-1]) * time_base
    if _is_truncated(container, stream, packets, max(float(seconds[-1]), end_on_its_clock) + last_seconds):
        flags.append("truncated")

    chosen = frames_in_range(seconds, last_seconds, start_seconds, end_seconds)
    timeline = fit_timeline(seconds[chosen], rates)
    next_seconds = seconds[chosen[-1] + 1] if chosen[-1] + 1 < len(seconds) else seconds[-1] + last_seconds
    rotation = packets.rotation_degrees
    width, height = shown_size(stream, stream.codec_context.width, stream.codec_context.height, rotation)
    return VideoProbe(
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=stream.codec_context.pix_fmt or "unknown",
        coded_width_px=stream.codec_context.width,
        coded_height_px=stream.codec_context.height,
        width_px=width,
        height_px=height,
        rotation_degrees=rotation,
        timeline=timeline,
        pts_T=None if pts is None else pts[chosen],
        num_skipped=int(chosen[0]) or int(seconds[chosen[0]] > 0),
        frame_bytes_T=frame_bytes[chosen],
        keyframe_T=keyframe[chosen],
        discardable_T=discardable[chosen],
        anchor_distance_T2=anchor[chosen],
        seconds_T=seconds[chosen],
        duration_seconds=float(next_seconds - seconds[chosen[0]]),
        size_bytes=max(container.size, 0),
        flags=tuple(flags),
    )


def _time_stamps(packets: Packets, flags: list[str]) -> tuple[npt.NDArray[np.int64], bool]:
    """Presentation stamps of the packets; dts where pts are missing; by_order where both are."""
    for name, values in (("", packets.pts), ("missing_pts", packets.dts)):
        if any(v is None for v in values):
            continue
        stamps = np.array(values, np.int64)
        if len(np.unique(stamps)) * 2 < len(stamps):
            continue
        if name:
            flags.append(name)
        return stamps, False
    known = sum(v is not None for v in packets.pts)
    if known * 2 > len(packets.pts):  # a few gaps: packets without a stamp join the frame before them
        filled: list[int] = []
        for value in packets.pts:
            filled.append(
                value
                if value is not None
                else (filled[-1] if filled else next(v for v in packets.pts if v is not None))
            )
        flags.append("missing_pts")
        return np.array(filled, np.int64), False
    flags.append("missing_pts")
    return np.arange(len(packets.size)), True


def anchor_distances(stamps: npt.NDArray[np.int64], first_packet: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
    """A frame is an anchor if no earlier packet in decode order is shown after it; the others are B frames."""
    running_max = np.maximum.accumulate(np.concatenate([[np.iinfo(np.int64).min], stamps[:-1]]))
    is_anchor = (stamps > running_max)[first_packet]
    index = np.arange(len(is_anchor))
    before = np.maximum.accumulate(np.where(is_anchor, index, -1))
    previous = np.where(is_anchor, np.concatenate([[-1], before[:-1]]), before)
    after = np.minimum.accumulate(np.where(is_anchor, index, len(index) * 2)[::-1])[::-1]
    back = np.where(previous >= 0, index - previous, 1)
    ahead = np.where(is_anchor, 0, np.where(after < len(index), after - index, 1))
    return np.stack([np.maximum(back, 1), ahead], axis=1).astype(np.int32)


def _is_truncated(container: Any, stream: Any, packets: Packets, seen_seconds: float) -> bool:
    if packets.failed:
        return True
    if packets.origin is None and stream.frames and packets.total < stream.frames * TRUNCATED_SHARE:
        return True
    if not packets.ended:
        return False
    promised = 0.0
    if stream.duration and stream.time_base:
        promised = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        promised = container.duration / av.time_base
    return promised > 1 and seen_seconds < promised * TRUNCATED_SHARE - 0.5


def shown_size(stream: Any, width: int, height: int, rotation_degrees: int) -> tuple[int, int]:
    """(width, height) in pixels at which a decoded frame of width x height is shown: sample aspect ratio, then rotation."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if aspect and Fraction(1, 8) <= aspect <= 8 and aspect != 1:
        width = max(1, round(width * aspect))
    return (height, width) if rotation_degrees in (90, 270) else (width, height)
