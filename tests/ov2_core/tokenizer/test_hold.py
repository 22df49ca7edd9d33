"""Hold-DP: costs against a naive sum, choices against brute force, the budget met exactly."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.tokenizer.hold import HoldCosts, _solve, hold_costs, hold_updates, hold_whole, tiled


def naive_cost(features, candidates, b, s, e):
    """Squared error of holding candidate s over the frames up to candidate e (or the end), frame by frame."""
    stop = candidates[e] if e < len(candidates) else len(features)
    return sum(((features[t, b] - features[candidates[s], b]) ** 2).sum() for t in range(candidates[s], stop))


def make_costs(features, candidates):
    """hold_costs of a clip [T, B, F] of which only some frames are candidates."""
    edges = [*candidates, len(features)]
    pieces = [features[a:b].astype(np.float64) for a, b in pairwise(edges)]
    return hold_costs(
        features[candidates].astype(np.float32),
        np.stack([p.sum(axis=0) for p in pieces]),
        np.stack([(p**2).sum(axis=(0, 2)) for p in pieces]),
        np.array([len(p) for p in pieces], float),
    )


def total_cost(costs, chosen):
    total = 0.0
    for b, row in enumerate(chosen):
        shown = [0, *np.flatnonzero(row).tolist(), chosen.shape[1]]
        total += sum(costs.cost_BKK[b, s, e] for s, e in pairwise(shown))
    return total


def test_hold_costs_equal_the_naive_sum():
    features = np.random.default_rng(0).integers(0, 255, (11, 3, 4)).astype(np.float32)
    candidates = [0, 2, 3, 7, 10]
    costs = make_costs(features, candidates)
    for b in range(3):
        for s in range(5):
            for e in range(s + 1, 6):
                assert costs.cost_BKK[b, s, e] == pytest.approx(
                    naive_cost(features, candidates, b, s, e), rel=1e-9, abs=1e-3
                )


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 3), st.integers(3, 4), st.data())
def test_hold_updates_fill_the_budget_and_come_near_brute_force(seed, blocks, candidates, data):
    rng = np.random.default_rng(seed)
    features = np.cumsum(rng.normal(0, 10, (candidates, blocks, 2)), axis=0).astype(np.float32)
    costs = make_costs(features, list(range(candidates)))
    budget = data.draw(st.integers(0, blocks * (candidates - 1)))
    forced = np.zeros((blocks, candidates), bool)
    for b, k in data.draw(
        st.sets(st.tuples(st.integers(0, blocks - 1), st.integers(1, candidates - 1)), max_size=budget)
    ):
        forced[b, k] = True
    chosen = hold_updates(costs, forced, budget=budget)
    assert chosen.sum() == budget
    assert not chosen[:, 0].any()
    assert (chosen | ~forced).all(), "forced updates are among the chosen"
    free = [(b, k) for b in range(blocks) for k in range(1, candidates) if not forced[b, k]]
    every = []
    for extra in combinations(free, budget - int(forced.sum())):
        trial = forced.copy()
        for b, k in extra:
            trial[b, k] = True
        every.append(total_cost(costs, trial))
    best, worst = min(every), max(every)
    ours = total_cost(costs, chosen)
    assert ours >= best - 1e-3
    # A price can only reach the lower convex hull of cost over updates; the greedy rest may miss the optimum by one step.
    assert ours <= best + 0.5 * (worst - best) + 1e-3


def test_hold_updates_are_optimal_where_the_price_meets_the_budget():
    """One block, distinct jumps: each further update takes the largest jump left."""
    steps = np.array([0, 1, 50, 2, 30, 3, 10], float)
    features = np.cumsum(steps)[:, None, None].astype(np.float32)
    costs = make_costs(features, list(range(7)))
    for budget in range(1, 6):
        chosen = hold_updates(costs, np.zeros((1, 7), bool), budget=budget)
        every = []
        for extra in combinations(range(1, 7), budget):
            trial = np.zeros((1, 7), bool)
            trial[0, list(extra)] = True
            every.append(total_cost(costs, trial))
        assert total_cost(costs, chosen) == pytest.approx(min(every), rel=0.05, abs=5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0, 300))
def test_chains_are_the_cheapest_at_any_price_and_weights(seed, candidates, price):
    """Brute force over all chains of each block agrees, forced updates and frames of lower price included."""
    rng = np.random.default_rng(seed)
    features = np.cumsum(rng.normal(0, 10, (candidates, 2, 2)), axis=0).astype(np.float32)
    costs = make_costs(features, list(range(candidates)))
    forced = rng.random((2, candidates)) < 0.2
    forced[:, 0] = False
    weight = np.where(rng.random(candidates) < 0.3, 0.4, 1.0)
    chosen = np.zeros((2, candidates), bool)
    used = _solve(costs.cost_BKK, forced, price, weight, chosen)
    assert used == chosen.sum()
    assert (chosen | ~forced).all()
    for b in range(2):

        def objective(row, b=b):
            return (
                total_cost(HoldCosts(costs.cost_BKK[b : b + 1], costs.frames_K), row[None]) + price * weight[row].sum()
            )

        subsets = (
            np.array([False, *(bool(code >> k & 1) for k in range(candidates - 1))])
            for code in range(2 ** (candidates - 1))
        )
        best = min(objective(row) for row in subsets if (row | ~forced[b]).all())
        assert objective(chosen[b]) == pytest.approx(best, rel=1e-9, abs=1e-6)


def test_blocks_that_change_all_the_time_change_together_where_it_is_cheaper():
    rng = np.random.default_rng(7)
    features = np.cumsum(rng.normal(0, 10, (24, 12, 4)), axis=0).astype(np.float32)
    costs = make_costs(features, list(range(24)))
    events = np.arange(24) % 6 == 3
    shares = []
    for coherence in (0.0, 0.6):
        weight = np.where(events, 1 - coherence, 1.0)
        chosen = hold_updates(costs, np.zeros((12, 24), bool), budget=48, weight_K=weight)
        assert chosen.sum() == 48
        shares.append(chosen[:, events].sum() / 48)
    assert shares[1] > shares[0] + 0.2


def test_hold_updates_of_a_still_clip_spread_over_time():
    features = np.zeros((9, 4, 3), np.float32)
    chosen = hold_updates(make_costs(features, list(range(9))), np.zeros((4, 9), bool), budget=8)
    assert chosen.sum() == 8
    for row in chosen:
        shown = [0, *np.flatnonzero(row).tolist(), 9]
        assert max(e - s for s, e in pairwise(shown)) <= 5, "each block is renewed in mid-clip"


def test_hold_updates_refuse_an_impossible_budget():
    costs = make_costs(np.zeros((4, 2, 1), np.float32), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="budget"):
        hold_updates(costs, np.zeros((2, 4), bool), budget=7)
    forced = np.zeros((2, 4), bool)
    forced[:, 1:] = True
    with pytest.raises(ValueError, match="budget"):
        hold_updates(costs, forced, budget=5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.data())
def test_whole_frames_are_the_best_of_all_choices(seed, candidates, data):
    features = np.random.default_rng(seed).normal(0, 10, (candidates, 3, 2)).cumsum(axis=0).astype(np.float32)
    costs = make_costs(features, list(range(candidates)))
    count = data.draw(st.integers(0, candidates - 1))
    chosen = hold_whole(costs, count=count)
    assert (chosen == chosen[0]).all()
    assert chosen[0].sum() == count
    assert not chosen[0, 0]
    every = []
    for shown in combinations(range(1, candidates), count):
        trial = np.zeros((3, candidates), bool)
        trial[:, list(shown)] = True
        every.append(total_cost(costs, trial))
    assert total_cost(costs, chosen) == pytest.approx(min(every), rel=1e-9, abs=1e-6)


def test_whole_frames_refuse_an_impossible_count():
    with pytest.raises(ValueError, match="count"):
        hold_whole(make_costs(np.zeros((3, 2, 1), np.float32), [0, 1, 2]), count=3)


def test_blocks_of_a_tile_are_renewed_together():
    rng = np.random.default_rng(9)
    costs = make_costs(np.cumsum(rng.normal(0, 10, (12, 20, 3)), axis=0).astype(np.float32), list(range(12)))
    shared = tiled(costs, columns=5, side=2)
    tile = np.arange(20) // 5 // 2 * 3 + np.arange(20) % 5 // 2
    for b in range(20):
        assert shared.cost_BKK[b] == pytest.approx(costs.cost_BKK[tile == tile[b]].mean(axis=0))
    chosen = np.zeros((20, 12), bool)
    _solve(shared.cost_BKK, np.zeros((20, 12), bool), 2000.0, np.ones(12), chosen)
    assert chosen.any()
    for t in range(6):
        assert (chosen[tile == t] == chosen[tile == t][0]).all()


def test_a_still_clip_asks_few_prices(monkeypatch):
    from ov2_core.tokenizer import hold

    asked = []
    solve = hold._solve
    monkeypatch.setattr(hold, "_solve", lambda *args: asked.append(args[2]) or solve(*args))
    hold_updates(make_costs(np.zeros((9, 4, 3), np.float32), list(range(9))), np.zeros((4, 9), bool), budget=8)
    assert len(asked) < 6
