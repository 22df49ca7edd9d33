"""Exact counts and seeded draws."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core.data.mixture import Share, interleave, plan_counts, sample_hash, smallest, split_exactly

weights = st.lists(st.one_of(st.integers(1, 1000), st.floats(0.001, 1000)), min_size=1, max_size=8)


@given(total=st.integers(0, 10**9), weights=weights)
def test_split_sums_exactly_and_stays_within_one(total: int, weights: list[float]) -> None:
    counts = split_exactly(total, weights)
    assert sum(counts) == total
    whole = sum(Fraction(w) for w in weights)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * Fraction(weight) / whole) < 1


def test_split_gives_the_rest_to_the_largest_remainders() -> None:
    assert split_exactly(10, [1, 1, 1]) == [4, 3, 3]
    assert split_exactly(7, [85, 4.2]) == [7, 0]
    assert split_exactly(100, [22, 24, 2.7, 0.7]) == [45, 49, 5, 1]


@given(weights=weights, available=st.integers(1, 500), data=st.data())
def test_weighted_sources_give_all_they_can(weights: list[float], available: int, data: st.DataObject) -> None:
    shares = [Share(name=str(i), weight=w) for i, w in enumerate(weights)]
    there = {share.name: data.draw(st.integers(1, available)) for share in shares}
    counts = plan_counts(shares, there, limit=None)
    assert all(counts[name] <= there[name] for name in there)
    limit = data.draw(st.integers(1, 1000))
    limited = plan_counts(shares, there, limit=limit)
    assert sum(limited.values()) == min(limit, sum(counts.values()))


def test_counts_stand_and_a_limit_scales_them() -> None:
    shares = [Share(name="a", count=60), Share(name="b", count=20), Share(name="c", weight=1)]
    there = {"a": 100, "b": 20, "c": 20}
    assert plan_counts(shares, there, limit=None) == {"a": 60, "b": 20, "c": 20}
    assert plan_counts(shares, there, limit=10) == {"a": 6, "b": 2, "c": 2}
    assert plan_counts(shares, there, limit=1000) == {"a": 60, "b": 20, "c": 20}


def test_a_toy_of_the_published_counts_needs_only_a_toys_data() -> None:
    shares = [Share(name="a", count=85_000_000), Share(name="b", count=4_200_000)]
    assert plan_counts(shares, {"a": 95, "b": 5}, limit=100) == {"a": 95, "b": 5}
    with pytest.raises(ValueError, match="85000000 samples asked, 95 usable"):
        plan_counts(shares, {"a": 95, "b": 5}, limit=None)
    with pytest.raises(ValueError, match=r"--limit 100 still asks for more than there is: a 95 of 94"):
        plan_counts(shares, {"a": 94, "b": 5}, limit=100)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"weight": 1.0, "count": 1}, "exactly one"),
        ({}, "exactly one"),
        ({"weight": 0.0}, "weight must be > 0"),
        ({"weight": float("inf")}, "weight must be > 0"),
        ({"count": 0}, "count must be >= 1"),
    ],
)
def test_a_share_that_asks_for_nothing_is_refused(given_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share(name="a", **given_)


def test_sources_are_named_once_and_have_samples() -> None:
    with pytest.raises(ValueError, match="each named once"):
        plan_counts([Share(name="a", count=1), Share(name="a", count=1)], {"a": 2}, limit=None)
    with pytest.raises(ValueError, match="'a' has no usable sample"):
        plan_counts([Share(name="a", count=1)], {"a": 0}, limit=None)


def test_a_smaller_draw_is_a_part_of_a_larger_one_whatever_the_order() -> None:
    ids = [f"v{i}" for i in range(200)]
    small = {ids[i] for i in smallest((sample_hash(1, "s", id) for id in ids), 20)}
    backwards = ids[::-1]
    large = {backwards[i] for i in smallest((sample_hash(1, "s", id) for id in backwards), 50)}
    assert len(small) == 20
    assert small < large
    assert small != {ids[i] for i in smallest((sample_hash(2, "s", id) for id in ids), 20)}


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_interleaving_spreads_sources_and_keeps_their_order(counts: list[int]) -> None:
    order = interleave(counts)
    total = sum(counts)
    for source, count in enumerate(counts):
        assert order[order[:, 0] == source, 1].tolist() == list(range(count))
        seen = np.cumsum(order[:, 0] == source)
        assert np.abs(seen - count * np.arange(1, total + 1) / total).max() <= len(counts)
