"""Chunks of a stage's sources to tasks for workers that measure them.

Enters: what the draw takes next of each source (data/source_state.py). Leaves: the states, filled with what is committed.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ov2_core.data.chunks import Chunk, ChunkDone, committed_chunks, condemn_chunk, load_chunk
from ov2_core.data.source_state import SourceState
from ov2_core.storage.files import Store
from pipelines.progress import Counters
from pipelines.tasks import Task, Verdict

log = logging.getLogger(__name__)
SECONDS_PER_RECORD = 0.05


@dataclass(slots=True)
class ChunkFeed:
    """Chunks to tasks, those that are committed already left out. See tasks.Feed.

    A chunk that kills its workers is halved until a single record is to blame, which is then left out. Of one whose node did not
    see all stills the rest is a chunk of its own; if no node asked sees any of that, it is measured once more, and left out.
    """

    store: Store
    rounds: Sequence[tuple[SourceState, int, Iterator[Chunk]]]
    counters: Counters
    max_open: int = 64
    _states: dict[str, SourceState] = field(init=False)
    _again: deque[Chunk] = field(default_factory=deque)
    _fresh: Iterator[Chunk] = field(init=False)
    _committed: dict[str, set[str]] = field(init=False)
    _num_open: int = 0
    _drained: bool = False

    def __post_init__(self) -> None:
        self._states = {state.spec.name: state for state, _, _ in self.rounds}
        self._committed = {name: committed_chunks(self.store, name) for name in self._states}
        self._fresh = (chunk for _, _, chunks in self.rounds for chunk in chunks)

    @property
    def finished(self) -> bool:
        """All chunks are committed."""
        return self._drained and not self._again and not self._num_open

    def pull(self) -> Task | None:
        """The next chunk that is not committed."""
        if self._again:
            return self._task(self._again.popleft())
        if self._num_open >= self.max_open:
            return None
        for chunk in self._fresh:
            there = self._committed_parts(chunk)
            if there is None:
                return self._task(chunk)
            for done in there:
                self._take(chunk.source, done)
        self._drained = True
        return None

    def done(self, task: Task, info: ChunkDone, payload: Any) -> None:
        """A chunk is committed, or what its node saw of it."""
        self._num_open -= 1
        self._take(task.payload.source, info)
        rest = task.payload.unseen(info)
        if rest is not None:
            self._again.append(rest)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A chunk has killed its workers, or no node sees its stills."""
        self._num_open -= 1
        chunk: Chunk = task.payload
        if verdict.reason == "source_missing":
            self._again.append(replace(chunk, asked=True))
            return
        if len(chunk.candidates) > 1:
            log.warning("%s: %s: %s; it is halved", task.name, verdict.reason, verdict.message)
            self._again.extend(chunk.halves())
            return
        self._take(chunk.source, condemn_chunk(self.store, chunk, reason=verdict.reason, message=verdict.message))

    def _task(self, chunk: Chunk) -> Task:
        self._num_open += 1
        divisible = len(chunk.candidates) > 1
        cost = SECONDS_PER_RECORD * len(chunk.candidates)
        return Task(f"chunk {chunk.source}/{chunk.name}", chunk, cost, divisible=divisible)

    def _take(self, source: str, done: ChunkDone) -> None:
        self._states[source].done[done.rel] = done
        self.counters.num_done += len(done.hashes)
        self.counters.num_made += int((done.lengths > 0).sum())
        self.counters.num_tokens += int(done.lengths.sum())
        self.counters.quarantined.update(done.dropped)

    def _committed_parts(self, chunk: Chunk) -> list[ChunkDone] | None:
        """The chunk as it was committed by an earlier call, whole or in parts; None where nothing of it is."""
        committed = self._committed[chunk.source]
        if chunk.rel in committed:
            return [load_chunk(self.store, chunk.rel)]
        if chunk.seen_rel in committed:
            seen = load_chunk(self.store, chunk.seen_rel)
            rest = chunk.unseen(seen)
            return [seen, *(self._parts_or_again(rest) if rest is not None else [])]
        if len(chunk.candidates) < 2 or not any(
            rel.startswith(chunk.rel.removesuffix(".jsonl.gz") + "-") for rel in committed
        ):
            return None
        return [done for half in chunk.halves() for done in self._parts_or_again(half)]

    def _parts_or_again(self, part: Chunk) -> list[ChunkDone]:
        there = self._committed_parts(part)
        if there is None:
            self._again.append(part)
        return there or []
