"""Hold-DP: when to renew each block, so that what a reader holds stays close to what the clip shows.

Every block b is a chain of candidates 0..K-1; showing candidate s costs one update and holds until the next shown candidate e:

    C_b[s, e] = sum over all frames of the group in [s, e) of || f_b - f_b(s) ||^2        f: luma features, residual.py

The updates of all blocks share one budget. For a price lambda per update each chain is solved exactly by dynamic programming,
V[e] = min_s V[s] + C[s, e] + lambda; lambda is bisected to the budget, and the few updates left over are given greedily to
where they help most. Frames that are not candidates count in C as well, through sums kept between candidates, so memory does
not grow with the length of a group.
Source: TOKENIZER.md ("hold-DP on every frame"); Lagrangian allocation after Shoham & Gersho (1988).

Shapes: B blocks, K candidates (0 is the I-canvas), F features.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

BISECTION_STEPS = 32


@dataclass(frozen=True, slots=True)
class HoldCosts:
    """C_b[s, e] for 0 <= s < e <= K (e = K: to the end of the group); entries with e <= s are unused."""

    cost_BKK: npt.NDArray[np.float64]
    """[B, K, K + 1]"""
    frames_K: npt.NDArray[np.float64]
    """[K] frames from each candidate up to the next."""


def hold_costs(
    feature_KBF: npt.NDArray[np.float32],
    sum_KBF: npt.NDArray[np.float64],
    square_KB: npt.NDArray[np.float64],
    frames_K: npt.NDArray[np.float64],
) -> HoldCosts:
    """Costs of all segments from sums between candidates.

    Args:
        feature_KBF: features of the candidates.
        sum_KBF, square_KB, frames_K: over the frames from each candidate (included) up to the next: sum of features, sum of
            squared norms, number.
    """
    zero = ((1, 0), (0, 0))
    sums = np.pad(np.cumsum(sum_KBF, axis=0), (*zero, (0, 0)))  # [K + 1, B, F]
    squares = np.pad(np.cumsum(square_KB, axis=0), zero)  # [K + 1, B]
    frames = np.concatenate([[0.0], np.cumsum(frames_K)])
    feature = feature_KBF.astype(np.float64).transpose(1, 0, 2)  # [B, K, F]
    cross = feature @ sums.transpose(1, 2, 0)  # [B, K, K + 1]
    norm = (feature**2).sum(axis=2)  # [B, K]
    own = np.take_along_axis(cross, np.arange(cross.shape[1])[None, :, None], axis=2)
    cost = squares.T[:, None, :] - squares.T[:, :-1, None]
    cost -= 2 * (cross - own)
    cost += (frames[None, None, :] - frames[None, :-1, None]) * norm[:, :, None]
    return HoldCosts(np.maximum(cost, 0), np.asarray(frames_K, np.float64))


def hold_updates(costs: HoldCosts, forced_BK: npt.NDArray[np.bool_], *, budget: int) -> npt.NDArray[np.bool_]:
    """Choose exactly `budget` updates.

    Args:
        forced_BK: updates that must be among them, at most `budget`; column 0 is ignored.

    Returns:
        [B, K] bool with `budget` entries set; column 0 is False.
    """
    blocks, candidates = forced_BK.shape
    forced = forced_BK.copy()
    forced[:, 0] = False
    if int(forced.sum()) > budget or budget > blocks * (candidates - 1):
        raise ValueError(f"budget must be in {int(forced.sum())}..{blocks * (candidates - 1)}, got {budget}")
    low, high = 0.0, float(costs.cost_BKK[:, :, -1].max()) + 1.0  # no update can save more
    chosen = np.zeros((blocks, candidates), bool)
    _solve(costs.cost_BKK, forced, high, chosen)
    trial = np.zeros_like(chosen)
    for _ in range(BISECTION_STEPS):
        price = (low + high) / 2
        used = _solve(costs.cost_BKK, forced, price, trial)
        if used <= budget:
            high, chosen, trial = price, trial, chosen
            if used == budget:
                break
        else:
            low = price
    _fill(costs.cost_BKK, costs.frames_K, chosen, budget)
    return chosen


@numba.njit(cache=True, nogil=True)
def _solve(cost, forced, price, chosen):  # type: ignore[no-untyped-def]
    """Cheapest chain of every block at this price; returns the number of updates. Ties prefer the longer hold."""
    blocks, candidates = forced.shape
    best = np.empty(candidates + 1)
    parent = np.empty(candidates + 1, np.int64)
    used = 0
    for b in range(blocks):
        best[0] = 0.0
        oldest = 0  # the last forced candidate before e: no segment may jump over it
        for e in range(1, candidates + 1):
            value, arg = np.inf, oldest
            for s in range(oldest, e):
                v = best[s] + cost[b, s, e]
                if v < value:
                    value, arg = v, s
            best[e] = value + (price if e < candidates else 0.0)
            parent[e] = arg
            if e < candidates and forced[b, e]:
                oldest = e
        chosen[b, :] = False
        e = parent[candidates]
        while e > 0:
            chosen[b, e] = True
            used += 1
            e = parent[e]
    return used


@numba.njit(cache=True, nogil=True)
def _best_insertion(cost, frames, chosen, b):  # type: ignore[no-untyped-def]
    """(gain, candidate) of the best further update of one block; between equals, the one that halves the longest hold."""
    candidates = chosen.shape[1]
    gain, arg = -np.inf, -1
    s = 0
    while s < candidates:
        e = s + 1
        while e < candidates and not chosen[b, e]:
            e += 1
        ahead = 0.0
        for c in range(s, e):
            ahead += frames[c]
        behind = 0.0
        for c in range(s + 1, e):
            behind += frames[c - 1]
            value = cost[b, s, e] - cost[b, s, c] - cost[b, c, e] + 1e-6 * min(behind, ahead - behind)
            if value > gain:
                gain, arg = value, c
        s = e
    return gain, arg


@numba.njit(cache=True, nogil=True)
def _fill(cost, frames, chosen, budget):  # type: ignore[no-untyped-def]
    blocks = chosen.shape[0]
    left = int(budget - chosen.sum())
    if left <= 0:
        return
    gain = np.empty(blocks)
    arg = np.empty(blocks, np.int64)
    for b in range(blocks):
        gain[b], arg[b] = _best_insertion(cost, frames, chosen, b)
    for _ in range(left):
        b = int(np.argmax(gain))
        chosen[b, arg[b]] = True
        gain[b], arg[b] = _best_insertion(cost, frames, chosen, b)
