"""Hold-DP: when to renew each block, so that what a reader holds stays close to what the clip shows.

Every block b is a chain of candidates 0..K-1; showing candidate s costs one update and holds until the next shown candidate e:

    C_b[s, e] = sum over all frames of the group in [s, e) of (1 - a) || f_b - f_b(s) ||^2 + a w (1 - ssim(f_b, f_b(s))^2)

f: cells, signals/cells.py. Squared error does not see that fine grain has moved on; SSIM does, here with the block as its one
window, so that it comes of the same products. a is `structure_share`; w makes both terms of one size: each sums to the same over
the group if nothing but candidate 0 is ever shown.

The updates of all blocks share one budget. For a price lambda per update each chain is solved exactly by dynamic programming,
V[e] = min_s V[s] + C[s, e] + lambda; lambda is searched for the budget, and the few updates left over are given greedily to
where they help most. Frames that are not candidates count in C as well, through means kept between candidates, so memory does not
grow with the length of a group.

Every CPU chooses the same blocks. Cells are multiples of CELL_STEP, so that all their products and sums are exact in float32, in
whatever order a CPU's matrix product takes them; what is rounded is computed as it is written here, so of fastmath only sums that
are exact may be reordered.
Source: TOKENIZER.md ("hold-DP on every frame"); Lagrangian allocation after Shoham & Gersho (1988); SSIM: Wang et al. 2004.

Shapes: B blocks, K candidates (0 is the I-canvas), F features.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.signals.cells import CELL_STEP

BISECTION_STEPS = 32
BRACKET_FACTOR = 16.0
PRICE_PRECISION = 1.002
"""Prices closer than this choose alike but for a few updates, which are then given greedily."""
GREEDY_SHARE = 0.01
"""How many updates of the budget may be left over to be given greedily."""
LEAST_PRICE = 1e-3
"""Squared gray levels: what an update must save to be looked for. A still clip has nothing to save, and its updates are spread."""
BLOCKS_AT_ONCE = 12
"""Whose products are made at once: they fit a core's cache."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""Constants of SSIM for values of 0..255."""


@dataclass(frozen=True, slots=True)
class HoldCosts:
    """C_b[s, e] for 0 <= s < e <= K (e = K: to the end of the group); entries with e <= s are unused."""

    cost_BKK: npt.NDArray[np.float32]
    """[B, K, K + 1]"""
    frames_K: npt.NDArray[np.float64]
    """[K] frames from each candidate up to the next."""


def hold_costs(
    feature_KBF: npt.NDArray[np.float32],
    mean_KBF: npt.NDArray[np.float32],
    square_KB: npt.NDArray[np.float32],
    frames_K: npt.NDArray[np.float64],
    *,
    structure_share: float = 0.0,
) -> HoldCosts:
    """Costs of all segments from means between candidates.

    Args:
        feature_KBF: features of the candidates. Where these and mean_KBF are multiples of CELL_STEP, the result has the same bits
            on every CPU.
        mean_KBF, square_KB, frames_K: over the frames from each candidate (included) up to the next: mean features, mean squared
            norm, number.
        structure_share: a, 0..1. SSIM compares with mean_KBF.
    """
    frames = frames_K.astype(np.float32)
    held_BKF, shown_BKF, moments_B5K, level_B = _centred(
        np.asarray(feature_KBF, np.float32), np.asarray(mean_KBF, np.float32), np.asarray(square_KB, np.float32)
    )
    shown_BFK = shown_BKF.transpose(0, 2, 1)
    blocks, candidates, features = held_BKF.shape
    error, torn = _if_never_renewed(held_BKF[:, :1] @ shown_BFK, moments_B5K, level_B, frames, features)
    weight = structure_share * error / torn if torn > 0 else 0.0
    cost_BKK = np.zeros((blocks, candidates, candidates + 1), np.float32)
    products = np.empty((BLOCKS_AT_ONCE, candidates, candidates), np.float32)
    for start in range(0, blocks, BLOCKS_AT_ONCE):
        part = slice(start, min(start + BLOCKS_AT_ONCE, blocks))
        cross = np.matmul(held_BKF[part], shown_BFK[part], out=products[: part.stop - start])
        _accumulate(
            cross, moments_B5K[part], level_B[part], frames, features, 1 - structure_share, weight, cost_BKK[part]
        )
    return HoldCosts(cost_BKK, np.asarray(frames_K, np.float64))


@kernel("float32[:, :, ::1], float32[:, :, ::1], float32[:, ::1]", fastmath={"reassoc"})
def _centred(feature, mean_feature, square):  # type: ignore[no-untyped-def]
    """Features without their block's mean, of which products lose less to rounding, and what SSIM wants to know of them.

    Returns:
        held_BKF: of the candidates; shown_BKF: means of the frames up to the next; moments_B5K: squared norm and mean of each of
        both, mean squared norm of the frames; level_B: what was taken off.
    """
    candidates, blocks, features = feature.shape
    held = np.empty((blocks, candidates, features), np.float32)
    shown = np.empty((blocks, candidates, features), np.float32)
    moments, level = np.empty((blocks, 5, candidates), np.float32), np.empty(blocks, np.float32)
    for b in range(blocks):
        mean = 0.0
        for k in range(candidates):
            for f in range(features):
                mean += feature[k, b, f]
        mean = np.rint(mean / (candidates * features) / CELL_STEP) * CELL_STEP
        level[b] = mean
        for k in range(candidates):
            h1 = h2 = s1 = s2 = 0.0
            for f in range(features):
                h = feature[k, b, f] - mean
                s = mean_feature[k, b, f] - mean
                held[b, k, f], shown[b, k, f] = h, s
                h1 += h
                h2 += h * h
                s1 += s
                s2 += s * s
            moments[b, 0, k], moments[b, 1, k] = h2, h1 / features
            moments[b, 2, k], moments[b, 3, k] = s2, s1 / features
            moments[b, 4, k] = square[k, b] - 2 * mean * (s1 + features * mean) + features * mean * mean
    return held, shown, moments, level


