"""The order of packs and the cursor: every resume leaves exactly the remaining packs, in the same order."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.data.order import HeldOut, PackOrder, Reading, Shuffle
from ov2_core.data.shuffle import mix64, permutation


def single_process_order(num_packs: int, shuffle: Shuffle, epochs: int) -> list[int]:
    """The order as the words say it, in plain Python but for the hashes."""
    order: list[int] = []
    size, mixed = shuffle.block_packs, shuffle.mixed_blocks
    for epoch in range(epochs):
        blocks = permutation(-(-num_packs // size), seed=shuffle.seed, name=f"blocks of epoch {epoch}").tolist()
        for first in range(0, len(blocks), mixed):
            packs = [
                b * size + i for b in blocks[first : first + mixed] for i in range(size) if b * size + i < num_packs
            ]
            place = permutation(num_packs, seed=shuffle.seed, name=f"packs of epoch {epoch}").tolist()
            rank = {pack: at for at, pack in enumerate(place)}
            order += sorted(packs, key=rank.__getitem__)
    return order


def run_all_ranks(
    order: PackOrder, cursor: int, *, world: int, batch: int, steps: int | None, **how: bool
) -> tuple[list[int], int]:
    """Packs that all ranks read, step by step in rank order, and the cursor afterwards."""
    readings = [
        Reading(num_packs=order.num_packs, batch_size=batch, rank=rank, world_size=world, **how)
        for rank in range(world)
    ]
    packs: list[int] = []
    for all_steps in zip(*(reading.steps(cursor) for reading in readings), strict=True):
        if steps is not None and steps == 0:
            break
        steps = None if steps is None else steps - 1
        assert len({step.cursor for step in all_steps}) == 1
        for step in all_steps:
            packs += order.packs(step.start, step.stop).tolist()
        cursor = all_steps[0].cursor
    return packs, cursor


shuffles = st.builds(Shuffle, seed=st.integers(0, 2**63), block_packs=st.integers(1, 9), mixed_blocks=st.integers(1, 5))


@given(num_packs=st.integers(1, 120), shuffle=shuffles, epochs=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_the_order_is_that_of_a_single_process(num_packs: int, shuffle: Shuffle, epochs: int) -> None:
    order = PackOrder(num_packs, shuffle)
    expected = single_process_order(num_packs, shuffle, epochs)
    assert order.packs(0, epochs * num_packs).tolist() == expected
    assert sorted(expected[:num_packs]) == list(range(num_packs))
    fresh = PackOrder(num_packs, shuffle)
    backwards = [int(fresh.packs(p, p + 1)[0]) for p in reversed(range(epochs * num_packs))]
    assert backwards[::-1] == expected


@given(
    num_packs=st.integers(1, 90),
    shuffle=shuffles,
    runs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=600, deadline=None)
def test_resumes_at_other_sizes_read_each_pack_once_in_the_same_order(
    num_packs: int, shuffle: Shuffle, runs: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    order = PackOrder(num_packs, shuffle)
    packs: list[int] = []
    cursor = 0
    for world, batch, steps in runs:  # killed after so many steps, then resumed at the next size
        if cursor == num_packs:
            break
        more, cursor = run_all_ranks(order, cursor, world=world, batch=batch, steps=steps)
        packs += more
        assert len(packs) == cursor
    if cursor < num_packs:
        world, batch = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
        more, cursor = run_all_ranks(order, cursor, world=world, batch=batch, steps=None)
        packs += more
    expected = PackOrder(num_packs, shuffle).packs(0, num_packs)
    digest = hashlib.sha256(np.array(packs, np.int64).tobytes()).hexdigest()
    assert digest == hashlib.sha256(expected.tobytes()).hexdigest()


@given(
    num_packs=st.integers(1, 60),
    shuffle=shuffles,
    global_batch=st.sampled_from([4, 6, 12]),
    kill=st.integers(0, 25),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_the_same_global_batch_gives_the_same_steps_at_any_world_size(
    num_packs: int, shuffle: Shuffle, global_batch: int, kill: int, data: st.DataObject
) -> None:
    order = PackOrder(num_packs, shuffle)
    worlds = [w for w in range(1, global_batch + 1) if global_batch % w == 0]
    first, second = data.draw(st.sampled_from(worlds)), data.draw(st.sampled_from(worlds))
    before, cursor = (
        run_all_ranks(order, 0, world=first, batch=global_batch // first, steps=kill, endless=True) if kill else ([], 0)
    )
    after, _ = run_all_ranks(order, cursor, world=second, batch=global_batch // second, steps=5, endless=True)
    assert before + after == order.packs(0, (kill + 5) * global_batch).tolist()


@given(num_packs=st.integers(1, 40), world=st.integers(1, 7), batch=st.integers(1, 4))
def test_ranks_have_equally_many_steps_and_even_last_batches(num_packs: int, world: int, batch: int) -> None:
    readings = [Reading(num_packs=num_packs, batch_size=batch, rank=r, world_size=world) for r in range(world)]
    steps = [list(reading.steps(0)) for reading in readings]
    assert len({len(s) for s in steps}) == 1
    last = [s[-1].stop - s[-1].start for s in steps]
    assert max(last) - min(last) <= 1
    assert sum(step.stop - step.start for s in steps for step in s) == num_packs
    dropping = Reading(num_packs=num_packs, batch_size=batch, rank=0, world_size=world, drop_last=True)
    assert len(list(dropping.steps(0))) == num_packs // (batch * world)


def test_epochs_differ_and_a_block_is_read_close_together() -> None:
    shuffle = Shuffle(seed=1, block_packs=8, mixed_blocks=4)
    order = PackOrder(1000, shuffle)
    first, second = order.packs(0, 1000), order.packs(1000, 2000)
    assert (first != second).mean() > 0.9
    place = np.argsort(first)
    for block in range(125):
        at = place[block * 8 : (block + 1) * 8]
        assert at.max() - at.min() < 32


def test_a_far_position_costs_no_more_than_a_near_one() -> None:
    order = PackOrder(50_000_000, Shuffle(seed=0, block_packs=64))
    packs = order.packs(3 * 50_000_000 + 12_345_678, 3 * 50_000_000 + 12_345_688)
    assert len(set(packs.tolist())) == 10


def test_no_shuffle_is_the_order_of_the_stage() -> None:
    order = PackOrder(5, Shuffle(seed=0, block_packs=2, mixed_blocks=0))
    assert order.packs(3, 12).tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_hashes_are_those_of_splitmix64() -> None:
    # Vigna's splitmix64.c, seed 1234567: its state advances by the golden gamma before it is mixed.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert mix64(states, 0).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="rank must be in"):
        Reading(num_packs=1, batch_size=1, rank=rank, world_size=world)


@pytest.mark.parametrize(
    ("num_packs", "num_held_out"), [(10, 0), (10, 1), (10, 5), (11, 5), (101, 7), (64, 32), (3, 1)]
)
def test_held_out_packs_are_those_that_training_leaves(num_packs: int, num_held_out: int) -> None:
    parts = HeldOut(num_packs=num_packs, num_held_out=num_held_out)
    training = parts.training(np.arange(num_packs - num_held_out, dtype=np.int64)).tolist()
    held_out = parts.held_out().tolist()
    assert training == sorted(training)
    assert held_out == sorted(held_out)
    assert len(held_out) == num_held_out
    assert sorted(training + held_out) == list(range(num_packs))


def test_more_than_half_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="between 0 and half the packs \\(4\\)"):
        HeldOut(num_packs=9, num_held_out=5)
