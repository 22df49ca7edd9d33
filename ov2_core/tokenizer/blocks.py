"""Block selection: which blocks of which frames of a group are shown, exactly as many as its P-canvases hold.

In: the score of every block of every candidate frame (and, for "evidence", the hold costs of tokenizer/hold.py). Out: pairs
(candidate, block), sorted. Candidate 0 is the group's first frame, shown whole as the I-canvas and never chosen again.

- "saliency", the published method: the best blocks of the group by score.
- "evidence": hold-DP. Each block shows its latest evidence until the next; the updates are placed where they lower the squared
  error of what a reader holds the most, under one price for all blocks. Forced events are constraints inside the same DP, and
  updates in the frames of events cost less, so that what moves is seen together.

Shapes: K candidates, B blocks of a frame row-major.
"""

import numpy as np
import numpy.typing as npt

from ov2_core.config import EvidenceConfig
from ov2_core.tokenizer.hold import HoldCosts, held_error, hold_updates

CAPPED_BLOCKS = 12


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
    activity_KB: npt.NDArray[np.float32],
    seconds_K: npt.NDArray[np.float64],
    *,
    columns: int,
    budget: int,
    config: EvidenceConfig,
) -> npt.NDArray[np.int64]:
    """Hold-DP with forced events, budget exactly filled.

    An event's region is shown whole only where the clip can afford it: if what a reader holds gets worse by more than
    `max_region_loss`, by half of it, or by its few most active blocks alone.

    Args:
        activity_KB: raw motion + residual; decides what is forced.
        columns: blocks of a row.
        seconds_K: times of the candidates.

    Returns:
        [budget, 2] int64 (candidate, block), sorted.
    """
    candidates, blocks = activity_KB.shape
    _check_budget(budget, candidates, blocks)
    moving_KB = region_activity(activity_KB, columns=columns)
    chosen_BK = _hold(costs, moving_KB, seconds_K, config.event_blocks, budget=budget, config=config)
    allowed = held_error(costs, chosen_BK) * (1 + config.max_region_loss)
    for region_blocks in (config.event_region_blocks, config.event_region_blocks // 2):
        if region_blocks <= config.event_blocks or config.event_period_seconds == 0:
            break
        wider_BK = _hold(costs, moving_KB, seconds_K, region_blocks, budget=budget, config=config)
        if held_error(costs, wider_BK) <= allowed:
            chosen_BK = wider_BK
            break
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
    """In every window of `event_period_seconds`, the `event_blocks` most active blocks of its most active frame.

    A frame's activity is the sum over its `region_blocks` most active. If the windows ask for more than `max_event_share`
    of the budget, the least active lose theirs; if they ask for less, the most active get more, up to `region_blocks`.

    Args:
        activity_KB: what blocks are ranked by (region_activity).

    Returns:
        [K, B] bool; row 0 is False.
    """
    forced = np.zeros(activity_KB.shape, bool)
    if config.event_period_seconds == 0 or len(seconds_K) < 2:
        return forced
    few, many = (min(n, activity_KB.shape[1]) for n in (config.event_blocks, region_blocks))
    top = np.argsort(-activity_KB, axis=1, kind="stable")[:, :many]
    strength = np.take_along_axis(activity_KB, top, axis=1).sum(axis=1)
    window = ((seconds_K - seconds_K[0]) / config.event_period_seconds + 1e-6).astype(np.int64)
    best: dict[int, int] = {}
    for k in range(1, len(window)):
        if window[k] not in best or strength[k] > strength[best[window[k]]]:
            best[window[k]] = k
    left = int(budget * config.max_event_share)
    ranked = sorted(best.values(), key=lambda k: (-strength[k], k))[: left // few]
    left -= few * len(ranked)
    for k in ranked:
        more = min(many - few, left)
        forced[k, top[k, : few + more]] = True
        left -= more
    return forced


def _check_budget(budget: int, candidates: int, blocks: int) -> None:
    if budget > (candidates - 1) * blocks:
        raise ValueError(
            f"budget of {budget} blocks exceeds the {(candidates - 1) * blocks} that {candidates - 1} candidate frames have"
        )
