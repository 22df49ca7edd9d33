"""Rounds: rows that a run plans after its own plan. They replay what fell, append rows of another manifest, or take in rows
that a filter left out, under other thresholds.

Enters: a run's store. Leaves: its rounds, and the run's rows as the plan and all rounds together say them.

A round is to its rows what the plan is to the manifest: `plan/round-0001-<hex>.parquet` and `.jsonl`, then
`plan/round-0001.json`, created if absent, which names them: without it the round is not there, and of two who plan one
at once the second is refused. Its shards come after all shards before it, so nothing that is published changes. A line
ends as the last round that took it says; what was said of it before is history, and must have been a quarantine
or a filter's. So manifest = committed + filtered + quarantined holds, with the appended rows counted to the manifest.
"""

import re
import tempfile
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ov2_core.plan import (
    PlanWriter,
    iter_fallen,
    iter_plan_quarantine,
    iter_plan_rows,
    iter_plan_rows_by_line,
    load_plan,
)
from ov2_core.storage.commit import load_commit
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store
from ov2_core.storage.layout import PLAN_DIR
from ov2_core.storage.summaries import iter_summaries
from schemas.run import RoundRecord
from schemas.shard import CommitRecord, FilteredRow, PlannedRow, PlanRecord, QuarantineRow

_ROUND_JSON = re.compile(r"round-(\d{4,})\.json")
_ROUND_FILE = re.compile(r"round-\d{4,}-[0-9a-f]{32}\.(parquet|jsonl)")
_NEVER_REPLAYED = frozenset({"malformed_row", "duplicate_id"})
"""These follow from the manifest's text alone: trying again changes nothing."""


def round_rel(number: int) -> str:
    """The file that makes a round exist."""
    return f"{PLAN_DIR}/round-{number:04d}.json"


@dataclass(frozen=True)
class Rounds:
    """All that a run has planned. `plan` is the run's own plan, `records` its rounds from 1 on."""

    store: Store
    plan: PlanRecord
    records: list[RoundRecord]

    @property
    def num_shards(self) -> int:
        """Of the plan and all rounds."""
        last = self.records[-1] if self.records else None
        return self.plan.num_shards if last is None else last.first_shard + last.num_shards

    @property
    def manifest_rows(self) -> int:
        """Of the manifest and all that was appended."""
        return self.plan.manifest_rows + sum(record.num_rows for record in self.records if record.kind == "append")

    @cached_property
    def taken(self) -> dict[int, int]:
        """{line: last round that took it}, of the rounds' lines alone."""
        found: dict[int, int] = {}
        for record in self.records:
            found.update((row.line, record.number) for row in self.fallen(record.number))
            with self.store.open_read(record.rows) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=["line"]):
                    found.update(dict.fromkeys(batch.column(0).to_pylist(), record.number))
        return found

    def round_of(self, shard: int) -> int:
        """The round that planned a shard; 0 for the run's own plan."""
        return bisect_right([record.first_shard for record in self.records], shard)

    def is_history(self, line: int, number: int) -> bool:
        """Whether a later round took the line that round `number` (0: the plan) speaks of."""
        return bool(self.records) and self.taken.get(line, 0) > number

    def fallen(self, number: int) -> Iterator[QuarantineRow]:
        """Rows that fell while round `number` (0: the plan) was planned, later replays or not."""
        if number == 0:
            return iter_plan_quarantine(self.store, self.plan)
        return iter_fallen(self.store, self.fallen_rel(number))

    def rows_rel(self, number: int) -> str:
        """The Parquet file of a round's planned rows (0: the plan's)."""
        return self.plan.rows if number == 0 else self.records[number - 1].rows

    def fallen_rel(self, number: int) -> str:
        """The ledger of the rows that fell while a round (0: the plan) was planned."""
        return self.plan.fallen if number == 0 else self.records[number - 1].fallen

    def iter_rows(self, *, skip_shards: frozenset[int] = frozenset()) -> Iterator[PlannedRow]:
        """Planned rows by ascending shard, without those of some shards."""
        if not set(range(self.plan.num_shards)) <= skip_shards:
            yield from iter_plan_rows(self.store, skip_shards=skip_shards, rel=self.plan.rows)
        for record in self.records:
            shards = range(record.first_shard, record.first_shard + record.num_shards)
            if not set(shards) <= skip_shards:
                yield from iter_plan_rows(self.store, skip_shards=skip_shards, rel=record.rows)

    def count_rows(self, *, skip_shards: frozenset[int] = frozenset()) -> int:
        """Planned rows outside some shards; reads one small column."""
        skipped = np.array(sorted(skip_shards), dtype=np.int32)
        count = 0
        for number in range(len(self.records) + 1):
            with self.store.open_read(self.rows_rel(number)) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=["shard"]):
                    count += int(np.isin(batch.column(0).to_numpy(), skipped, invert=True).sum())
        return count

    def iter_quarantined(self) -> Iterator[QuarantineRow]:
        """Rows that stand quarantined now: of the plan and rounds, then of the commits. Those replayed since are left out."""
        for number in range(len(self.records) + 1):
            yield from (row for row in self.fallen(number) if not self.is_history(row.line, number))
        for summary in iter_summaries(self.store):
            if summary.quarantined:
                yield from self.quarantined_of(load_commit(self.store, summary.shard))

    def iter_filtered(self) -> Iterator[PlannedRow]:
        """Planned rows that stand filtered now, round after round, by ascending line."""
        for number in range(len(self.records) + 1):
            rows = iter_plan_rows_by_line(self.store, rel=self.rows_rel(number))
            yield from (row for row in rows if row.filtered is not None and not self.is_history(row.line, number))

    def iter_kept(self, *, leave_out: frozenset[int] = frozenset()) -> Iterator[PlannedRow]:
        """Planned rows that no rule leaves out now, fallen ones among them, without those of some lines."""
        for number in range(len(self.records) + 1):
            rows = iter_plan_rows(self.store, rel=self.rows_rel(number))
            kept = (row for row in rows if row.filtered is None and row.line not in leave_out)
            yield from (row for row in kept if not self.is_history(row.line, number))

    def filter_now(self) -> dict[str, Any] | None:
        """The thresholds that the last round of kind "refilter" set; None where there is none: those of the run's config."""
        set_later = [record.filter for record in self.records if record.filter is not None]
        return set_later[-1] if set_later else None

    def filtered_of(self, commit: CommitRecord) -> list[FilteredRow]:
        """Rows of a commit that stand filtered now."""
        number = self.round_of(commit.shard)
        return [row for row in commit.filtered if not self.is_history(row.line, number)]

    def quarantined_of(self, commit: CommitRecord) -> list[QuarantineRow]:
        """Rows of a commit that stand quarantined now."""
        number = self.round_of(commit.shard)
        return [row for row in commit.quarantined if not self.is_history(row.line, number)]


