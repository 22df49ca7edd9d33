"""Hold-DP: when to renew each block, so that what a reader holds stays close to what the clip shows.

Every block b is a chain of candidates 0..K-1; showing candidate s costs one update and holds until the next shown candidate e:

    C_b[s, e] = sum over all frames of the group in [s, e) of || f_b - f_b(s) ||^2        f: cells, signals/cells.py

The updates of all blocks share one budget. For a price lambda per update each chain is solved exactly by dynamic programming,
V[e] = min_s V[s] + C[s, e] + lambda w(e); lambda is searched for the budget, and the few updates left over are given greedily to
where they help most. The weight w(e) of a candidate is 1, or less where updates are wanted together: blocks that change all the
time then change in the same frames, and a reader sees one moment whole in place of pieces of many. Frames that are not
candidates count in C as well, through sums kept between candidates, so memory does not grow with the length of a group.
Source: TOKENIZER.md ("hold-DP on every frame"); Lagrangian allocation after Shoham & Gersho (1988).

Shapes: B blocks, K candidates (0 is the I-canvas), F features.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

BISECTION_STEPS = 32
BRACKET_FACTOR = 16.0
PRICE_PRECISION = 1.002
"""Prices closer than this choose alike but for a few updates, which are then given greedily."""
GREEDY_SHARE = 0.01
"""How many updates of the budget may be left over to be given greedily."""
LEAST_PRICE = 1e-3
"""Squared gray levels: what an update must save to be looked for. A still clip has nothing to save, and its updates are spread."""


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
    feature_BKF = feature_KBF.astype(np.float64).transpose(1, 0, 2)
    cross_BKK = feature_BKF @ sum_KBF.transpose(1, 2, 0)
    norm_BK = (feature_BKF**2).sum(axis=2)
    cost_BKK = np.zeros((*norm_BK.shape, norm_BK.shape[1] + 1))
    _accumulate(cross_BKK, norm_BK, square_KB, frames_K, cost_BKK)
    return HoldCosts(cost_BKK, np.asarray(frames_K, np.float64))


@numba.njit(cache=True, nogil=True)
def _accumulate(cross, norm, square, frames, cost):  # type: ignore[no-untyped-def]
    blocks, candidates = norm.shape
    for b in range(blocks):
        for s in range(candidates):
            total = 0.0
            for k in range(s, candidates):
                total += square[k, b] - 2 * cross[b, s, k] + frames[k] * norm[b, s]
                cost[b, s, k + 1] = max(total, 0.0)


def hold_updates(
    costs: HoldCosts,
    forced_BK: npt.NDArray[np.bool_],
    *,
    budget: int,
    weight_K: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.bool_]:
    """Choose exactly `budget` updates.

    Args:
        forced_BK: updates that must be among them, at most `budget`; column 0 is ignored.
        weight_K: what an update at each candidate costs, in prices, > 0; None: 1.

    Returns:
        [B, K] bool with `budget` entries set; column 0 is False.
    """
    blocks, candidates = forced_BK.shape
    forced = forced_BK.copy()
    forced[:, 0] = False
    if int(forced.sum()) > budget or budget > blocks * (candidates - 1):
        raise ValueError(f"budget must be in {int(forced.sum())}..{blocks * (candidates - 1)}, got {budget}")
    weight = np.ones(candidates) if weight_K is None else weight_K
    chosen, trial = np.zeros((blocks, candidates), bool), np.zeros((blocks, candidates), bool)
    price = float(costs.cost_BKK[:, 0, -1].sum()) / max(budget, 1) + 1.0
    low = high = 0.0  # prices of too many updates, and of few enough; 0: not known yet
    many = few = 0  # the updates that these choose
    for step in range(BISECTION_STEPS):
        used = _solve(costs.cost_BKK, forced, price, weight, trial)
        if used <= budget:
            high, few, chosen, trial = price, used, trial, chosen
        else:
            low, many = price, used
        if high and (few >= budget * (1 - GREEDY_SHARE) or price < LEAST_PRICE):
            break
        if low and high:
            if high < low * PRICE_PRECISION:
                break
            share = math.log(many / budget) / math.log(many / max(few, 1)) if step % 3 else 0.5
            price = low * (high / low) ** min(max(share, 0.1), 0.9)
        else:
            price *= 1 / BRACKET_FACTOR if high else BRACKET_FACTOR
    if not high:  # every update that is not forced would save more than any price tried
        chosen = forced.copy()
    _fill(costs.cost_BKK, costs.frames_K, chosen, budget)
    return chosen


def hold_whole(costs: HoldCosts, *, count: int) -> npt.NDArray[np.bool_]:
    """The `count` candidates that, shown whole, hold best: exact, as all blocks share one chain.

    Returns:
        [B, K] bool with count columns set; column 0 is False.
    """
    blocks, candidates = costs.cost_BKK.shape[:2]
    if not 0 <= count < candidates:
        raise ValueError(f"count must be in 0..{candidates - 1}, got {count}")
    chosen = np.zeros((blocks, candidates), bool)
    chosen[:, _whole(costs.cost_BKK.sum(axis=0), count)] = True
    return chosen


@numba.njit(cache=True, nogil=True)
def _whole(cost, count):  # type: ignore[no-untyped-def]
    """Candidates of the cheapest chain of exactly `count` updates; cost is [K, K + 1]."""
    candidates = len(cost)
    best = np.full((count + 1, candidates), np.inf)  # the n-th update is e
    parent = np.zeros((count + 1, candidates), np.int64)
    best[0, 0] = 0.0
    for n in range(1, count + 1):
        for e in range(n, candidates):
            for s in range(n - 1, e):
                v = best[n - 1, s] + cost[s, e]
                if v < best[n, e]:
                    best[n, e], parent[n, e] = v, s
    e = int(np.argmin(best[count] + cost[:, candidates]))
    chosen = np.empty(count, np.int64)
    for n in range(count, 0, -1):
        chosen[n - 1] = e
        e = parent[n, e]
    return chosen


def tiled(costs: HoldCosts, *, columns: int, side: int) -> HoldCosts:
    """Costs in which the blocks of a tile of side x side all have the tile's mean, so that they are renewed together."""
    blocks = len(costs.cost_BKK)
    tile = np.arange(blocks) // columns // side * columns + np.arange(blocks) % columns // side
    by_tile = np.argsort(tile, kind="stable")
    _, first, tile, size = np.unique(tile[by_tile], return_index=True, return_inverse=True, return_counts=True)
    mean = np.add.reduceat(costs.cost_BKK[by_tile], first) / size[:, None, None]
    cost_BKK = np.empty_like(costs.cost_BKK)
    cost_BKK[by_tile] = mean[tile]
    return HoldCosts(cost_BKK, costs.frames_K)


