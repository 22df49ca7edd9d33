"""GOP partition: groups cover the clip, follow the bits, and snap to cuts alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.config import GroupConfig
from ov2_core.tokenizer.gop import bit_cost, join, local_median, num_groups, partition, spikes

CONFIG = GroupConfig()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_partition_covers_the_clip_and_no_group_is_too_short(data):
    total = data.draw(st.integers(4, 400))
    groups = data.draw(st.integers(1, total // 4))
    size = np.array(data.draw(st.lists(st.integers(0, 10**6), min_size=total, max_size=total)))
    key = np.array(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    starts = partition(size, key, groups=groups, config=CONFIG)
    assert len(starts) == groups + 1
    assert starts[0] == 0
    assert starts[-1] == total
    assert (np.diff(starts) >= CONFIG.min_frames).all()


def test_partition_of_even_cost_is_even():
    starts = partition(np.full(120, 1000), np.zeros(120, bool), groups=6, config=CONFIG)
    assert starts.tolist() == [0, 20, 40, 60, 80, 100, 120]


def test_partition_gives_busy_stretches_more_groups():
    size = np.where(np.arange(400) < 200, 100, 5000)
    starts = partition(size, np.zeros(400, bool), groups=10, config=CONFIG)
    assert (starts[1:-1] > 200).sum() > (starts[1:-1] < 200).sum()
    assert (np.diff(starts)[:1] < 200).all(), "quiet stretches are not starved: half of the clock is time"


def test_partition_snaps_to_a_cut_but_not_to_ripples():
    size = np.full(160, 1000)
    size[43] = 9000
    assert 43 in partition(size, np.zeros(160, bool), groups=4, config=CONFIG)
    size[43] = 3500
    assert 43 not in partition(size, np.zeros(160, bool), groups=4, config=CONFIG)
    size[43] = 1000
    size[55] = 9000
    assert 55 not in partition(size, np.zeros(160, bool), groups=4, config=CONFIG), (
        "out of an eighth of a group's reach"
    )


def test_bit_cost_replaces_keyframes_by_their_neighbours():
    size = np.full(50, 100)
    size[[0, 25]] = 10_000
    key = size > 1000
    assert (bit_cost(size, key, window_frames=11) == 100).all()
    everything = np.ones(50, bool)
    assert (bit_cost(size, everything, window_frames=11) == size).all()


@pytest.mark.parametrize("total", [1, 2, 5, 61, 200])
def test_local_median_equals_the_naive_one(total):
    cost = np.random.default_rng(total).random(total)
    result = local_median(cost, window_frames=9)
    half = min(4, total - 1)
    for i in range(total):
        window = [cost[abs(j) if j < total else 2 * (total - 1) - j] for j in range(i - half, i + half + 1)]
        assert result[i] == pytest.approx(np.median(window))


@pytest.mark.parametrize(
    ("frames", "budget", "expected"), [(3, 32, 0), (4, 32, 1), (100, 32, 8), (30, 32, 7), (100, 4, 1)]
)
def test_num_groups_is_bounded_by_budget_and_frames(frames, budget, expected):
    assert num_groups(frames, budget, CONFIG) == expected


def test_partition_refuses_more_groups_than_frames_allow():
    with pytest.raises(ValueError, match=r"1\.\.2"):
        partition(np.ones(8, int), np.zeros(8, bool), groups=3, config=CONFIG)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_joined_groups_keep_the_canvases_and_the_boundaries_on_spikes(data):
    total = data.draw(st.integers(8, 300))
    groups = data.draw(st.integers(1, total // 4))
    most = data.draw(st.sampled_from([0, 4, 8, 9, 16]))
    size = np.array(data.draw(st.lists(st.integers(1, 10**4), min_size=total, max_size=total)))
    key = np.zeros(total, bool)
    starts = partition(size, key, groups=groups, config=CONFIG)
    joined, canvases = join(starts, size, key, GroupConfig(max_canvases_per_group=most))
    assert canvases.sum() == groups * 4
    assert canvases.max() <= max(most, 4)
    assert len(joined) == len(canvases) + 1
    assert set(joined.tolist()) <= set(starts.tolist())
    spike = spikes(bit_cost(size, key, window_frames=61), window_frames=61)
    assert {s for s in starts[1:-1].tolist() if spike[s] > CONFIG.spike_ratio} <= set(joined.tolist())
    if most < 8:
        assert joined.tolist() == starts.tolist()


def test_groups_of_even_cost_join_in_pairs():
    size, key = np.full(120, 1000), np.zeros(120, bool)
    starts = partition(size, key, groups=5, config=CONFIG)
    joined, canvases = join(starts, size, key, GroupConfig(max_canvases_per_group=8))
    assert canvases.tolist() == [8, 8, 4]
    assert joined.tolist() == [0, 48, 96, 120]