@kernel("float32[:, :, ::1], float32[:, :, ::1], float32[::1], float32[::1], int64")
def _if_never_renewed(cross, moments, level, frames, features):  # type: ignore[no-untyped-def]
    """Squared error and lost structure of the whole group if nothing but candidate 0 is shown."""
    error, torn = np.empty(len(frames), np.float32), np.empty(len(frames), np.float32)
    all_error, all_torn = 0.0, 0.0
    for b in range(len(level)):
        _compare(cross[b, 0], moments[b], level[b], frames, features, 0, error, torn)
        for k in range(len(frames)):
            all_error += error[k]
            all_torn += torn[k]
    return all_error, all_torn


@kernel(
    "float32[:, :, ::1], float32[:, :, ::1], float32[::1], float32[::1], int64, float64, float64, float32[:, :, ::1]"
)
def _accumulate(cross, moments, level, frames, features, share, weight, cost):  # type: ignore[no-untyped-def]
    error, torn = np.empty(len(frames), np.float32), np.empty(len(frames), np.float32)
    share, weight = np.float32(share), np.float32(weight)
    for b in range(len(level)):
        for s in range(len(frames)):
            _compare(cross[b, s], moments[b], level[b], frames, features, s, error, torn)
            total = np.float32(0)
            for k in range(s, len(frames)):
                total += share * error[k] + weight * torn[k]
                cost[b, s, k + 1] = total


@kernel()
def _compare(cross, moments, level, frames, features, s, error, torn):  # type: ignore[no-untyped-def]
    """What holding candidate s does to a block of the frames of each candidate k >= s: squared error, and 1 - SSIM^2."""
    c1, c2, zero, one, two = np.float32(C1), np.float32(C2), np.float32(0), np.float32(1), np.float32(2)
    each = one / np.float32(features)
    norm, mean = moments[0, s], moments[1, s]
    variance, held = norm * each - mean * mean, mean + level
    for k in range(s, len(frames)):
        error[k] = frames[k] * max(moments[4, k] - two * cross[k] + norm, zero)
        shown = moments[3, k] + level
        other = moments[2, k] * each - moments[3, k] * moments[3, k]
        covariance = cross[k] * each - mean * moments[3, k]
        similar = max((two * held * shown + c1) * (two * covariance + c2), zero)
        similar /= (held * held + shown * shown + c1) * (variance + other + c2)
        torn[k] = frames[k] * max(one - similar * similar, zero)


def hold_updates(
    costs: HoldCosts,
    forced_BK: npt.NDArray[np.bool_],
    *,
    budget: int,
) -> npt.NDArray[np.bool_]:
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
    chosen, trial = np.zeros((blocks, candidates), bool), np.zeros((blocks, candidates), bool)
    price = float(costs.cost_BKK[:, 0, -1].sum(dtype=np.float64)) / max(budget, 1) + 1.0
    low = high = 0.0  # prices of too many updates, and of few enough; 0: not known yet
    many = few = 0  # the updates that these choose
    for step in range(BISECTION_STEPS):
        used = _solve(costs.cost_BKK, forced, price, trial)
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
            price = float(
                np.float32(low * (high / low) ** min(max(share, 0.1), 0.9))
            )  # logarithms differ in their last bit
        else:
            price *= 1 / BRACKET_FACTOR if high else BRACKET_FACTOR
    if not high:  # every update that is not forced would save more than any price tried
        chosen = forced.copy()
    _fill(costs.cost_BKK, costs.frames_K, chosen, budget)
    return chosen


def tiled(costs: HoldCosts, *, columns: int, side: int) -> HoldCosts:
    """Costs in which the blocks of a tile of side x side all have the tile's mean, so that they are renewed together."""
    if side == 1:
        return costs
    blocks = len(costs.cost_BKK)
    tile = np.arange(blocks) // columns // side * columns + np.arange(blocks) % columns // side
    by_tile = np.argsort(tile, kind="stable")
    _, first, tile, size = np.unique(tile[by_tile], return_index=True, return_inverse=True, return_counts=True)
    mean = np.add.reduceat(costs.cost_BKK[by_tile], first) / size[:, None, None].astype(np.float32)
    cost_BKK = np.empty_like(costs.cost_BKK)
    cost_BKK[by_tile] = mean[tile]
    return HoldCosts(cost_BKK, costs.frames_K)


@kernel("float32[:, :, ::1], b1[:, ::1], float64, b1[:, ::1]")
def _solve(cost, forced, price, chosen):  # type: ignore[no-untyped-def]
    """Cheapest chain of every block at this price; returns the number of updates. Ties prefer the longer hold.

    From each candidate on to all that may follow it: costs are read as they lie in memory, many at a time.
    """
    blocks, candidates = forced.shape
    best = np.empty(candidates + 1, np.float32)
    parent = np.empty(candidates + 1, np.int32)
    price = np.float32(price)
    used = 0
    for b in range(blocks):
        best[:] = np.inf
        best[0] = 0.0
        end = 0  # no segment may jump over the first forced candidate after its start
        for s in range(candidates):
            if s > 0:
                best[s] += price
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


@kernel()
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
            saved = np.float64(cost[b, s, e]) - np.float64(cost[b, s, c]) - np.float64(cost[b, c, e])
            value = saved + 1e-6 * min(behind, ahead - behind)
            if value > gain:
                gain, arg = value, c
        s = e
    return gain, arg


@kernel("float32[:, :, ::1], float64[::1], b1[:, ::1], int64")
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
