"""Block selection: which blocks of which frames of a group are shown, exactly as many as its P-canvases hold.

In: the score of every block of every candidate frame (and, for "evidence", the hold costs of tokenizer/hold.py). Out: pairs
(candidate, block), sorted. Candidate 0 is the group's first frame, shown whole as the I-canvas and never chosen again.

- "saliency", the published method: the best blocks of the group by score.
- "evidence": hold-DP. Each block shows its latest evidence until the next; the updates are placed where they lower the squared
  error of what a reader holds the most, under one price for all blocks. Forced events are constraints inside the same DP, and
  updates in the frames of events cost less, so that what moves is seen together.

Shapes: K candidates, B blocks of a frame row-major.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from ov2_core.config import EvidenceConfig
from ov2_core.tokenizer.hold import HoldCosts, held_error, hold_updates, hold_whole, tiled
from ov2_core.tokenizer.structure import held_structure

CAPPED_BLOCKS = 12
SEAM_MARGIN = 0.02
"""Structure that single blocks must have more than whole frames at equal steps, as a share of what those lack: at their seams
more is lost than cells show."""


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
    """Hold-DP with forced events, budget exactly filled; whole frames and tiles compete with single blocks.

    Tried in turn, the first that is good enough is taken: regions of events and single blocks; regions of events and tiles; a
    few blocks of events and single blocks; the same and tiles. Good enough: as little error and as much structure as whole
    frames at equal steps; single blocks need SEAM_MARGIN more. Regions with more than `max_region_loss` more error than a few
    blocks of events are not tried further. A group with an event in at least half of its half windows is eventful: there
    regions with tiles may have `max_structure_loss` less structure, and if nothing is good enough, the better of the last two
    in structure is taken. Any other group then shows its best whole frames.

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
    equal_BK = equal_steps(costs.frames_K, blocks, count=budget // blocks)
    most_error, equal_structure = held_error(costs, equal_BK), structure(equal_BK)
    moving_KB = region_activity(activity_KB, columns=columns)
    seam = SEAM_MARGIN * (1 - equal_structure)
    event_KB = force_events(moving_KB, seconds_K, config.event_blocks, budget=budget, config=config)
    eventful = event_KB.any(axis=1).sum() * config.event_period_seconds >= max(seconds_K[-1] - seconds_K[0], 1e-9)
    loss = config.max_structure_loss if eventful else 0.0
    few: list[tuple[npt.NDArray[np.bool_], float, float]] = []  # selection, its error, the structure it needs
    dear = False
    for side, region_needs, few_needs in (
        (1, equal_structure + seam, equal_structure + seam),
        (config.tile_side, equal_structure - loss, equal_structure),
    ):
        shared = tiled(costs, columns=columns, side=side) if side > 1 else costs
        few_BK = _hold(shared, moving_KB, seconds_K, config.event_blocks, budget=budget, config=config)
        few.append((few_BK, held_error(costs, few_BK), few_needs))
        region_BK = _hold(shared, moving_KB, seconds_K, config.event_region_blocks, budget=budget, config=config)
        error = held_error(costs, region_BK)
        dear = dear or error > few[-1][1] * (1 + config.max_region_loss)
        if not dear and error <= most_error and structure(region_BK) >= region_needs:
            return _pairs(region_BK)
    for few_BK, error, needs in few:
        if error <= most_error and structure(few_BK) >= needs:
            return _pairs(few_BK)
    if eventful:
        return _pairs(max((few_BK for few_BK, _, _ in few), key=structure))
    return _pairs(hold_whole(costs, count=budget // blocks))


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


def _hold(
    costs: HoldCosts,
    moving_KB: npt.NDArray[np.float64],
    seconds_K: npt.NDArray[np.float64],
    region_blocks: int,
    *,
    budget: int,
    config: EvidenceConfig,
) -> npt.NDArray[np.bool_]:
    """[B, K] what hold-DP shows where events may have up to `region_blocks` blocks."""
    forced_BK = force_events(moving_KB, seconds_K, region_blocks, budget=budget, config=config).T
    weight_K = np.where(forced_BK.any(axis=0), 1.0 - config.coherence, 1.0)
    return hold_updates(costs, np.ascontiguousarray(forced_BK), budget=budget, weight_K=weight_K)


def region_activity(activity_KB: npt.NDArray[np.float32], *, columns: int) -> npt.NDArray[np.float64]:
    """[K, B] mean of each block's 3 x 3 neighbourhood, so that what is forced hangs together: one thing that moves, all of it.

    Values are capped at half the mean of their frame's CAPPED_BLOCKS highest first, or a single block would lift all around it.
    Outside the frame nothing moves.
    """
    highest = np.sort(activity_KB, axis=1)[:, -CAPPED_BLOCKS:].mean(axis=1, dtype=np.float64)
    capped = np.minimum(activity_KB, highest[:, None] / 2).reshape(len(activity_KB), -1, columns)
    padded = np.pad(capped, ((0, 0), (1, 1), (1, 1)))
    rows = capped.shape[1]
    shifted = [padded[:, r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    mean: npt.NDArray[np.float64] = np.mean(shifted, axis=0).reshape(activity_KB.shape)
    return mean


def force_events(
    activity_KB: npt.NDArray[np.float64],
    seconds_K: npt.NDArray[np.float64],
    region_blocks: int,
    *,
    budget: int,
    config: EvidenceConfig,
) -> npt.NDArray[np.bool_]:
    """In every window of `event_period_seconds`, the region that moves in its most active frame; a few blocks in each half of it.

    A frame's activity is the mean over its `event_region_blocks` most active blocks; where that is less than `event_contrast`
    times the frame's median there is no event. First the most active frame of each half window gets `event_blocks`, then the
    most active of each window gets up to `region_blocks`, strongest first, until `max_event_share` of the budget is spent.

    Args:
        activity_KB: what blocks are ranked by (region_activity).

    Returns:
        [K, B] bool; row 0 is False.
    """
    forced = np.zeros(activity_KB.shape, bool)
    if config.event_period_seconds == 0 or len(seconds_K) < 2:
        return forced
    top = np.argsort(-activity_KB, axis=1, kind="stable")[:, : config.event_region_blocks]
    strength = np.take_along_axis(activity_KB, top, axis=1).mean(axis=1)
    strength[strength < config.event_contrast * np.median(activity_KB, axis=1)] = -1.0
    left = int(budget * config.max_event_share)
    for period, count in (
        (config.event_period_seconds / 2, config.event_blocks),
        (config.event_period_seconds, region_blocks),
    ):
        for k in _peaks(strength, seconds_K, period):
            more = top[k, :count][~forced[k, top[k, :count]]][:left]
            forced[k, more] = True
            left -= len(more)
    return forced


def _peaks(strength_K: npt.NDArray[np.float64], seconds_K: npt.NDArray[np.float64], period: float) -> list[int]:
    """The strongest frame of every window, strongest first; none where all are negative. Candidate 0 is no one's."""
    window = ((seconds_K - seconds_K[0]) / period + 1e-6).astype(np.int64)
    best: dict[int, int] = {}
    for k in range(1, len(window)):
        if strength_K[k] >= 0 and (window[k] not in best or strength_K[k] > strength_K[best[window[k]]]):
            best[window[k]] = k
    return sorted(best.values(), key=lambda k: (-strength_K[k], k))


def _check_budget(budget: int, candidates: int, blocks: int) -> None:
    if budget > (candidates - 1) * blocks:
        raise ValueError(
            f"budget of {budget} blocks exceeds the {(candidates - 1) * blocks} that {candidates - 1} candidate frames have"
        )
