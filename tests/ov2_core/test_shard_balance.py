import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core import shard_balance
from ov2_core.config import ShardConfig
from ov2_core.plan import PlannedText
from ov2_core.shard_balance import MAX_EXCESS, Cost, ShardBalancer, balance, cut, highest

LARGE = ShardConfig(target_bytes=1000, max_samples=512)
rows = st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100)), max_size=40)
configs = st.builds(ShardConfig, target_bytes=st.integers(1, 100), max_samples=st.integers(1, 7))


def place_all(costs: list[Cost], config: ShardConfig) -> tuple[list[list[int]], ShardBalancer]:
    """Rows by shard, as a plan places them."""
    balancer = ShardBalancer(config)
    placed: list[tuple[int, PlannedText]] = []
    for line, (size, cost) in enumerate(costs):
        placed += balancer.place(PlannedText(line, "k", "k", "u", "{}", 1, size, cost, 1.0))
    placed += balancer.flush()
    assert [shard for shard, _ in placed] == sorted(shard for shard, _ in placed)
    shards: list[list[int]] = [[] for _ in range(balancer.num_shards)]
    for shard, row in placed:
        shards[shard].append(row.line)
    return shards, balancer


@pytest.mark.parametrize("window_shards", [1, 3, 16])
@given(costs=rows, config=configs)
def test_every_row_is_in_one_shard_and_no_shard_passes_its_limits(
    window_shards: int, costs: list[Cost], config: ShardConfig
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_balance, "WINDOW_SHARDS", window_shards)
        placed, _ = place_all(costs, config)
    for shards in (placed, cut(costs, config), balance(costs, config)):
        assert sorted(place for places in shards for place in places) == list(range(len(costs)))
        for places in shards:
            assert places == sorted(places)
            assert len(places) <= config.max_samples
            assert len(places) == 1 or sum(costs[place][0] for place in places) <= config.target_bytes


@given(sizes=st.lists(st.integers(0, 50), max_size=40), config=configs)
def test_rows_of_even_cost_stay_in_order_through_all_windows(sizes: list[int], config: ShardConfig) -> None:
    costs = [(size, 0.0) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_balance, "WINDOW_SHARDS", 2)
        shards, _ = place_all(costs, config)
    assert shards == cut(costs, config)
    assert [place for places in shards for place in places] == list(range(len(costs)))


def test_most_expensive_row_goes_to_the_cheapest_shard() -> None:
    costs = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    shards = balance([(1, cost) for cost in costs], ShardConfig(target_bytes=2, max_samples=9))
    assert shards == [[0, 5], [1, 4], [2, 3]]


def test_block_of_long_videos_is_spread_over_the_shards_of_its_window() -> None:
    draw = random.Random(0)
    costs = [(10, 60.0) for _ in range(100)] + [(10, draw.uniform(0.5, 2.0)) for _ in range(300)]
    shards, _ = place_all(costs, LARGE)
    mean = sum(cost for _, cost in costs) / len(shards)
    assert highest(costs, shards) < 1.05 * mean
    assert highest(costs, cut(costs, LARGE)) > 3.5 * mean


@given(costs=rows, config=configs)
def test_one_window_costs_at_most_the_excess_more_than_its_balance(costs: list[Cost], config: ShardConfig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_balance, "WINDOW_SHARDS", 10**6)
        shards, _ = place_all(costs, config)
    assert highest(costs, shards) <= MAX_EXCESS * highest(costs, balance(costs, config))


def test_what_is_held_is_a_window() -> None:
    balancer = ShardBalancer(ShardConfig(target_bytes=10, max_samples=5))
    for line in range(1000):
        list(balancer.place(PlannedText(line, "k", "k", "u", "{}", 1, 1, line % 7, 1.0)))
        assert len(balancer._rows) < shard_balance.WINDOW_SHARDS * 5
