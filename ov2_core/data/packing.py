"""Sequence packing: token lengths to packs, best-fit decreasing over a bounded window.

Enters: the lengths of a stage's samples, in the order in which they lie in their shards. Leaves: packs of sample numbers, none
longer than the limit or of more than `max_samples`. Nothing is cut here and no sample is lost.

The window moves over the stage: its samples, sorted by length, longest first, go each into the open pack that it fills best.
Packs that are full enough leave; the samples of the others go back into the next window, where there is more to fill them
with. A sample waits for two windows at most: so a pack's samples lie within three windows of each other (reads stay
near-sequential), and memory is that of the window.

Deterministic: ties among samples by number, the lower first; among packs of equal room, the one that has had it longest. A pack's
samples are in ascending order, packs in the order in which they leave. Equal input gives equal packs on any machine.

Measured (2 cores): a million samples in about a second; see docs/benchmarks.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How samples are packed."""

    sequence_length: int
    """Tokens that a pack holds at most."""
    max_samples: int = 200
    """Of a pack; upstream's setting."""
    window_samples: int = 16384
    """Samples that are sorted together."""
    full_enough: float = 0.99
    """Share of sequence_length from which a pack leaves its window; the others are packed anew with what follows."""

    def __post_init__(self) -> None:
        if min(self.sequence_length, self.max_samples, self.window_samples) < 1:
            raise ValueError(f"sequence_length, max_samples and window_samples must be >= 1, got {self}")
        if not 0 <= self.full_enough <= 1:
            raise ValueError(f"full_enough must be in 0..1, got {self.full_enough}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packs:
    """Packs as two flat arrays: pack i holds samples[starts[i]:starts[i + 1]]."""

    samples: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.samples[self.starts[index] : self.starts[index + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[i] for i in range(len(self)))

    def lengths(self, lengths: Sequence[int] | Lengths) -> Lengths:
        """Tokens of each pack."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(np.asarray(lengths, np.int64)[self.samples], self.starts[:-1])

    def fill(self, lengths: Sequence[int] | Lengths, sequence_length: int) -> float:
        """Share of the packs' room that holds tokens, 0..1; 1 where there are no packs."""
        return float(self.lengths(lengths).sum() / (len(self) * sequence_length)) if len(self) else 1.0


def pack(lengths: Sequence[int] | Lengths, config: PackingConfig) -> Packs:
    """Packs of all samples.

    Args:
        lengths: tokens of each sample, in shard order.

    Raises:
        ValueError: a sample of no tokens, or longer than a pack; its number and length are named.
    """
    packs = list(iter_packs([np.asarray(lengths, np.int64)], config))
    starts = np.cumsum([0, *(len(p) for p in packs)], dtype=np.int64)
    return Packs(samples=np.concatenate(packs) if packs else np.zeros(0, np.int64), starts=starts)


def iter_packs(lengths: Iterable[Sequence[int] | Lengths], config: PackingConfig) -> Iterator[npt.NDArray[np.int64]]:
    """The same over a stream of chunks of lengths; holds one window. Samples are numbered through the stream."""
    waiting_ids, waiting = np.zeros(0, np.int64), np.zeros(0, np.int64)
    next_id = 0
    for window in _windows(lengths, config.window_samples):
        _check(window, next_id, config.sequence_length)
        waiting_ids = np.concatenate([waiting_ids, np.arange(next_id, next_id + len(window))])
        waiting = np.concatenate([waiting, window])
        next_id += len(window)
        packs = best_fit(waiting, config)
        oldest = int(np.searchsorted(waiting_ids, next_id - 2 * config.window_samples))
        kept, left = _split_full(packs, waiting, oldest, config)
        for samples in kept:
            yield waiting_ids[samples]
        waiting_ids, waiting = waiting_ids[left], waiting[left]
    for samples in best_fit(waiting, config):
        yield waiting_ids[samples]


def best_fit(lengths: Lengths, config: PackingConfig) -> Packs:
    """Best-fit decreasing of one window. See `iter_packs` for order and ties."""
    if not len(lengths):
        return Packs(samples=np.zeros(0, np.int64), starts=np.zeros(1, np.int64))
    longest_first = np.argsort(-lengths, kind="stable")
    pack_of = _best_fit(lengths[longest_first], config.sequence_length, config.max_samples)
    pack_of_sample = np.empty_like(pack_of)
    pack_of_sample[longest_first] = pack_of
    # Packs in the order of their first sample, so that they leave in shard order.
    num_packs = int(pack_of.max()) + 1
    first = np.full(num_packs, len(lengths), np.int64)
    np.minimum.at(first, pack_of_sample, np.arange(len(lengths)))
    rank = np.empty(num_packs, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(num_packs)
    ranked = rank[pack_of_sample]
    samples = np.argsort(ranked, kind="stable")
    starts = np.searchsorted(ranked[samples], np.arange(num_packs + 1))
    return Packs(samples=samples, starts=starts.astype(np.int64))


def _split_full(
    packs: Packs, lengths: Lengths, num_old: int, config: PackingConfig
) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """The packs that leave, and the samples (ascending) that are packed anew: at most half a window of them, none of the
    first `num_old`, which have waited long enough."""
    tokens = packs.lengths(lengths)
    counts = np.diff(packs.starts)
    full = (tokens >= config.full_enough * config.sequence_length) | (counts >= config.max_samples)
    full |= packs.samples[packs.starts[:-1]] < num_old
    # The emptiest come back first, for they waste most; what exceeds half a window leaves as it is.
    back = np.flatnonzero(~full)
    back = back[np.argsort(tokens[back], kind="stable")]
    fits = np.cumsum(counts[back]) <= config.window_samples // 2
    leaves = np.ones(len(packs), bool)
    leaves[back[fits]] = False
    left = [packs[int(i)] for i in np.flatnonzero(~leaves)]
    return [packs[int(i)] for i in np.flatnonzero(leaves)], np.sort(np.concatenate(left)) if left else np.zeros(
        0, np.int64
    )


def _windows(chunks: Iterable[Sequence[int] | Lengths], size: int) -> Iterator[Lengths]:
    held: list[Lengths] = []
    num_held = 0
    for chunk in chunks:
        rest = np.asarray(chunk, np.int64)
        while num_held + len(rest) >= size:
            take = size - num_held
            yield np.concatenate([*held, rest[:take]])
            held, num_held, rest = [], 0, rest[take:]
        if len(rest):
            held.append(rest)
            num_held += len(rest)
    if num_held:
        yield np.concatenate(held)


def _check(lengths: Lengths, first_id: int, limit: int) -> None:
    bad = np.flatnonzero((lengths < 1) | (lengths > limit))
    if len(bad):
        number = int(bad[0])
        raise ValueError(
            f"sample {first_id + number} has {int(lengths[number])} tokens; a pack takes 1..{limit}: "
            "shorten or drop it before packing"
        )


@kernel("int64[::1], int64, int64")
def _best_fit(
    lengths: npt.NDArray[np.int64], limit: int, max_samples: int
) -> npt.NDArray[np.int64]:  # pragma: no cover - compiled
    """The pack of each sample, in the order given.

    Open packs of one room form a queue; a bit set over rooms, in three levels of 64, finds the least room that suffices.
    """
    num = len(lengths)
    levels = 1
    span = 64
    while span < limit + 1:
        span *= 64
        levels += 1
    words = np.zeros((levels, (limit + 64) // 64 + 1), np.uint64)
    head = np.full(limit + 1, -1, np.int64)
    tail = np.full(limit + 1, -1, np.int64)
    next_pack = np.full(num, -1, np.int64)
    counts = np.zeros(num, np.int64)
    result = np.empty(num, np.int64)
    num_packs = 0
    one = np.uint64(1)
    for i in range(num):
        length = lengths[i]
        # The least room >= length with an open pack: up the levels until something is found, then down again.
        room = -1
        at = length
        level = 0
        while level < levels:
            word = at >> 6
            if word < words.shape[1]:
                bits = words[level, word] >> np.uint64(at & 63)
                if bits != 0:
                    while (bits & one) == 0:
                        bits >>= one
                        at += 1
                    for below in range(level - 1, -1, -1):
                        inner = words[below, at]
                        at <<= 6
                        while (inner & one) == 0:
                            inner >>= one
                            at += 1
                    room = at
                    break
            at = word + 1
            level += 1
        if room < 0:
            chosen = num_packs
            num_packs += 1
            room = limit
        else:
            chosen = head[room]
            head[room] = next_pack[chosen]
            if head[room] < 0:
                tail[room] = -1
                at = room
                for level in range(levels):
                    words[level, at >> 6] &= ~(one << np.uint64(at & 63))
                    if words[level, at >> 6] != 0:
                        break
                    at >>= 6
        result[i] = chosen
        counts[chosen] += 1
        room -= length
        if room > 0 and counts[chosen] < max_samples:
            next_pack[chosen] = -1
            if tail[room] >= 0:
                next_pack[tail[room]] = chosen
            else:
                head[room] = chosen
                at = room
                for level in range(levels):
                    words[level, at >> 6] |= one << np.uint64(at & 63)
                    at >>= 6
            tail[room] = chosen
    return result
