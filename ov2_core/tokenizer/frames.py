"""Which frames are sampled (uniform mode) or looked at (codec mode), and how large an image is on the patch grid."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ov2_core.config import TokenizerConfig

FRAMES_PER_WINDOW = 4
"""Readers attend over windows of this many frames."""
TIME_EPSILON_SECONDS = 1e-6
FEWEST_LOOKED_AT_PER_IMAGE = 2
"""That a group has left for each of its canvases; else less of it is passed over, or nothing."""
SHORTER_STEP = 0.75
"""What a group's step is multiplied by, again and again, until enough frames are left."""
MIN_AREA_PX = 56 * 56
"""Of a frame sized by `round_size`."""


def fit_size(width_px: int, height_px: int, *, area_px: int, multiple_px: int) -> tuple[int, int]:
    """Largest (width, height) of about the same aspect ratio with both sides multiples of `multiple_px`.

    The source is scaled down to `area_px` if it is larger, never up (but for sides below one multiple), and each side is then
    floored to the grid.
    """
    scale = min(1.0, math.sqrt(area_px / (width_px * height_px)))
    width = max(multiple_px, int(width_px * scale + 1e-6) // multiple_px * multiple_px)
    height = max(multiple_px, int(height_px * scale + 1e-6) // multiple_px * multiple_px)
    limit = max(multiple_px, area_px // multiple_px**2 * multiple_px)
    if width * height > area_px:  # an extreme aspect ratio whose short side was lifted to one multiple
        width, height = min(width, limit), min(height, limit)
    return width, height


def round_size(width_px: int, height_px: int, *, area_px: int, multiple_px: int) -> tuple[int, int]:
    """(width, height) by codec-video-prep's rule: each side is rounded to the grid, and floored only where the source exceeds
    the area. So a source just below the area may become larger than it; one below 56 x 56 px is enlarged.
    """
    area = width_px * height_px
    sides = []
    for side in (width_px, height_px):
        if area > area_px:
            blocks = math.floor(side / math.sqrt(area / area_px) / multiple_px)
        elif area < MIN_AREA_PX:
            blocks = math.ceil(side * math.sqrt(MIN_AREA_PX / area) / multiple_px)
        else:
            blocks = round(side / multiple_px)
        sides.append(max(1, blocks) * multiple_px)
    return sides[0], sides[1]


def num_uniform_frames(num_frames: int, duration_seconds: float, config: TokenizerConfig) -> int:
    """Frames to sample: the budget, or with budget 0 the first entry of frames_by_seconds longer than the clip, else max_frames."""
    wanted = config.budget
    if wanted == 0:
        shorter = (count for limit, count in config.frames_by_seconds if duration_seconds < limit)
        wanted = next(shorter, config.max_frames)
    return min(wanted, num_frames)


def move_to_cheaper(
    chosen: npt.NDArray[np.int64],
    seconds_T: npt.NDArray[np.float64],
    keyframe_T: npt.NDArray[np.bool_],
    *,
    reach: float,
) -> npt.NDArray[np.int64]:
    """Ascending samples, each moved by at most `reach` (below 0.5) of the mean sampling step to a frame that costs less.

    A keyframe costs one decoded frame, any other the frames since the keyframe before it. So a sample moves to the nearest
    keyframe if one is in reach; of two that share it the nearer, the earlier of equals. All others move to the earliest frame
    in reach that follows the same keyframe. The first stays.
    """
    keyframes = np.flatnonzero(keyframe_T)
    if reach == 0 or len(chosen) < 2 or not len(keyframes):
        return chosen
    at, keys = seconds_T[chosen], seconds_T[keyframes]
    most = reach * (at[-1] - at[0]) / (len(at) - 1)
    right = np.minimum(np.searchsorted(keys, at), len(keys) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(keys[left] - at) <= np.abs(keys[right] - at), left, right)
    distance = np.abs(keys[nearest] - at)
    moved = chosen.copy()
    taken = set(chosen.tolist())
    for i in np.lexsort((np.arange(len(at)), distance)).tolist():
        target = int(keyframes[nearest[i]])
        if distance[i] <= most and target not in taken:
            low = moved[i - 1] if i else -1
            high = moved[i + 1] if i + 1 < len(moved) else len(seconds_T)
            if low < target < high:
                taken.add(target)
                moved[i] = target
    earliest = np.searchsorted(seconds_T, at - most)
    follows = np.searchsorted(keyframes, moved, side="right") - 1
    for i in range(1, len(moved)):
        if moved[i] == chosen[i] and not keyframe_T[moved[i]]:
            after = keyframes[follows[i]] if follows[i] >= 0 else -1
            moved[i] = min(max(earliest[i], after + 1, moved[i - 1] + 1), moved[i])
    return moved


def sample_uniform(seconds_T: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """[count] ascending, distinct frame indices at equal steps of time from the first frame to the last.

    Even in time rather than in frame number, which differs for variable-rate clips; where two targets fall on one frame the
    later moves on to the next free one.
    """
    total = len(seconds_T)
    if not 1 <= count <= total:
        raise ValueError(f"count must be in 1..{total}, got {count}")
    if count == 1:
        return np.zeros(1, np.int64)
    targets = np.linspace(seconds_T[0], seconds_T[-1], count)
    right = np.clip(np.searchsorted(seconds_T, targets), 1, total - 1)
    nearer_left = targets - seconds_T[right - 1] <= seconds_T[right] - targets
    chosen = np.where(nearer_left, right - 1, right).astype(np.int64)
    step = np.arange(count)
    chosen = np.maximum.accumulate(chosen - step) + step
    return np.minimum(chosen, total - count + step)


def frames_to_look_at(
    seconds_T: npt.NDArray[np.float64],
    discardable_T: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.int64],
    *,
    max_step_seconds: float,
    fewest: int,
    short_whole: bool,
) -> npt.NDArray[np.int64]:
    """Ascending indices of the frames that signals are computed of: few enough to be cheap, near enough to miss nothing.

    Every group's first, and from each frame the farthest that is at most `max_step_seconds` on and that other frames need:
    such a one has to be decoded anyway. Where none of these is near enough it is the farthest near enough, else the next.

    Args:
        discardable_T: [T] frames that no other needs.
        starts: [G + 1] first frame of each group and T.
        fewest: a group that would be left with fewer frames is looked at whole, or walked through in shorter steps.
        short_whole: the former.
    """
    total = len(seconds_T)
    needed_T = np.maximum.accumulate(np.where(discardable_T, -1, np.arange(total)))
    reaches: dict[float, npt.NDArray[np.int64]] = {}

    def walk(start: int, end: int, step_seconds: float) -> list[int]:
        if step_seconds not in reaches:
            limit_T = seconds_T + step_seconds + TIME_EPSILON_SECONDS
            reach_T = np.searchsorted(seconds_T, limit_T, side="right") - 1
            reach_T[reach_T == total - 1] = total
            reaches[step_seconds] = reach_T
        here, reach_T = [start], reaches[step_seconds]
        while max(reach_T[here[-1]], here[-1] + 1) < end:
            farthest = max(int(reach_T[here[-1]]), here[-1] + 1)
            needed = int(needed_T[farthest])
            here.append(needed if needed > here[-1] else farthest)
        return here

    chosen: list[int] = []
    for start, end in pairwise(starts.tolist()):
        step = max_step_seconds
        here = walk(start, end, step)
        while not short_whole and len(here) < min(fewest, end - start) and step > TIME_EPSILON_SECONDS:
            step *= SHORTER_STEP
            here = walk(start, end, step)
        chosen += here if len(here) >= fewest else range(start, end)
    return np.array(chosen, np.int64)
