"""Packing against a naive best fit, and its promises over random lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.data.packing import PackingConfig, best_fit, iter_packs, pack


def naive_best_fit(lengths: list[int], limit: int, max_samples: int) -> list[list[int]]:
    """Best-fit decreasing as the words say it: every open pack is looked at for every sample."""
    packs: list[list[int]] = []
    room: list[int] = []
    since: list[int] = []
    """When the pack got the room that it has."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for time, i in enumerate(order):
        open_packs = [p for p in range(len(packs)) if len(packs[p]) < max_samples and room[p] >= lengths[i]]
        if open_packs:
            chosen = min(open_packs, key=lambda p: (room[p], since[p]))
        else:
            chosen = len(packs)
            packs.append([])
            room.append(limit)
            since.append(time)
        packs[chosen].append(i)
        room[chosen] -= lengths[i]
        since[chosen] = time
    return sorted(sorted(p) for p in packs)


lengths_and_limit = st.integers(1, 5000).flatmap(
    lambda limit: st.tuples(st.lists(st.integers(1, limit), max_size=60), st.just(limit))
)


@given(case=lengths_and_limit, max_samples=st.integers(1, 8))
@settings(max_examples=300, deadline=None)
def test_best_fit_equals_the_naive_one(case: tuple[list[int], int], max_samples: int) -> None:
    lengths, limit = case
    config = PackingConfig(sequence_length=limit, max_samples=max_samples)
    got = [p.tolist() for p in best_fit(np.array(lengths, np.int64), config)]
    assert got == naive_best_fit(lengths, limit, max_samples)


@given(case=lengths_and_limit, max_samples=st.integers(1, 8), window=st.integers(1, 70), full=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_packs_hold_each_sample_once_and_never_exceed_the_limits(
    case: tuple[list[int], int], max_samples: int, window: int, full: float
) -> None:
    lengths, limit = case
    config = PackingConfig(sequence_length=limit, max_samples=max_samples, window_samples=window, full_enough=full)
    packs = pack(lengths, config)
    assert sorted(packs.samples.tolist()) == list(range(len(lengths)))
    for samples in packs:
        assert 1 <= len(samples) <= max_samples
        assert sum(lengths[i] for i in samples) <= limit
        assert samples.tolist() == sorted(samples.tolist())


@given(case=lengths_and_limit, window=st.integers(1, 20), cuts=st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=100, deadline=None)
def test_packs_do_not_depend_on_how_the_stream_is_chunked(
    case: tuple[list[int], int], window: int, cuts: list[int]
) -> None:
    lengths, limit = case
    config = PackingConfig(sequence_length=limit, window_samples=window)
    chunks = np.split(np.array(lengths, np.int64), sorted(c for c in cuts if c <= len(lengths)))
    assert [p.tolist() for p in iter_packs(chunks, config)] == [p.tolist() for p in pack(lengths, config)]


@pytest.mark.parametrize("limit", [63, 64, 65, 4095, 4096, 4097, 73_728])
def test_packing_finds_room_over_the_whole_range(limit: int) -> None:
    lengths = [limit, limit - 1, 1, limit // 2 + 1, (limit + 1) // 2 - 1]
    packs = pack(lengths, PackingConfig(sequence_length=limit))
    assert [p.tolist() for p in packs] == [[0], [1, 2], [3, 4]]


def test_packing_is_full_on_the_published_mixes() -> None:
    rng = np.random.default_rng(0)
    frames = {(4, 30): 4.2, (30, 60): 2.7, (60, 90): 0.7, (200, 340): 0.35}
    num = 40_000
    weights = np.array(list(frames.values()))
    spans = np.array(list(frames))[rng.choice(len(frames), num, p=weights / weights.sum())]
    lengths = rng.integers(spans[:, 0], spans[:, 1] + 1) * 205 + rng.integers(100, 1500, num)
    assert pack(lengths, PackingConfig(sequence_length=73_728)).fill(lengths, 73_728) >= 0.98
    wide = rng.integers(10_000, 32_001, num)
    assert pack(wide, PackingConfig(sequence_length=73_728)).fill(wide, 73_728) >= 0.98


def test_a_window_keeps_packs_local() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 1000, 20_000)
    packs = pack(lengths, PackingConfig(sequence_length=4096, window_samples=1000))
    assert max(int(p.max() - p.min()) for p in packs) < 3000


@pytest.mark.parametrize("length", [0, -1, 11])
def test_a_sample_that_fits_no_pack_is_named(length: int) -> None:
    with pytest.raises(ValueError, match=f"sample 2 has {length} tokens; a pack takes 1..10"):
        pack([1, 10, length], PackingConfig(sequence_length=10))


def test_nothing_packs_to_nothing() -> None:
    packs = pack([], PackingConfig(sequence_length=10))
    assert len(packs) == 0
    assert packs.fill([], 10) == 1.0
    assert packs.lengths([]).tolist() == []


def test_a_config_that_packs_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_samples"):
        PackingConfig(sequence_length=10, max_samples=0)
    with pytest.raises(ValueError, match="full_enough"):
        PackingConfig(sequence_length=10, full_enough=1.5)
