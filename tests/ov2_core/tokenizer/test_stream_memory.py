"""The memory of a stream: held against a naive one that ages, sorts and drops item by item; budget, horizon, fetching."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.tokenizer.canvas import frame_positions
from ov2_core.tokenizer.memory import MemoryConfig, StreamMemory, pack_remembered

ROWS, COLUMNS, BLOCK = 2, 3, 4
PER = ROWS * COLUMNS


def group_of(rng, *, frames=6, whole=False):
    """A made-up group of 1 + 2 canvases (or 2 whole frames): images, positions, and what they hold by (tick, place)."""
    frame = rng.integers(0, 256, (frames, ROWS * BLOCK, COLUMNS * BLOCK, 3), np.uint8)
    if rng.random() < 0.5:
        frame[:] = frame[0] // 2 + rng.integers(0, 60, frame.shape, np.uint8)  # quiet
    tiles = frame.reshape(frames, ROWS, BLOCK, COLUMNS, BLOCK, 3).transpose(0, 1, 3, 2, 4, 5)
    tiles = tiles.reshape(frames, PER, BLOCK, BLOCK, 3)
    if whole:
        return frame[:2], np.stack([frame_positions(t, ROWS * 2, COLUMNS * 2) for t in (0, 1)]), tiles
    chosen = np.sort(rng.choice((frames - 1) * PER, 2 * PER, replace=False)) + PER
    images, positions = [frame[0]], [frame_positions(0, ROWS * 2, COLUMNS * 2)]
    for part in chosen.reshape(2, PER):
        tick, place = part // PER, part % PER
        canvas = tiles[tick, place].reshape(ROWS, COLUMNS, BLOCK, BLOCK, 3).transpose(0, 2, 1, 3, 4)
        images.append(canvas.reshape(ROWS * BLOCK, COLUMNS * BLOCK, 3))
        position = np.empty((ROWS, 2, COLUMNS, 2, 3), np.int32)
        position[..., 0] = tick.reshape(ROWS, 1, COLUMNS, 1)
        position[..., 1] = (place // COLUMNS).reshape(ROWS, 1, COLUMNS, 1) * 2 + np.arange(2)[None, :, None, None]
        position[..., 2] = (place % COLUMNS).reshape(ROWS, 1, COLUMNS, 1) * 2 + np.arange(2)[None, None, None, :]
        positions.append(position.reshape(-1, 3))
    return np.stack(images), np.stack(positions), tiles


class NaiveMemory:
    """Ages every item at every step, drops the least one by one."""

    def __init__(self, config):
        self.config, self.items, self.held, self.count = config, [], {}, 0

    def add(self, images, positions, start, end):
        blocks = []
        for image, position in zip(images, positions, strict=True):
            grid = position.reshape(ROWS, 2, COLUMNS, 2, 3)
            cells = []
            for r in range(ROWS):
                for c in range(COLUMNS):
                    t, h, w = grid[r, 0, c, 0].tolist()
                    pixels = image[r * BLOCK : (r + 1) * BLOCK, c * BLOCK : (c + 1) * BLOCK].astype(float)
                    place = h // 2 * COLUMNS + w // 2
                    value = ((pixels - self.held.get(place, 128.0)) ** 2).mean()
                    self.held[place] = pixels
                    cells.append((t, place, value))
            blocks.append(cells)
        entire = [
            len({t for t, _, _ in cells}) == 1 and [p for _, p, _ in cells] == list(range(PER)) for cells in blocks
        ]
        loose = [cell for cells, is_whole in zip(blocks, entire, strict=True) if not is_whole for cell in cells]
        for n, cells in enumerate(blocks):
            mean = sum(v for _, _, v in cells) / PER
            if entire[n]:
                worth = max([mean] + [v for _, _, v in loose]) if n == 0 else mean
                self.items.append([worth, start, self.count, 1, cells[0][0], 0, end])
        self.items += [[v, start, self.count, 0, t, p, end] for t, p, v in loose]
        self.count += 1
        self.items = [i for i in self.items if i[6] > end - self.config.horizon_seconds]
        while sum(PER if i[3] else 1 for i in self.items) > self.config.token_budget:
            aged = [
                (max(i[0], 2.0**-20) * 2 ** (-(end - i[1]) / self.config.half_life_seconds), *i[2:6], k)
                for k, i in enumerate(self.items)
            ]
            del self.items[min(aged)[-1]]

    def state(self):
        return sorted(tuple(i[2:6]) for i in self.items)


def state_of(memory):
    found = []
    for group in memory.fetch(-1, 1e9):
        found += [(group.index, 1, t, 0) for t in group.canvas_tick_N.tolist()]
        found += [(group.index, 0, t, p) for t, p in zip(group.tick_M.tolist(), group.place_M.tolist(), strict=True)]
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(PER, 90), st.floats(3, 40), st.floats(1, 30))
def test_memory_drops_what_the_naive_one_drops(seed, budget, horizon, half_life):
    rng = np.random.default_rng(seed)
    config = MemoryConfig(token_budget=budget, horizon_seconds=horizon, half_life_seconds=half_life)
    memory, naive, at = StreamMemory(config), NaiveMemory(config), 0.0
    for _ in range(10):
        images, positions, _ = group_of(rng, whole=rng.random() < 0.2)
        end = at + rng.uniform(0.5, 3)
        memory.add(images, positions, start_seconds=at, end_seconds=end, fps=10.0, patch_px=2, merge=2)
        naive.add(images, positions, at, end)
        assert state_of(memory) == naive.state()
        assert memory.num_tokens == sum(g.num_tokens for g in memory.fetch(-1, 1e9)) <= budget
        at = end


def filled(rng, *, budget, groups=30, half_life=5.0, horizon=1e6):
    memory = StreamMemory(MemoryConfig(token_budget=budget, horizon_seconds=horizon, half_life_seconds=half_life))
    tiles = {}
    for i in range(groups):
        images, positions, pixels = group_of(rng)
        index = memory.add(
            images, positions, start_seconds=i * 2.0, end_seconds=i * 2.0 + 2, fps=10.0, patch_px=2, merge=2
        )
        tiles[index] = pixels
    return memory, tiles


def test_memory_keeps_the_i_canvas_longest_and_the_source_pixels():
    memory, tiles = filled(np.random.default_rng(1), budget=150)
    groups = memory.fetch(0, 60)
    assert any(0 < len(g.tick_M) < 2 * PER for g in groups), "some group is thinned"
    assert any(len(g.canvas_tick_N) and not len(g.tick_M) for g in groups), "of some only the I-canvas is left"
    for group in groups:
        assert len(group.canvas_tick_N) == 1, "a group whose I-canvas is gone has no block left"
        for t, p, pixels in zip(group.tick_M, group.place_M, group.pixels_Mbb3, strict=True):
            assert (pixels == tiles[group.index][t, p]).all()
    newest = memory.fetch(58, 60)[0]
    assert newest.num_tokens > groups[0].num_tokens


def test_memory_fetches_by_half_open_overlap():
    memory, _ = filled(np.random.default_rng(2), budget=10_000, groups=5)
    assert [g.index for g in memory.fetch(2, 4)] == [1]
    assert [g.index for g in memory.fetch(1.9, 4.1)] == [0, 1, 2]
    assert memory.fetch(10, 20) == []
    with pytest.raises(ValueError, match="start < end"):
        memory.fetch(4, 4)


def test_memory_forgets_beyond_its_horizon_and_its_own_books_stay_small():
    memory, _ = filled(np.random.default_rng(3), budget=10_000, groups=300, horizon=10)
    assert [g.index for g in memory.fetch(0, 1e6)] == [295, 296, 297, 298, 299]
    assert memory.num_tokens == 5 * 3 * PER
    assert len(memory._heap) <= 2 * memory.num_tokens + 1100


def test_memory_lets_pixels_of_dropped_blocks_go():
    memory, _ = filled(np.random.default_rng(4), budget=60, groups=100)
    held = sum(len(g.pixels_Mbb3) for g in memory._groups.values())
    assert held <= 2 * 60
    assert memory.num_tokens <= 60


def test_remembered_groups_pack_into_full_canvases_and_leave_out_the_least():
    memory, tiles = filled(np.random.default_rng(5), budget=150)
    groups = memory.fetch(30, 60)
    images, positions, left_out = pack_remembered(groups, patch_px=2, merge=2)
    wholes = sum(len(g.canvas_tick_N) for g in groups)
    blocks = sum(len(g.tick_M) for g in groups)
    assert left_out == blocks % PER
    assert len(images) == wholes + blocks // PER
    first = groups[0]
    for image, position in zip(images, positions, strict=True):
        for r in range(ROWS):
            for c in range(COLUMNS):
                t, h, w = position.reshape(ROWS, 2, COLUMNS, 2, 3)[r, 0, c, 0].tolist()
                seconds = first.start_seconds + t / 10
                index = int(seconds // 2)
                own = tiles[index][round((seconds - index * 2) * 10), h // 2 * COLUMNS + w // 2]
                assert (image[r * BLOCK : (r + 1) * BLOCK, c * BLOCK : (c + 1) * BLOCK] == own).all()
    with pytest.raises(ValueError, match="whole canvas"):
        pack_remembered([], patch_px=2, merge=2)


def test_memory_refuses_a_budget_below_a_canvas_and_time_that_runs_back():
    images, positions, _ = group_of(np.random.default_rng(0))
    small = StreamMemory(MemoryConfig(token_budget=PER - 1, horizon_seconds=10))
    with pytest.raises(ValueError, match="token_budget must hold one canvas of 6"):
        small.add(images, positions, start_seconds=0, end_seconds=1, fps=10.0, patch_px=2, merge=2)
    memory = StreamMemory(MemoryConfig(token_budget=100, horizon_seconds=10))
    memory.add(images, positions, start_seconds=5, end_seconds=6, fps=10.0, patch_px=2, merge=2)
    with pytest.raises(ValueError, match="order of time"):
        memory.add(images, positions, start_seconds=4, end_seconds=5, fps=10.0, patch_px=2, merge=2)
    for name in ("horizon_seconds", "half_life_seconds"):
        with pytest.raises(ValueError, match=name):
            MemoryConfig(**{"token_budget": 10, "horizon_seconds": 1.0, name: float("nan")})
