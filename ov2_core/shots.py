"""Shots of a long video: where one picture hard-cuts to another.

Enters: a probed video. Leaves: the first frame of every shot. Two signals must agree. Bytes say where to look: around frames
that cost a multiple of their neighbours, and at keyframes that look unlike the keyframe before, for an encoder puts one where
the picture changes. Pixels decide: a cut is a step between two frames that is large, and much larger than the steps
around it, so that motion, which goes on, is none, and a flash, which goes back, is none either.

Only the frames around candidates are asked for, and of these each stretch is decoded from the keyframe before it: at worst, where
everything moves, the whole video, once. Memory does not depend on its length but for some bytes a frame.

PySceneDetect decodes every frame and needs OpenCV, a second decoder with its own ideas of time stamps and rotation. Its adaptive
detector has the same idea of a step that stands out. Dissolves and fades are not found.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from ov2_core.media.container import Source
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import VideoProbe
from ov2_core.tokenizer.gop import bit_cost, spikes

SPIKE_RATIO = 4.0
"""Cost of a frame over its local median from which it is looked at."""
SPIKE_WINDOW_FRAMES = 61
REACH_FRAMES = 8
"""A cut shows in the bytes of a frame at most this far away: B frames refer ahead, VP9 and AV1 send later pictures early."""
CUT_LEVELS = 10.0
"""Least mean absolute difference over a cut, levels of 0..255."""
CUT_RATIO = 2.0
"""Of the step at a cut over the largest of the steps around it."""
AROUND_FRAMES = 5
"""Steps on each side that a cut's is held against. Pictures shown for a few frames each, and flashes, stand out from the next
step, but not from these; nor do two cuts that are this close."""
CELLS_HIGH, CELLS_WIDE = 32, 36

Cells = npt.NDArray[np.float32]
"""[CELLS_HIGH, CELLS_WIDE, 3] RGB."""


def find_shots(source: Source, probe: VideoProbe) -> npt.NDArray[np.int64]:
    """First frames of the shots of a video, or of the range that was probed: ascending indices, the first 0.

    Raises:
        BadItemError: the file cannot be opened any more.
    """
    steps = np.zeros(probe.num_frames)
    before: tuple[int, Cells] | None = None
    for index, cells in _cells(source, probe, _frames_to_ask(source, probe)):
        if before is not None and before[0] == index - 1:
            steps[index] = _difference(before[1], cells)
        before = index, cells
    cuts = np.flatnonzero(is_cut(steps))
    return np.concatenate([[0], cuts]).astype(np.int64)


def is_cut(step_T: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """[T] whether a shot begins at a frame.

    step_T: [T] difference of each frame from the one before it; 0 where it is not known.
    """
    padded = np.pad(step_T, AROUND_FRAMES)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND_FRAMES + 1)
    most = np.maximum(around[:, :AROUND_FRAMES].max(axis=1), around[:, AROUND_FRAMES + 1 :].max(axis=1))
    cut: npt.NDArray[np.bool_] = step_T >= np.maximum(CUT_LEVELS, CUT_RATIO * most)
    return cut


def _frames_to_ask(source: Source, probe: VideoProbe) -> npt.NDArray[np.int64]:
    """Ascending indices of the frames around candidates."""
    keyframes = np.flatnonzero(probe.keyframe_T)
    if 2 * len(keyframes) > probe.num_frames:
        return np.arange(probe.num_frames)
    asked = np.zeros(probe.num_frames, bool)
    cost = bit_cost(probe.frame_bytes_T, probe.keyframe_T, window_frames=SPIKE_WINDOW_FRAMES)
    ratio = spikes(cost, window_frames=SPIKE_WINDOW_FRAMES)
    for index in np.flatnonzero(ratio > SPIKE_RATIO).tolist():
        asked[max(0, index - REACH_FRAMES) : index + REACH_FRAMES + 1] = True
    previous: Cells | None = None
    for index, cells in _cells(source, probe, keyframes):
        if previous is not None and _difference(previous, cells) >= CUT_LEVELS:
            asked[max(0, index - AROUND_FRAMES - 1) : index + AROUND_FRAMES + 1] = True
        previous = cells
    return np.flatnonzero(asked)


def _cells(source: Source, probe: VideoProbe, wanted: npt.NDArray[np.int64]) -> Iterator[tuple[int, Cells]]:
    scaler = VideoReformatter()
    for index, frame in decode_frames(source, probe, stats=DecodeStats(), wanted=wanted.tolist()):
        small = scaler.reformat(frame, CELLS_WIDE, CELLS_HIGH, "rgb24", interpolation="AREA", threads=1)
        yield index, small.to_ndarray().astype(np.float32)


def _difference(a: Cells, b: Cells) -> float:
    return float(np.abs(a - b).mean())


def clip_bounds(
    starts: npt.NDArray[np.int64], probe: VideoProbe, *, min_seconds: float, max_seconds: float
) -> list[tuple[float, float]]:
    """Half-open (start, end) in seconds from the file's first shown frame, one a clip, each on frames of one shot.

    Shots longer than max_seconds are cut into equal parts, at frames; what is shorter than min_seconds is left out.
    """
    end_seconds = float(probe.seconds_T[0]) + probe.duration_seconds
    edges = [*probe.seconds_T[starts].tolist(), end_seconds]
    bounds: list[tuple[float, float]] = []
    for start, end in pairwise(edges):
        num_parts = max(1, math.ceil((end - start) / max_seconds - 1e-6))
        inner = start + (end - start) * np.arange(1, num_parts) / num_parts
        at_frames = probe.seconds_T[np.searchsorted(probe.seconds_T, inner - 1e-6)].tolist()
        bounds += [(a, b) for a, b in pairwise([start, *at_frames, end]) if b - a >= min_seconds - 1e-6 and b > a]
    return bounds
