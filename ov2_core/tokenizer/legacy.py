"""Policy "legacy": how codec-video-prep 0.2.5, the published tool, samples frames, scores blocks and chooses them.

In: maps of what each macroblock or coding tree unit cost in bits (media/bit_cost.py). Out: which frames are sampled, how they
form groups, and which of their blocks a group shows. Written anew from what the tool does, so that places agree to the last block:
hence also its float32 arithmetic and its choice among equals. What it pads is filled here, as no shard holds padding.

Shapes: K sampled frames of a group, B blocks of a frame row-major.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel

GROUP_FRAMES = 32
"""Sampled frames of a group, where the clip has them: the tool's default."""
MIN_READY_FRAMES, MAX_READY_FRAMES = 8, 64
"""Sampled frames of a group by readiness: the tool's defaults."""
_TIME_BINS = 3
_LEAST_GAIN = 0.05
_PERCENTILE = 0.99


def sample_frames(num_frames: int, count: int, keyframes: Sequence[int]) -> npt.NDArray[np.int64]:
    """[count] ascending, distinct frames at equal steps, moved off keyframes.

    A keyframe gives way to the nearest other frame up to 4 away, the later of two. Where two samples meet, frames
    that are no keyframes take the free places, those nearest to a sample first and then those nearest to the middle of the clip.

    Raises:
        ValueError: more samples than frames.
    """
    if not 1 <= count <= num_frames:
        raise ValueError(f"count must be in 1..{num_frames}, got {count}")
    is_key = np.zeros(num_frames, bool)
    is_key[[k for k in keyframes if 0 <= k < num_frames]] = True

    def off_key(frame: int) -> int:
        near = (frame + sign * step for step in range(5) for sign in (1, -1))
        return next((f for f in near if 0 <= f < num_frames and not is_key[f]), frame)

    even = np.linspace(0, num_frames - 1, count, dtype=np.int32).tolist()
    chosen = np.unique([off_key(frame) for frame in even])
    missing = count - len(chosen)
    if missing:
        free = np.setdiff1d(np.arange(num_frames), chosen)
        after = np.searchsorted(chosen, free)
        distance = np.minimum(
            free - np.where(after > 0, chosen[after - 1], -num_frames),
            np.where(after < len(chosen), chosen[np.minimum(after, len(chosen) - 1)], 2 * num_frames) - free,
        )
        from_middle = np.abs(free - num_frames // 2)
        key = is_key[free]
        order = np.lexsort((free, np.where(key, 0, from_middle), np.where(key, 0, distance), key))
        chosen = np.union1d(chosen, free[order[:missing]])
    return chosen.astype(np.int64)


def score_blocks(
    bit_cost: npt.NDArray[np.number], *, rows: int, columns: int, patch_px: int, merge: int
) -> npt.NDArray[np.float32]:
    """[B] score of each block of a frame of rows x columns blocks, from its bit-cost map [any height, any width].

    log(1 + bits), over its 99th percentile in the frame, capped at 1, spread to canvas pixels by nearest neighbour and summed.
    """
    logs = np.log1p(np.maximum(np.asarray(bit_cost, np.float32), 0))
    scaled = np.clip(logs / np.float32(max(_percentile(logs), 1e-6)), 0, 1)
    side = merge * patch_px
    pixels = scaled.take(_nearest(rows * side, scaled.shape[0]), axis=0)
    pixels = pixels.take(_nearest(columns * side, scaled.shape[1]), axis=1)
    patches = pixels.reshape(rows * merge, patch_px, columns * merge, patch_px).sum(axis=(1, 3))
    blocks: npt.NDArray[np.float32] = patches.reshape(rows, merge, columns, merge).sum(axis=(1, 3)).reshape(-1)
    return blocks


def _percentile(values: npt.NDArray[np.float32]) -> float:
    """Linear between neighbours, their distance in float32 and the rest in float64, as numpy 1 does."""
    ordered = np.sort(values, axis=None)
    place = _PERCENTILE * (len(ordered) - 1)
    low = math.floor(place)
    below, above = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    step, share = float(above - below), place - low
    return float(above) - step * (1 - share) if share >= 0.5 else float(below) + step * share


def _nearest(size_px: int, source: int) -> npt.NDArray[np.int64]:
    """[size_px] index of the cell that each pixel takes, with OpenCV's rounding."""
    cells: npt.NDArray[np.int64] = np.floor(np.arange(size_px) * (1 / (size_px / source))).astype(np.int64)
    return cells.clip(max=source - 1)


def is_blank(image_HW3: npt.NDArray[np.uint8]) -> bool:
    """Whether a frame (RGB) is black, of one colour or green as broken streams decode: the tool shows none of its blocks."""
    sums, squares, least, most, num_green = _statistics(image_HW3.reshape(-1, 3))
    count = image_HW3.shape[0] * image_HW3.shape[1]
    red, green, blue, luma = means = sums / count
    deviations = np.sqrt(np.maximum(squares / count - means**2, 0))
    if luma <= 8 and deviations[3] <= 6:
        return True
    if deviations.max() <= 4 and (most - least)[:3].max() <= 12:
        return True
    if num_green >= 0.35 * count:
        return True
    return bool(green > 120 and green - max(red, blue) > 80 and deviations[1] < 50)


@kernel("uint8[:, ::1]")
def _statistics(
    pixels_N3: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Sums, sums of squares, minima and maxima of red, green, blue and luma (OpenCV's); and the number of green pixels."""
    sums, squares = np.zeros(4, np.int64), np.zeros(4, np.int64)
    least, most = np.full(4, 255, np.int64), np.zeros(4, np.int64)
    num_green = 0
    values = np.empty(4, np.int64)
    for n in range(len(pixels_N3)):
        values[0], values[1], values[2] = pixels_N3[n, 0], pixels_N3[n, 1], pixels_N3[n, 2]
        values[3] = (4899 * values[0] + 9617 * values[1] + 1868 * values[2] + 8192) >> 14
        num_green += values[1] >= 180 and values[0] <= 90 and values[2] <= 90
        for c in range(4):
            sums[c] += values[c]
            squares[c] += values[c] * values[c]
            least[c] = min(least[c], values[c])
            most[c] = max(most[c], values[c])
    return sums, squares, least, most, num_green


@dataclass(frozen=True, slots=True)
class LegacySelection:
    """What a group shows."""

    anchor: int
    """The frame shown whole: the first that is not blank, else the first."""
    chosen_M2: npt.NDArray[np.int64]
    """(frame, block) of what the tool shows besides, sorted; M < budget where it pads."""
    filled_F2: npt.NDArray[np.int64]
    """(frame, block) in place of its padding, sorted: the best blocks of the blank frames. M + F = budget."""


def select_legacy(score_KB: npt.NDArray[np.float32], blank_K: npt.NDArray[np.bool_], *, budget: int) -> LegacySelection:
    """The `budget` best blocks of a group besides its anchor's.

    Raises:
        ValueError: fewer than `budget` blocks outside one frame.
    """
    frames, blocks = score_KB.shape
    if (frames - 1) * blocks < budget:
        raise ValueError(f"{budget} blocks cannot be chosen from {frames - 1} frames of {blocks}")
    anchor = int(np.argmin(blank_K))
    others = np.delete(np.arange(frames), anchor)
    chosen = _best(score_KB, others[~blank_K[others]], budget)
    filled = _best(score_KB, others[blank_K[others]], budget - len(chosen))
    return LegacySelection(anchor, chosen, filled)


def readiness_groups(score_SB: npt.NDArray[np.float32], *, budget: int, canvases: int) -> list[int]:
    """[G + 1] where groups start, in samples, and the end. Fewer than 8 samples that are left at the end are not shown.

    A group is ready when its `budget` best blocks score as much as those of 32 samples do in the mean, and lie in all three
    thirds of its time; it then goes on for as long as a further sample raises their sum by 5 %, and looks no further than 64
    samples for that. One that never is has 64.

    Args:
        score_SB: of all S >= 1 samples of the clip.
        canvases: of a group.
    """
    num = len(score_SB)
    chunks = [score_SB[at : at + GROUP_FRAMES] for at in range(0, num, GROUP_FRAMES)]
    sums = [_readiness(chunk, budget)[0] for chunk in chunks if len(chunk) > _TIME_BINS]
    threshold = float(np.mean(sums)) if sums else 0.0
    edges = [0]
    while num - edges[-1] >= MIN_READY_FRAMES:
        start = edges[-1]
        last = min(num, start + MAX_READY_FRAMES)
        ready, before = last, None
        for end in range(start + MIN_READY_FRAMES, last + 1):
            total, bins = _readiness(score_SB[start:end], budget)
            if total >= threshold and bins >= min(_TIME_BINS, canvases - 1):
                ready = end
                if before is not None and (total - before) / max(abs(before), 1e-6) < _LEAST_GAIN:
                    break
            before = total
        edges.append(ready)
    return edges if len(edges) > 1 else [0, num]


def _readiness(score_KB: npt.NDArray[np.float32], budget: int) -> tuple[float, int]:
    """Sum of the best blocks outside the first frame (float32, from the best down), and how many thirds of the time hold some."""
    frames = np.arange(1, len(score_KB))
    best = _best(score_KB, frames, budget)
    scores = score_KB[best[:, 0], best[:, 1]]
    if len(scores) < len(frames) * score_KB.shape[1]:
        scores = np.sort(scores)[::-1].copy()
    edges = np.linspace(1, max(2, len(score_KB)), _TIME_BINS + 1, dtype=np.int32)
    return float(scores.sum()), len(np.unique(np.searchsorted(edges, best[:, 0], side="right")))


def _best(score_KB: npt.NDArray[np.float32], frames_F: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.int64]:
    """[min(count, all), 2] the best (frame, block) of some frames, sorted.

    Among equals it takes those that numpy's scalar introselect leaves in front. Extended precision has that code on every CPU
    and in every version; float32 has a vectorised one since numpy 2, which takes others.
    """
    blocks = score_KB.shape[1]
    scores = score_KB[frames_F].reshape(-1)
    count = min(count, len(scores))
    best = np.arange(count)
    if 0 < count < len(scores):
        best = np.sort(np.argpartition(-scores.astype(np.longdouble), count - 1)[:count])
    return np.stack([frames_F[best // blocks], best % blocks], axis=1).astype(np.int64)
