"""GOP partition: where groups begin, from the bytes of each frame alone.

In: bytes and keyframe flags of T frames in presentation order. Out: group starts. Boundaries stand at equal steps of a mixed
clock, half cumulative bit cost, half elapsed time, so that busy stretches get more groups and quiet ones are not starved;
each then snaps to the strongest spike nearby (a cut, or a burst of motion). Keyframes are large because of where the encoder
put them, not because of what happens, so their bytes are replaced by the local median of the P/B frames.
Source: TOKENIZER.md "Recommended path" 1; snapping to every spike was measured to hurt.
"""

import numpy as np
import numpy.typing as npt

from ov2_core.config import GroupConfig


def bit_cost(
    frame_bytes_T: npt.NDArray[np.int64], keyframe_T: npt.NDArray[np.bool_], *, window_frames: int
) -> npt.NDArray[np.float64]:
    """[T] cost per frame: its bytes, a keyframe's replaced by the median of the P/B frames within half a window of it.

    A keyframe without a P/B frame near (all-intra video) keeps its bytes.
    """
    cost = frame_bytes_T.astype(np.float64)
    half = window_frames // 2
    inter = ~keyframe_T
    for i in np.flatnonzero(keyframe_T):
        low, high = max(0, i - half), i + half + 1
        near = frame_bytes_T[low:high][inter[low:high]]
        if len(near):
            cost[i] = float(np.median(near))
    return cost


def local_median(cost_T: npt.NDArray[np.float64], *, window_frames: int) -> npt.NDArray[np.float64]:
    """[T] running median over a centred window, edges by reflection."""
    half = min(window_frames // 2, len(cost_T) - 1)
    if half <= 0:
        return cost_T.copy()
    padded = np.pad(cost_T, half, mode="reflect")
    result = np.empty_like(cost_T)
    step = 1 << 16  # bounds memory for hour-long clips
    for low in range(0, len(cost_T), step):
        view = np.lib.stride_tricks.sliding_window_view(padded[low : low + step + 2 * half], 2 * half + 1)
        result[low : low + step] = np.median(view, axis=1)[: len(cost_T) - low]
    return result


def num_groups(num_frames: int, budget: int, config: GroupConfig) -> int:
    """Groups of a clip: what the budget pays for, and what the clip has frames for. 0 if it has too few for one."""
    return min(budget // config.canvases_per_group, num_frames // config.min_frames)


def partition(
    frame_bytes_T: npt.NDArray[np.int64], keyframe_T: npt.NDArray[np.bool_], *, groups: int, config: GroupConfig
) -> npt.NDArray[np.int64]:
    """Group starts.

    Args:
        frame_bytes_T: [T] bytes per frame, presentation order.
        keyframe_T: [T].
        groups: G, with G * config.min_frames <= T.

    Returns:
        [G + 1] int64 ascending: group g is the frames [starts[g], starts[g + 1]); starts[0] = 0, starts[G] = T; every group
        has at least config.min_frames frames.
    """
    total = len(frame_bytes_T)
    if groups < 1 or groups * config.min_frames > total:
        raise ValueError(f"groups must be in 1..{total // config.min_frames} for {total} frames, got {groups}")
    cost = bit_cost(frame_bytes_T, keyframe_T, window_frames=config.median_window_frames)
    weight = np.full(total, 1 / total)
    if cost.sum() > 0:
        weight = (1 - config.uniform_share) * cost / cost.sum() + config.uniform_share / total
    clock = np.concatenate([[0.0], np.cumsum(weight)])
    targets = np.arange(1, groups) / groups * clock[-1]
    starts = np.searchsorted(clock, targets - 1e-12)
    spike = spikes(cost, window_frames=config.median_window_frames)
    reach = int(total / groups * config.snap_share)
    snapped = [snap(int(s), spike, max(1, int(s) - reach), int(s) + reach + 1, config.spike_ratio) for s in starts]
    return _spread(np.array([0, *snapped, total], np.int64), config.min_frames)


def join(
    starts: npt.NDArray[np.int64],
    frame_bytes_T: npt.NDArray[np.int64],
    keyframe_T: npt.NDArray[np.bool_],
    config: GroupConfig,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Neighbouring groups joined, from the first on, up to max_canvases_per_group; not across a boundary that stands on a spike.

    What a group saves is an I-canvas: its blocks go where they are needed. The clip's canvases stay as many.

    Args:
        starts: [G + 1] of equal groups (partition).

    Returns:
        ([H + 1] starts, [H] canvases of each group).
    """
    if config.max_canvases_per_group < 2 * config.canvases_per_group:
        return starts, np.full(len(starts) - 1, config.canvases_per_group, np.int64)
    spike = spikes(
        bit_cost(frame_bytes_T, keyframe_T, window_frames=config.median_window_frames),
        window_frames=config.median_window_frames,
    )
    kept, canvases = [0], [config.canvases_per_group]
    for start in starts[1:-1].tolist():
        more = canvases[-1] + config.canvases_per_group
        if more <= config.max_canvases_per_group and spike[start] <= config.spike_ratio:
            canvases[-1] = more
        else:
            kept.append(start)
            canvases.append(config.canvases_per_group)
    return np.array([*kept, starts[-1]], np.int64), np.array(canvases, np.int64)


def spikes(cost_T: npt.NDArray[np.float64], *, window_frames: int) -> npt.NDArray[np.float64]:
    """[T] cost of each frame in multiples of its local median."""
    ratio: npt.NDArray[np.float64] = cost_T / np.maximum(local_median(cost_T, window_frames=window_frames), 1.0)
    return ratio


def snap(start: int, spike_T: npt.NDArray[np.float64], low: int, high: int, ratio: float) -> int:
    """The strongest spike in [low, high) (the earliest of equals), or the start itself where none exceeds the ratio."""
    high = min(len(spike_T), high)
    if high <= low:
        return start
    best = low + int(np.argmax(spike_T[low:high]))
    return best if spike_T[best] > ratio else start


def _spread(starts: npt.NDArray[np.int64], least: int) -> npt.NDArray[np.int64]:
    """Move boundaries as little as a forward and a backward pass must, so that no group is shorter than `least`."""
    for g in range(1, len(starts) - 1):
        starts[g] = max(starts[g], starts[g - 1] + least)
    for g in range(len(starts) - 2, 0, -1):
        starts[g] = min(starts[g], starts[g + 1] - least)
    return starts
