"""The global order of packs and the cursor over it: which packs which rank reads at which step. Pure; no I/O.

Enters: number of packs, seed. Leaves: pack numbers for positions of one endless sequence, epoch after epoch; and for a cursor,
the positions of every rank's next batch. The order knows nothing of ranks, workers or batches, and the cursor is one number (packs
consumed by all ranks together), so a run may go on with other numbers of each.

An epoch is shuffled in two steps, so that reading stays local: the blocks of `block_packs` consecutive packs (neighbours in their
shards, one row group of the index) are shuffled, and then the packs of every `mixed_blocks` consecutive ones of that order among
themselves. A reader that holds so many blocks reads each once an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.data.shuffle import permutation, shuffled

Numbers = npt.NDArray[np.int64]
_NONE: Numbers = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffle:
    """How an epoch is shuffled."""

    seed: int
    block_packs: int
    """Packs of a block."""
    mixed_blocks: int = 16
    """Blocks whose packs are mixed; 0: no shuffle at all, packs in the order of the stage."""

    def __post_init__(self) -> None:
        if self.block_packs < 1 or self.mixed_blocks < 0:
            raise ValueError(f"block_packs must be >= 1 and mixed_blocks >= 0, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Packs that training leaves to validation: `num_held_out` of a stage, evenly spaced over it."""

    num_packs: int
    """Of the stage."""
    num_held_out: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.num_held_out <= self.num_packs // 2:
            raise ValueError(
                f"held_out must be between 0 and half the packs ({self.num_packs // 2}), got {self.num_held_out}"
            )

    def training(self, indices: Numbers) -> Numbers:
        """Pack numbers of the indices 0 .. num_packs - num_held_out - 1."""
        if not self.num_held_out:
            return indices
        return indices + np.minimum(indices // (self._each - 1), self.num_held_out)

    def held_out(self) -> Numbers:
        """Numbers of the packs held out, ascending."""
        return (np.arange(self.num_held_out, dtype=np.int64) + 1) * self._each - 1 if self.num_held_out else _NONE

    @property
    def _each(self) -> int:
        return self.num_packs // self.num_held_out


class PackOrder:
    """Pack numbers by position: position p is in epoch p // num_packs. Memory: one number a block, and one mixed stretch."""

    def __init__(self, num_packs: int, shuffle: Shuffle) -> None:
        """Raises ValueError for no packs."""
        if num_packs < 1:
            raise ValueError("the stage has no packs; nothing can be read")
        self.num_packs = num_packs
        self.shuffle = shuffle
        self._epoch = -1
        self._blocks = self._starts = np.zeros(0, np.int64)
        self._stretch: tuple[int, int] = (-1, -1)
        self._mixed = np.zeros(0, np.int64)

    def packs(self, start: int, stop: int) -> Numbers:
        """Packs at positions [start, stop)."""
        parts: list[Numbers] = []
        while start < stop:
            epoch, place = divmod(start, self.num_packs)
            take = min(stop - start, self.num_packs - place)
            if self.shuffle.mixed_blocks == 0:
                parts.append(np.arange(place, place + take, dtype=np.int64))
            else:
                mixed, offset = self._stretch_at(epoch, place)
                take = min(take, len(mixed) - offset)
                parts.append(mixed[offset : offset + take])
            start += take
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _stretch_at(self, epoch: int, place: int) -> tuple[Numbers, int]:
        """The mixed stretch that holds a place of an epoch, and the place in it."""
        size, mixed = self.shuffle.block_packs, self.shuffle.mixed_blocks
        if epoch != self._epoch:
            num_blocks = -(-self.num_packs // size)
            self._blocks = permutation(num_blocks, seed=self.shuffle.seed, name=f"blocks of epoch {epoch}")
            sizes = np.minimum(size, self.num_packs - self._blocks * size)
            stretches = np.add.reduceat(sizes, np.arange(0, num_blocks, mixed))
            self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(stretches)])
            self._epoch, self._stretch = epoch, (-1, -1)
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        if self._stretch != (epoch, number):
            blocks = self._blocks[number * mixed : (number + 1) * mixed]
            packs = (blocks[:, None] * size + np.arange(size)).reshape(-1)
            packs = packs[packs < self.num_packs]
            self._mixed = shuffled(packs, seed=self.shuffle.seed, name=f"packs of epoch {epoch}")
            self._stretch = (epoch, number)
        return self._mixed, place - int(self._starts[number])


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of all ranks."""

    start: int
    stop: int
    """Positions of this rank's batch; equal where it has none."""
    cursor: int
    """Packs consumed by all ranks, once the step is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How ranks share the order."""

    num_packs: int
    batch_size: int
    """Packs of a rank and step."""
    rank: int
    world_size: int
    endless: bool = False
    """Epochs follow each other without a seam; else steps stop at the end of the epoch, the last one smaller."""
    drop_last: bool = False
    """Leave out what does not fill a step of all ranks at the end of an epoch."""

    def __post_init__(self) -> None:
        if self.num_packs < 1 or self.batch_size < 1:
            raise ValueError(f"num_packs and batch_size must be >= 1, got {self.num_packs} and {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in 0..{self.world_size - 1}, got {self.rank} of {self.world_size}")

    @property
    def global_batch(self) -> int:
        """Packs of a step."""
        return self.batch_size * self.world_size

    def step(self, cursor: int) -> Step | None:
        """What this rank reads next; None at the end of the epoch.

        The ranks' batches, one after the other, are the next global_batch packs of the order. At the end of an epoch what is left
        is shared as evenly as can be; each rank has the same number of steps, and where packs are fewer than ranks the last ranks'
        batches are empty.
        """
        if self.endless:
            start = cursor + self.rank * self.batch_size
            return Step(start=start, stop=start + self.batch_size, cursor=cursor + self.global_batch)
        left = self.num_packs - cursor % self.num_packs
        if left >= self.global_batch:
            start = cursor + self.rank * self.batch_size
            return Step(start=start, stop=start + self.batch_size, cursor=cursor + self.global_batch)
        if self.drop_last:
            return None
        each, more = divmod(left, self.world_size)
        start = cursor + self.rank * each + min(self.rank, more)
        return Step(start=start, stop=start + each + (self.rank < more), cursor=cursor + left)

    def epoch_end(self, cursor: int) -> int:
        """The cursor at which the epoch of this cursor ends."""
        return (cursor // self.num_packs + 1) * self.num_packs

    def steps(self, cursor: int) -> Iterator[Step]:
        """From a cursor to the end of its epoch, or for ever."""
        end = self.epoch_end(cursor)
        while self.endless or cursor < end:
            step = self.step(cursor)
            if step is None:
                return
            yield step
            cursor = step.cursor
