"""Block selection: which blocks of which frames of a group are shown, exactly as many as its P-canvases hold.

In: the score of every block of every candidate frame (and, for "evidence", the hold costs of tokenizer/hold.py). Out: pairs
(candidate, block), sorted. Candidate 0 is the group's first frame, shown whole as the I-canvas and never chosen again.

- "saliency", the published method: the best blocks of the group by score.
- "evidence": hold-DP. Each block shows its latest evidence until the next; the updates are placed where they lower the squared
  error of what a reader holds the most, under one price for all blocks. Forced events are constraints inside the same DP.

Shapes: K candidates, B blocks of a frame row-major.
"""

import numpy as np
import numpy.typing as npt

from ov2_core.config import EvidenceConfig
from ov2_core.tokenizer.hold import HoldCosts, hold_updates


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
    budget: int,
    config: EvidenceConfig,
) -> npt.NDArray[np.int64]:
    """Hold-DP with forced events, budget exactly filled.

    Args:
        activity_KB: raw motion + residual; decides what is forced.
        seconds_K: times of the candidates.

    Returns:
        [budget, 2] int64 (candidate, block), sorted.
    """
    candidates, blocks = activity_KB.shape
    _check_budget(budget, candidates, blocks)
    forced_BK = force_events(activity_KB, seconds_K, budget=budget, config=config).T
    chosen_BK = hold_updates(costs, np.ascontiguousarray(forced_BK), budget=budget)
    return np.argwhere(chosen_BK.T).astype(np.int64)


def force_events(
    activity_KB: npt.NDArray[np.float32], seconds_K: npt.NDArray[np.float64], *, budget: int, config: EvidenceConfig
) -> npt.NDArray[np.bool_]:
    """In every window of `event_period_seconds`, the most active blocks of its most active frame.

    A frame's activity is the sum over its `event_blocks` most active blocks. If the windows ask for more than
    `max_event_share` of the budget, the least active windows lose theirs.

    Returns:
        [K, B] bool; row 0 is False.
    """
    forced = np.zeros(activity_KB.shape, bool)
    if config.event_period_seconds == 0 or len(seconds_K) < 2:
        return forced
    count = min(config.event_blocks, activity_KB.shape[1])
    top = np.argsort(-activity_KB, axis=1, kind="stable")[:, :count]
    strength = np.take_along_axis(activity_KB, top, axis=1).sum(axis=1)
    window = ((seconds_K - seconds_K[0]) / config.event_period_seconds + 1e-6).astype(np.int64)
    best: dict[int, int] = {}
    for k in range(1, len(window)):
        if window[k] not in best or strength[k] > strength[best[window[k]]]:
            best[window[k]] = k
    allowed = int(budget * config.max_event_share) // count
    for k in sorted(best.values(), key=lambda k: (-strength[k], k))[:allowed]:
        forced[k, top[k]] = True
    return forced


def _check_budget(budget: int, candidates: int, blocks: int) -> None:
    if budget > (candidates - 1) * blocks:
        raise ValueError(
            f"budget of {budget} blocks exceeds the {(candidates - 1) * blocks} that {candidates - 1} candidate frames have"
        )
