"""One source while a stage is built: what the draw has taken of it, and what was measured.

Two passes over each source: one learns its ids (8 bytes a record are kept), the other gives the chosen records as chunks. The draw
takes a few more than asked, so that what is dropped can be replaced and counts are exact; if that was too few, it goes on.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ov2_core.data.chunks import Chunk, ChunkDone, make_chunks
from ov2_core.data.importers import ImportedItem, open_importer
from ov2_core.data.mixture import sample_hash
from ov2_core.data.stage_config import SourceSpec

if TYPE_CHECKING:
    from ov2_core.data.assemble import SourcePart

SPARE_SHARE, SPARE_RECORDS = 0.02, 8
"""Drawn beyond what is asked, for those that will be dropped."""


class SourceState:
    """One source while a stage is built."""

    def __init__(self, spec: SourceSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed
        self.hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        """Of all its records, ascending."""
        self.quarantined: list[ImportedItem] = []
        self.done: dict[str, ChunkDone] = {}
        self.num_drawn = 0
        self.num_rounds = 0

    def items(self) -> Iterator[ImportedItem]:
        """The source, read anew."""
        options = {"source": self.spec.name, **self.spec.options}
        return open_importer(self.spec.importer, self.spec.path, **options)

    def learn(self) -> None:
        """First pass: hashes of the ids, and the rows that the importer refuses."""
        hashes: list[int] = []
        for item in self.items():
            if item.record is not None:
                hashes.append(sample_hash(self.seed, self.spec.name, item.record.id))
            else:
                self.quarantined.append(item)
        self.hashes = np.sort(np.array(hashes, np.uint64))
        if len(np.unique(self.hashes)) < len(self.hashes):
            raise ValueError(
                f"source {self.spec.name!r}: two ids have one hash under seed {self.seed}; take another seed"
            )

    @property
    def num_usable(self) -> int:
        """Of the records measured so far."""
        return sum(int((done.lengths > 0).sum()) for done in self.done.values())

    @property
    def exhausted(self) -> bool:
        return self.num_drawn == len(self.hashes)

    def next_round(self, num_usable: int) -> tuple[int, Iterator[Chunk]]:
        """Chunks of the records that the draw takes next, for about `num_usable` in all; and how many records."""
        missing = num_usable - self.num_usable
        rate = max(self.num_usable / self.num_drawn, 0.05) if self.num_drawn else 1.0
        more = int(missing / rate * (1 + SPARE_SHARE)) + SPARE_RECORDS
        first, last = self.num_drawn, min(self.num_drawn + more, len(self.hashes))
        self.num_drawn = last
        low, high = int(self.hashes[first]), int(self.hashes[last - 1])
        number = self.num_rounds
        self.num_rounds += 1
        return last - first, self._chunks(low, high, number)

    def _chunks(self, low: int, high: int, number: int) -> Iterator[Chunk]:
        items = (item for item in self.items() if item.record is not None)
        wanted = _Wanted(self.seed, self.spec.name, low, high)
        for chunk in make_chunks(items, wanted, source=self.spec.name, first=0):
            yield Chunk(source=chunk.source, name=f"r{number}-{chunk.name}", candidates=chunk.candidates)

    def part(self, count: int) -> "SourcePart":
        """What assemble takes: the first `count` usable records of the draw."""
        from ov2_core.data.assemble import SourcePart

        return SourcePart(
            spec=self.spec,
            num_available=len(self.hashes),
            quarantined=[item.quarantined for item in self.quarantined if item.quarantined is not None],
            chunks=[self.done[rel] for rel in sorted(self.done)],
            count=count,
        )


class _Wanted(dict[str, int]):
    """Hash by id of the ids in a stretch of the draw, computed when asked."""

    def __init__(self, seed: int, source: str, low: int, high: int) -> None:
        super().__init__()
        self._seed, self._source, self._low, self._high = seed, source, low, high

    def __contains__(self, id: object) -> bool:
        return self._low <= self[str(id)] <= self._high

    def __getitem__(self, id: str) -> int:
        return sample_hash(self._seed, self._source, id)
