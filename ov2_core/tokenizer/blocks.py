"""Block selection: which blocks of which frames of a group are shown, exactly as many as its P-canvases hold.

In: the score of every block of every candidate frame (and, for "evidence", the hold costs of tokenizer/hold.py). Out: pairs
(candidate, block), sorted. Candidate 0 is the group's first frame, shown whole as the I-canvas and never chosen again.

- "saliency", the published method: the best blocks of the group by score.
- "evidence": hold-DP. Each block shows its latest evidence until the next; the updates are placed where they lower the error
  and the loss of structure of what a reader holds the most, under one price for all blocks. The regions of events are
  constraints inside the same DP. Where the picture would be torn, larger tiles take the place of blocks.

Shapes: K candidates, B blocks of a frame row-major.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from ov2_core.config import EvidenceConfig
from ov2_core.tokenizer.hold import HoldCosts, hold_updates, tiled
from ov2_core.tokenizer.structure import held_structure

CAPPED_BLOCKS = 12
STRONG_PERCENTILE = 90
WEIGHT_STEP, ACTIVITY_STEP = 2.0**-16, 2.0**-10
"""What is smoothed is rounded to these first, so that sums over a group are exact in float64 on every CPU."""
TILE_SIDES = (1, 2, 5)
"""Tried in turn, in blocks."""
SEAM_MARGIN = 0.02
"""Structure that single blocks must have more than whole frames at equal steps, as a share of what those lack: at their seams
more is lost than cells show. Tiles have less seam, and need as much less."""


def select_saliency(score_KB: npt.NDArray[np.float32], *, budget: int) -> npt.NDArray[np.int64]:
    """The `budget` best blocks outside candidate 0; ties go to the earlier candidate, then the lower block.

    Returns:
        [budget, 2] int64 (candidate, block), sorted.

    Raises:
        ValueError: fewer than `budget` blocks outside candidate 0.
    """
    candidates, blocks = score_KB.shape
    _check_budget(budget, candidates, blocks)
    order = np.argsort(-score_KB[1:].reshape(-1), kind="stable")[:budget]
    order.sort()
    return np.stack([order // blocks + 1, order % blocks], axis=1)


def select_evidence(
    costs: HoldCosts,
    feature_KBF: npt.NDArray[np.float32],
    activity_KB: npt.NDArray[np.float32],
    seconds_K: npt.NDArray[np.float64],
    *,
    columns: int,
    budget: int,
    config: EvidenceConfig,
) -> npt.NDArray[np.int64]:
    """Hold-DP with forced events, budget exactly filled.

    The costs are of blocks one by one and do not see seams. So what is held is looked at as a whole: if it has no more structure
    than whole frames at equal steps would leave (and SEAM_MARGIN), larger tiles are tried; if none is good enough, the largest
    is taken, and events get `max_torn_event_share` of the budget alone.

    Args:
        feature_KBF: cells of the candidates.
        activity_KB: raw motion + residual; decides what is forced.
        columns: blocks of a row.
        seconds_K: times of the candidates.

    Returns:
        [budget, 2] int64 (candidate, block), sorted.
    """
    candidates, blocks = activity_KB.shape
    _check_budget(budget, candidates, blocks)
    structure = partial(held_structure, feature_KBF, costs.frames_K, columns=columns)
    equal = structure(equal_steps(costs.frames_K, blocks, count=budget // blocks))
    moving_KB = region_activity(activity_KB, columns=columns)
    moving_KB = smooth(moving_KB, seconds_K, sigma_seconds=config.event_smoothing_seconds)
    forced_BK = force_events(moving_KB, seconds_K, most=int(budget * config.max_event_share), config=config).T
    for side in TILE_SIDES:
        of_tiles = tiled(costs, columns=columns, side=side)
        chosen_BK = hold_updates(of_tiles, forced_BK, budget=budget)
        if structure(chosen_BK) >= equal + SEAM_MARGIN / side * (1 - equal):
            return _pairs(chosen_BK)
    share = min(config.max_event_share, config.max_torn_event_share)
    fewer_BK = force_events(moving_KB, seconds_K, most=int(budget * share), config=config).T
    if (fewer_BK == forced_BK).all():
        return _pairs(chosen_BK)
    return _pairs(hold_updates(of_tiles, fewer_BK, budget=budget))


def equal_steps(frames_K: npt.NDArray[np.float64], blocks: int, *, count: int) -> npt.NDArray[np.bool_]:
    """[B, K] `count` candidates shown whole at equal steps of the group's frames: what uniform sampling would show."""
    starts = np.cumsum(frames_K) - frames_K
    steps = np.arange(1, count + 1) / (count + 1) * frames_K.sum()
    nearest = np.searchsorted(starts, steps, side="right") - 1
    ahead = np.arange(count)  # distinct, and none is candidate 0
    nearest = np.maximum.accumulate(np.maximum(nearest, 1) - ahead) + ahead
    nearest = np.minimum(nearest, len(frames_K) - count + ahead)
    chosen = np.zeros((blocks, len(frames_K)), bool)
    chosen[:, nearest] = True
    return chosen