def held_error(costs: HoldCosts, chosen_BK: npt.NDArray[np.bool_]) -> float:
    """Sum over blocks of what their chains cost: squared feature error of the whole group."""
    return float(_held(costs.cost_BKK, chosen_BK))


@numba.njit(cache=True, nogil=True)
def _held(cost, chosen):  # type: ignore[no-untyped-def]
    blocks, candidates = chosen.shape
    total = 0.0
    for b in range(blocks):
        s = 0
        for e in range(1, candidates):
            if chosen[b, e]:
                total += cost[b, s, e]
                s = e
        total += cost[b, s, candidates]
    return total


@numba.njit(cache=True, nogil=True)
def _solve(cost, forced, price, weight, chosen):  # type: ignore[no-untyped-def]
    """Cheapest chain of every block at this price; returns the number of updates. Ties prefer the longer hold.

    From each candidate on to all that may follow it: costs are read as they lie in memory, many at a time.
    """
    blocks, candidates = forced.shape
    best = np.empty(candidates + 1)
    parent = np.empty(candidates + 1, np.int64)
    used = 0
    for b in range(blocks):
        best[:] = np.inf
        best[0] = 0.0
        end = 0  # no segment may jump over the first forced candidate after its start
        for s in range(candidates):
            if s > 0:
                best[s] += price * weight[s]
            if end <= s:
                end = s + 1
                while end < candidates and not forced[b, end]:
                    end += 1
            start = best[s]
            row = cost[b, s]
            for e in range(s + 1, end + 1):
                value = start + row[e]
                shorter = value < best[e]
                best[e] = value if shorter else best[e]
                parent[e] = s if shorter else parent[e]
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
