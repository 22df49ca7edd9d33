"""A plan's shards to workers and back: which rows go out together, and what of a shard is complete.

Enters: planned rows by shard, and what workers return. Leaves: tasks of one video or of several short ones, then of shards to
write. Handing a call out and taking its result costs some 9 ms of CPU in the driver and Ray's processes, a fifth of what a
clip of two seconds at 360p costs to make: so rows that are predicted to be quick go out together, up to BATCH_SECONDS. Where
such a call fails, each of its rows is tried alone, and only alone can one be condemned.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ov2_core.make_sample import SampleOutcome, quarantine_planned
from pipelines.progress import Counters
from pipelines.tasks import Task, Verdict
from schemas.shard import FilteredRow, PlannedRow, QuarantineRow

log = logging.getLogger(__name__)
BATCH_SECONDS = 1.0
"""Predicted CPU seconds of the rows that go out together: as much, and no more, is lost with a worker or waited for at the end."""
LAST_BATCH_SECONDS = 0.25
"""Of the last shard, so that its workers end together; in a run of one shard, so that there is something for each."""
MAX_BATCH_ROWS = 64
WRITE_SECONDS_PER_BYTE = 1 / 20e6


@dataclass(frozen=True, slots=True)
class MadeSample:
    """A made sample whose members wait in the object store."""

    key: str
    outcome: SampleOutcome
    """Without its members."""
    batch: Any
    """Reference to the members of all samples of its call: a list of lists."""
    place: int = 0
    """Its own in that list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteTask:
    """A complete shard: write and commit it."""

    shard: int
    made: list[MadeSample]
    """In plan order."""
    filtered: list[FilteredRow]
    quarantined: list[QuarantineRow]
    started_unix_seconds: float


@dataclass(frozen=True, slots=True)
class ShardWritten:
    """The shard is committed and published, unless samples were lost: then nothing happened."""

    shard: int
    lost_keys: list[str]


Rows = tuple[PlannedRow, ...]
"""What one call makes."""


@dataclass(slots=True)
class _OpenShard:
    rows: list[PlannedRow]
    started_unix_seconds: float
    predicted_bytes: int
    ended: dict[str, MadeSample | FilteredRow | QuarantineRow] = field(default_factory=dict)

    def write_task(self, shard: int) -> Task:
        ends = [self.ended[row.key] for row in self.rows]
        task = WriteTask(
            shard=shard,
            made=[end for end in ends if isinstance(end, MadeSample)],
            filtered=[end for end in ends if isinstance(end, FilteredRow)],
            quarantined=[end for end in ends if isinstance(end, QuarantineRow)],
            started_unix_seconds=self.started_unix_seconds,
        )
        return Task(f"shard {shard}", task, self.predicted_bytes * WRITE_SECONDS_PER_BYTE, blamed=False)


