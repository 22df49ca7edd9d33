"""Samples to batches by tokens: parts of one sample or several samples together, attention groups never cut.

Enters: keys with the lengths of their groups, in order. Leaves: batches of spans, each naming the sample that its rows belong
to. No pixels here: who packs and what is packed are kept apart, so that packing can be tested alone.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Consecutive groups of one sample in a batch."""

    key: str
    first_patch: int
    """In the sample."""
    group_lengths: tuple[int, ...]
    """Patches of each group."""
    last: bool
    """Whether the sample ends here."""

    @property
    def num_patches(self) -> int:
        return sum(self.group_lengths)


def pack_spans(samples: Iterable[tuple[str, Sequence[int]]], *, max_patches: int) -> Generator[list[Span], None, None]:
    """Batches of at most max_patches patches; a group that is larger is a batch alone. Greedy, in the order given.

    Args:
        samples: (key, patches of each of its groups).

    Raises:
        ValueError: max_patches < 1.
    """
    if max_patches < 1:
        raise ValueError(f"max_patches must be >= 1, got {max_patches}")
    batch: list[Span] = []
    room = max_patches
    for key, lengths in samples:
        first, taken = 0, list[int]()
        for index, length in enumerate(lengths):
            if length > room and (batch or taken):
                if taken:
                    batch.append(Span(key=key, first_patch=first, group_lengths=tuple(taken), last=False))
                    first, taken = first + sum(taken), []
                yield batch
                batch, room = [], max_patches
            taken.append(length)
            room -= length
            if index + 1 == len(lengths):
                batch.append(Span(key=key, first_patch=first, group_lengths=tuple(taken), last=True))
    if batch:
        yield batch
