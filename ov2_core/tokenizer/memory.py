"""Memory of a stream under a fixed number of tokens: recent groups whole, older ones thinned to what mattered, fetched by time.

In: emitted groups in order of time. Out: for a range of time, what is left of its groups. The rule:

- A block is worth v, the mean squared difference (RGB) to what a reader held at its place before it came (gray, at first).
- A whole canvas is one item. It is worth, per token, the mean of its blocks' v, and never less than the dearest block that
  stands on it: so the I-canvas is the last of its group to go.
- Worth halves with every `half_life_seconds` of age: priority = v * 2^(-age / half_life). While the memory holds more tokens than
  its budget, the item of the lowest priority is dropped. A group older than `horizon_seconds` is dropped whole.

All items age alike, so their order never changes: log2 v + start / half_life is a fixed key, and a heap finds the lowest. Ties: the
older group, blocks before canvases, the earlier, the lower place. v is that of the moment a block came; it is not computed again
when what it replaced is dropped.

Shapes: N whole canvases, M blocks, b side of a block in pixels, H x W pixels of a canvas.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.tokenizer.canvas import frame_positions, pack_blocks

GRAY = 128
LEAST_VALUE = 2.0**-20
"""Stands for a block that changed nothing: keys are logarithms."""
_Item = tuple[float, int, int, int, int]
"""(key, group, 0 block or 1 canvas, tick, place): the order in which things are dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """How much is remembered, and for how long."""

    token_budget: int
    """Merged tokens held at most."""
    horizon_seconds: float
    """Nothing older is kept."""
    half_life_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.token_budget < 1:
            raise ValueError(f"token_budget must be >= 1, got {self.token_budget}")
        for name in ("horizon_seconds", "half_life_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RememberedGroup:
    """What is left of a group."""

    index: int
    start_seconds: float
    end_seconds: float
    fps: float
    """A tick's time is start_seconds + tick / fps."""
    canvas_tick_N: npt.NDArray[np.int64]
    canvases_NHW3: npt.NDArray[np.uint8]
    """Whole frames, the I-canvas first."""
    tick_M: npt.NDArray[np.int64]
    place_M: npt.NDArray[np.int64]
    """Row-major index of the block in its frame; blocks are in order of (tick, place)."""
    pixels_Mbb3: npt.NDArray[np.uint8]
    priority_M: npt.NDArray[np.float64]
    """Keys: only their order means something."""
    num_blocks: int
    """Of a canvas."""
    given_tokens: int
    """That the group had when it came."""

    @property
    def num_tokens(self) -> int:
        """Left now."""
        return len(self.canvas_tick_N) * self.num_blocks + len(self.tick_M)


@dataclass(slots=True)
class _Group:
    """A group in memory; blocks and canvases whose flag is off are dropped."""

    start_seconds: float
    end_seconds: float
    fps: float
    num_blocks: int
    given_tokens: int
    canvases: dict[int, npt.NDArray[np.uint8]]
    tick_M: npt.NDArray[np.int64]
    place_M: npt.NDArray[np.int64]
    pixels_Mbb3: npt.NDArray[np.uint8]
    key_M: npt.NDArray[np.float64]
    alive_M: npt.NDArray[np.bool_]

    @property
    def num_tokens(self) -> int:
        return len(self.canvases) * self.num_blocks + int(self.alive_M.sum())


class StreamMemory:
    """The last `horizon_seconds` of a stream in at most `token_budget` tokens."""

    def __init__(self, config: MemoryConfig) -> None:
        self._config = config
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._heap: list[_Item] = []
        self._num_tokens = 0
        self._num_items = 0
        self._next = 0
        self._held: npt.NDArray[np.uint8] | None = None
        """[blocks, b, b, 3]: what a reader of the whole stream holds now."""

    @property
    def num_tokens(self) -> int:
        """Held now."""
        return self._num_tokens

    @property
    def num_groups(self) -> int:
        """Of which something is left."""
        return len(self._groups)

    def add(
        self,
        images_NHW3: npt.NDArray[np.uint8],
        positions_NP3: npt.NDArray[np.int32],
        *,
        start_seconds: float,
        end_seconds: float,
        fps: float,
        patch_px: int,
        merge: int,
    ) -> int:
        """Take the next group, and forget what there is no room for.

        Args:
            images_NHW3, positions_NP3: as emitted; t counts from the group's first frame.

        Returns:
            The group's index.

        Raises:
            ValueError: earlier than the group before it, or the budget does not hold one canvas.
        """
        block_px = patch_px * merge
        rows, columns = images_NHW3.shape[1] // block_px, images_NHW3.shape[2] // block_px
        per_canvas = rows * columns
        if per_canvas > self._config.token_budget:
            raise ValueError(
                f"token_budget must hold one canvas of {per_canvas} tokens, got {self._config.token_budget}"
            )
        if self._groups and start_seconds < next(reversed(self._groups.values())).start_seconds:
            raise ValueError(f"groups must come in order of time, got one that starts at {start_seconds} s")
        pixels = images_NHW3.reshape(-1, rows, block_px, columns, block_px, 3).transpose(0, 1, 3, 2, 4, 5)
        pixels = pixels.reshape(-1, per_canvas, block_px, block_px, 3)
        corner = positions_NP3.reshape(-1, rows, merge, columns, merge, 3)[:, :, 0, :, 0].astype(np.int64)
        tick = corner[..., 0].reshape(-1, per_canvas)
        place = (corner[..., 1] // merge * columns + corner[..., 2] // merge).reshape(-1, per_canvas)
        whole = (tick == tick[:, :1]).all(axis=1) & (place == np.arange(per_canvas)).all(axis=1)
        whole[0] = True
        value = self._values(pixels, place)
        index, self._next = self._next, self._next + 1
        shift = start_seconds / self._config.half_life_seconds
        part = ~whole
        group = _Group(
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            fps=fps,
            num_blocks=per_canvas,
            given_tokens=value.size,
            canvases={int(tick[n, 0]): images_NHW3[n].copy() for n in np.flatnonzero(whole)},
            tick_M=tick[part].reshape(-1),
            place_M=place[part].reshape(-1),
            pixels_Mbb3=pixels[part].reshape(-1, block_px, block_px, 3).copy(),
            key_M=_key(value[part].reshape(-1), shift),
            alive_M=np.ones(int(part.sum()) * per_canvas, bool),
        )
        self._groups[index] = group
        dearest = float(value[part].max(initial=0.0))
        items = [
            (float(k), index, 0, int(t), int(p))
            for k, t, p in zip(group.key_M, group.tick_M, group.place_M, strict=True)
        ]
        for n in np.flatnonzero(whole):
            worth = float(value[n].mean()) if n else max(float(value[n].mean()), dearest)
            items.append((float(_key(np.array(worth), shift)), index, 1, int(tick[n, 0]), 0))
        for item in items:
            heapq.heappush(self._heap, item)
        self._num_tokens += group.num_tokens
        self._num_items += len(items)
        self._forget(end_seconds)
        return index

    def fetch(self, start_seconds: float, end_seconds: float) -> list[RememberedGroup]:
        """What is left of all groups that overlap [start_seconds, end_seconds), in order of time.

        Raises:
            ValueError: an empty range.
        """
        if not start_seconds < end_seconds:
            raise ValueError(f"expected start < end, got [{start_seconds}, {end_seconds}) s")
        found = []
        for index, group in self._groups.items():
            if group.start_seconds < end_seconds and group.end_seconds > start_seconds:
                alive = group.alive_M
                ticks = sorted(group.canvases)
                block_px = group.pixels_Mbb3.shape[1]
                canvases = [group.canvases[t] for t in ticks]
                found.append(
                    RememberedGroup(
                        index=index,
                        start_seconds=group.start_seconds,
                        end_seconds=group.end_seconds,
                        fps=group.fps,
                        canvas_tick_N=np.array(ticks, np.int64),
                        canvases_NHW3=np.stack(canvases)
                        if canvases
                        else np.zeros((0, block_px, block_px, 3), np.uint8),
                        tick_M=group.tick_M[alive],
                        place_M=group.place_M[alive],
                        pixels_Mbb3=group.pixels_Mbb3[alive],
                        priority_M=group.key_M[alive],
                        num_blocks=group.num_blocks,
                        given_tokens=group.given_tokens,
                    )
                )
        return found

    def _values(self, pixels_NBbb3: npt.NDArray[np.uint8], place_NB: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[N, B] worth of the blocks; what the reader holds goes on with them."""
        shape = pixels_NBbb3.shape[1:]
        if self._held is None or self._held.shape != shape:
            self._held = np.full(shape, GRAY, np.uint8)
        value = np.empty(place_NB.shape)
        for n in range(len(place_NB)):
            for b, place in enumerate(place_NB[n].tolist()):
                difference = np.subtract(pixels_NBbb3[n, b], self._held[place], dtype=np.int32)
                value[n, b] = np.square(difference).mean()
                self._held[place] = pixels_NBbb3[n, b]
        return value

    def _forget(self, now_seconds: float) -> None:
        for index in list(self._groups):
            if self._groups[index].end_seconds > now_seconds - self._config.horizon_seconds:
                break
            group = self._groups.pop(index)
            self._num_tokens -= group.num_tokens
            self._num_items -= len(group.canvases) + int(group.alive_M.sum())
        while self._num_tokens > self._config.token_budget:
            self._drop(heapq.heappop(self._heap))
        if len(self._heap) > 2 * self._num_items + 1000:  # what belongs to groups beyond the horizon
            self._heap = [item for item in self._heap if item[1] in self._groups]
            heapq.heapify(self._heap)

    def _drop(self, item: _Item) -> None:
        _, index, is_canvas, tick, place = item
        group = self._groups.get(index)
        if group is None:
            return
        self._num_items -= 1
        if is_canvas:
            del group.canvases[tick]
            self._num_tokens -= group.num_blocks
        else:
            low, high = np.searchsorted(group.tick_M, [tick, tick + 1])
            group.alive_M[low + int(np.searchsorted(group.place_M[low:high], place))] = False
            self._num_tokens -= 1
            if int(group.alive_M.sum()) * 2 < len(group.alive_M):
                _compact(group)
        if not group.canvases and not group.alive_M.any():
            del self._groups[index]


def pack_remembered(
    groups: Sequence[RememberedGroup], *, patch_px: int, merge: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], int]:
    """Fetched groups of one size and rate as canvases without padding: the whole ones in order of time, then all blocks packed.

    Returns:
        images [N, H, W, 3], positions [N, P, 3] with t in ticks from the start of the first group, and the number of blocks (those
        of the lowest priority) that were left out because they fill no whole canvas.

    Raises:
        ValueError: no whole canvas is among them, or several sizes or rates are.
    """
    shapes = {(g.canvases_NHW3.shape[1:], g.fps) for g in groups if len(g.canvases_NHW3)}
    if len(shapes) != 1:
        raise ValueError(
            f"expected groups of one size and rate with a whole canvas among them, got {len(shapes)} kinds"
        )
    ((height, width, _), fps) = next(iter(shapes))
    block_px = patch_px * merge
    rows, columns = height // block_px, width // block_px
    if any(g.num_blocks != rows * columns or g.fps != fps for g in groups):
        raise ValueError("groups of several sizes or rates cannot be packed together")
    start = [round((g.start_seconds - groups[0].start_seconds) * fps) for g in groups]
    images = [image for g in groups for image in g.canvases_NHW3]
    positions = [
        frame_positions(s + t, rows * merge, columns * merge)
        for s, g in zip(start, groups, strict=True)
        for t in g.canvas_tick_N.tolist()
    ]
    tick = np.concatenate([s + g.tick_M for s, g in zip(start, groups, strict=True)])
    place = np.concatenate([g.place_M for g in groups])
    pixels = np.concatenate([g.pixels_Mbb3 for g in groups])
    priority = np.concatenate([g.priority_M for g in groups])
    left_out = len(tick) % (rows * columns)
    keep = np.sort(np.argsort(priority, kind="stable")[left_out:])
    if len(keep):
        picks = [(int(t), place[keep][tick[keep] == t], pixels[keep][tick[keep] == t]) for t in np.unique(tick[keep])]
        packed, where = pack_blocks(picks, rows=rows, columns=columns, patch_px=patch_px, merge=merge)
        images, positions = [*images, *packed], [*positions, *where]
    return np.stack(images), np.stack(positions), left_out


def _key(value: npt.NDArray[np.float64], shift: float) -> npt.NDArray[np.float64]:
    key: npt.NDArray[np.float64] = np.log2(np.maximum(value, LEAST_VALUE)) + shift
    return key


def _compact(group: _Group) -> None:
    """Let the pixels of dropped blocks go."""
    alive = group.alive_M
    group.tick_M, group.place_M, group.key_M = group.tick_M[alive], group.place_M[alive], group.key_M[alive]
    group.pixels_Mbb3, group.alive_M = group.pixels_Mbb3[alive], alive[alive]