class ShardFeed:
    """Planned rows to tasks, results to shards; see tasks.Feed. A bounded number of shards is open at a time."""

    def __init__(
        self,
        shards: Iterator[tuple[int, list[PlannedRow]]],
        counters: Counters,
        *,
        max_open_bytes: int,
        max_open_shards: int,
        batch_seconds: float = BATCH_SECONDS,
    ) -> None:
        self._shards = shards
        self._counters = counters
        self.allow(max_open_bytes=max_open_bytes, max_open_shards=max_open_shards)
        self._batch_seconds = batch_seconds
        self._next_shard: tuple[int, list[PlannedRow]] | None = next(shards, None)
        self._open: dict[int, _OpenShard] = {}
        self._tasks: deque[Task] = deque()
        self._writes: deque[Task] = deque()

    def allow(self, *, max_open_bytes: int, max_open_shards: int) -> None:
        """What may be open from now on."""
        self._max_open_bytes, self._max_open_shards = max_open_bytes, max_open_shards

    @property
    def finished(self) -> bool:
        """All shards are written."""
        return self._next_shard is None and not self._open

    @property
    def num_open(self) -> int:
        """Shards that hold samples in the object store."""
        return len(self._open)

    def pull(self) -> Task | None:
        """A shard to write, else rows of an open shard, else some of the next shard if it may be opened."""
        if self._writes:
            return self._writes.popleft()
        if not self._tasks and self._next_shard is not None and self._may_open(self._next_shard[1]):
            self._open_next()
            if self._writes:
                return self._writes.popleft()
        return self._tasks.popleft() if self._tasks else None

    def done(self, task: Task, info: Any, payload: Any) -> None:
        """Samples were made, filtered or quarantined, or a shard was written."""
        if isinstance(info, ShardWritten):
            self._written(info)
            return
        for place, (row, outcome) in enumerate(zip(task.payload, info, strict=True)):
            assert outcome is None or outcome.key == row.key, f"{outcome.key} came back for {row.key}"
            if outcome is None:
                self._tasks.appendleft(_task((row,), attempts=task.attempts))
            else:
                self._made(row, outcome, MadeSample(row.key, outcome, payload, place), task.attempts)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A video that will not be tried again; or several, each of which is tried alone."""
        rows: Rows = task.payload
        if len(rows) > 1:
            self._tasks.extendleft(_task((row,), attempts=task.attempts) for row in reversed(rows))
            return
        (row,) = rows
        self._counters.quarantined[verdict.reason] += 1
        self._end(
            row,
            quarantine_planned(row, reason=verdict.reason, message=verdict.message, attempts=verdict.attempts),
        )

    def _open_next(self) -> None:
        assert self._next_shard is not None
        shard, rows = self._next_shard
        self._open[shard] = _OpenShard(rows, round(time.time(), 3), sum(row.predicted_bytes for row in rows))
        self._next_shard = next(self._shards, None)
        wanted = []
        for row in rows:
            if row.filtered is None:
                wanted.append(row)
            else:
                self._counters.num_filtered += 1
                self._end(row, row.filtered)
        seconds = self._batch_seconds if self._next_shard is not None else min(self._batch_seconds, LAST_BATCH_SECONDS)
        tasks = [_task(batch) for batch in in_batches(wanted, seconds)]
        self._tasks.extend(sorted(tasks, key=lambda task: -task.cost_seconds))  # so that no long one comes last

    def _may_open(self, rows: list[PlannedRow]) -> bool:
        if not self._open:
            return True
        held = sum(shard.predicted_bytes for shard in self._open.values())
        wanted = sum(row.predicted_bytes for row in rows)
        return len(self._open) < self._max_open_shards and held + wanted <= self._max_open_bytes

    def _made(self, row: PlannedRow, outcome: SampleOutcome, sample: MadeSample, attempts: int) -> None:
        counters = self._counters
        counters.cpu_seconds += outcome.cpu_seconds
        if outcome.filtered is not None:
            counters.num_filtered += 1
            self._end(row, outcome.filtered)
        elif outcome.quarantined is not None:
            counters.quarantined[outcome.quarantined.reason] += 1
            attempts = max(attempts, outcome.quarantined.attempts)
            self._end(row, outcome.quarantined.model_copy(update={"attempts": attempts}))
        else:
            counters.num_made += 1
            counters.num_images += outcome.num_images
            counters.num_tokens += outcome.num_tokens
            counters.video_seconds += outcome.duration_seconds
            self._end(row, sample)

    def _end(self, row: PlannedRow, end: MadeSample | FilteredRow | QuarantineRow) -> None:
        shard = self._open[row.shard]
        assert row.key not in shard.ended, f"{row.key} ended twice"
        shard.ended[row.key] = end
        self._counters.num_done += 1
        if len(shard.ended) == len(shard.rows):
            self._writes.append(shard.write_task(row.shard))

    def _written(self, written: ShardWritten) -> None:
        if not written.lost_keys:
            del self._open[written.shard]
            self._counters.num_shards_done += 1
            return
        log.warning("shard %d: %d samples were lost with their node; made again", written.shard, len(written.lost_keys))
        shard = self._open[written.shard]
        lost = [row for row in shard.rows if row.key in written.lost_keys]
        for row in lost:
            made = shard.ended.pop(row.key)
            assert isinstance(made, MadeSample)
            self._counters.num_done -= 1
            self._counters.num_made -= 1
        self._tasks.extendleft(_task(batch) for batch in in_batches(lost, self._batch_seconds))


def in_batches(rows: Sequence[PlannedRow], batch_seconds: float) -> Iterator[Rows]:
    """Rows that go out together; in the order given, but for rows longer than `batch_seconds`, which go alone.

    So whoever goes through a shard in its order meets the rows of one batch before those of the next.
    """
    batch: list[PlannedRow] = []
    seconds = 0.0
    for row in rows:
        if row.predicted_cpu_seconds >= batch_seconds:
            yield (row,)
            continue
        if batch and (seconds + row.predicted_cpu_seconds > batch_seconds or len(batch) == MAX_BATCH_ROWS):
            yield tuple(batch)
            batch, seconds = [], 0.0
        batch.append(row)
        seconds += row.predicted_cpu_seconds
    if batch:
        yield tuple(batch)


def _task(rows: Rows, *, attempts: int = 0) -> Task:
    name = rows[0].key if len(rows) == 1 else f"{rows[0].key} and {len(rows) - 1} more"
    seconds = sum(row.predicted_cpu_seconds for row in rows)
    return Task(name, rows, seconds, divisible=len(rows) > 1, attempts=attempts)