def load_rounds(store: Store) -> Rounds | None:
    """The run's plan and rounds, or None where it has no plan.

    Raises:
        ValueError: a record cannot be read, or a round before the last is gone.
    """
    plan = load_plan(store)
    return None if plan is None else Rounds(store, plan, list_rounds(store))


def list_rounds(store: Store) -> list[RoundRecord]:
    """The rounds' records by number.

    Raises:
        ValueError: see load_rounds.
    """
    matches = [match for name in store.list(PLAN_DIR) if (match := _ROUND_JSON.fullmatch(name))]
    numbers = sorted(int(match[1]) for match in matches)
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"{store.url(PLAN_DIR)} has rounds {numbers}, but some before are gone; restore them")
    return [RoundRecord.model_validate_json(store.read_bytes(round_rel(number))) for number in numbers]


def stray_round_files(store: Store) -> list[str]:
    """Files of rounds that were never created: their planner died, or was the second."""
    named = {rel for record in list_rounds(store) for rel in (record.rows, record.fallen)}
    found = [f"{PLAN_DIR}/{name}" for name in store.list(PLAN_DIR) if _ROUND_FILE.fullmatch(name)]
    return [rel for rel in found if rel not in named]


def is_replayable(row: QuarantineRow, reasons: frozenset[str] | None = None) -> bool:
    """Whether a fallen row can be tried again alone, and is of one of the reasons (None: any)."""
    wanted = reasons is None or row.reason in reasons
    return wanted and row.row is not None and row.reason not in _NEVER_REPLAYED


class RoundWriter:
    """Writes a round's files; see plan.PlanWriter, which it lends to the planner as `.plan`.

    token: 32 hex digits for the files' names, where all who write the round write the same; by default random ones.
    """

    def __init__(self, rounds: Rounds, *, token: str | None = None) -> None:
        self._rounds = rounds
        self._token = token
        self._folder = tempfile.TemporaryDirectory(prefix="ov2-round-")
        self._scratch = Store(self._folder.name)
        self.plan = PlanWriter(self._scratch)

    def finish(self, make: Callable[[int, str, str], RoundRecord], planned: PlanRecord) -> RoundRecord:
        """Puts the files into the run and creates the round; `make` gets its number and the two paths.

        Raises:
            ValueError: another process has created this round meanwhile.
        """
        store, number = self._rounds.store, len(self._rounds.records) + 1
        scratch = self.plan.finish(planned)
        stem = f"{PLAN_DIR}/round-{number:04d}-{self._token or uuid.uuid4().hex}"
        record = make(number, f"{stem}.parquet", f"{stem}.jsonl")
        store.put_file(self._scratch.local(scratch.rows), record.rows)
        store.put_file(self._scratch.local(scratch.fallen), record.fallen)
        data = (record.model_dump_json(indent=2) + "\n").encode()
        failpoint("before_round")
        store.create_bytes(round_rel(number), data)
        if store.read_bytes(round_rel(number)) != data:
            for rel in (record.rows, record.fallen):
                store.remove(rel)
            raise ValueError(
                f"another process has created round {number} of {store.root} meanwhile; `ov2 status` shows it"
            )
        failpoint("after_round")
        return record

    def __enter__(self) -> "RoundWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.plan.__exit__(None, None, None)
        self._folder.cleanup()