def _pairs(chosen_BK: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.argwhere(chosen_BK.T).astype(np.int64)


def region_activity(activity_KB: npt.NDArray[np.float32], *, columns: int) -> npt.NDArray[np.float64]:
    """[K, B] mean of each block's 3 x 3 neighbourhood, so that what is forced hangs together: one thing that moves, all of it.

    Values are capped at half the mean of their frame's CAPPED_BLOCKS highest first, or a single block would lift all around it.
    Outside the frame nothing moves.
    """
    highest = np.sort(activity_KB, axis=1)[:, -CAPPED_BLOCKS:].mean(axis=1, dtype=np.float64)
    capped = np.minimum(activity_KB, highest[:, None] / 2).reshape(len(activity_KB), -1, columns)
    padded = np.pad(capped, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    mean: npt.NDArray[np.float64] = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    return mean.reshape(activity_KB.shape)


def smooth(
    activity_KB: npt.NDArray[np.float64], seconds_K: npt.NDArray[np.float64], *, sigma_seconds: float
) -> npt.NDArray[np.float64]:
    """[K, B] Gaussian mean over time: what swings is most active beside its turning points, and this is highest between them."""
    if sigma_seconds == 0:
        return activity_KB
    weight_KK = (
        np.rint(np.exp(-0.5 * ((seconds_K[:, None] - seconds_K) / sigma_seconds) ** 2) / WEIGHT_STEP) * WEIGHT_STEP
    )
    activity_KB = np.rint(activity_KB / ACTIVITY_STEP) * ACTIVITY_STEP
    result: npt.NDArray[np.float64] = weight_KK @ activity_KB / weight_KK.sum(axis=1, keepdims=True)
    return result


def force_events(
    activity_KB: npt.NDArray[np.float64],
    seconds_K: npt.NDArray[np.float64],
    *,
    most: int,
    config: EvidenceConfig,
) -> npt.NDArray[np.bool_]:
    """A few blocks of every event, and of the strong ones the region that moves.

    A frame's strength is the mean activity of its `event_region_blocks` most active blocks; where that is less than
    `event_contrast` times the frame's median there is no event. First the strongest frames that are half of
    `event_period_seconds` apart get their `event_blocks` most active blocks, so that every event has something near it; then
    the strongest that are a whole period apart get all `event_region_blocks`, strongest first, until `most` blocks are
    spent. These have at least `event_strength` of what the group's strong frames have.

    Args:
        activity_KB: what blocks are ranked by (region_activity, smooth).
        most: blocks that may be forced.

    Returns:
        [K, B] bool; row 0 is False.
    """
    forced = np.zeros(activity_KB.shape, bool)
    if config.event_period_seconds == 0 or len(seconds_K) < 2:
        return forced
    top = np.argsort(-activity_KB, axis=1, kind="stable")[:, : config.event_region_blocks]
    strength = np.take_along_axis(activity_KB, top, axis=1).mean(axis=1)
    strength[strength < config.event_contrast * np.median(activity_KB, axis=1)] = 0.0
    strong = config.event_strength * np.percentile(strength, STRONG_PERCENTILE)
    left = most
    for apart, count, least in (
        (config.event_period_seconds / 2, config.event_blocks, 0.0),
        (config.event_period_seconds, config.event_region_blocks, strong),
    ):
        for k in _peaks(strength, seconds_K, apart=apart, least=least):
            more = top[k, :count][~forced[k, top[k, :count]]][:left]
            forced[k, more] = True
            left -= len(more)
    return forced


def _peaks(
    strength_K: npt.NDArray[np.float64], seconds_K: npt.NDArray[np.float64], *, apart: float, least: float
) -> list[int]:
    """The strongest frame, the strongest of those that are at least `apart` seconds from it, and so on; candidate 0 is none."""
    peaks: list[int] = []
    free = (strength_K > 0) & (strength_K >= least)
    free[0] = False
    for k in np.argsort(-strength_K, kind="stable").tolist():
        if free[k]:
            peaks.append(k)
            free &= np.abs(seconds_K - seconds_K[k]) >= apart - 1e-6
    return peaks


def _check_budget(budget: int, candidates: int, blocks: int) -> None:
    if budget > (candidates - 1) * blocks:
        raise ValueError(
            f"budget of {budget} blocks exceeds the {(candidates - 1) * blocks} that {candidates - 1} candidate frames have"
        )
