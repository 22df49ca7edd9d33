"""The plan: what each source will cost, and which shard it goes to; written once, read back shard by shard.

Enters: probe records in manifest order. Leaves: RUN/plan/rows-<digest>.parquet (one PlannedRow a row, row groups that end at
shard boundaries, so a resume reads only the shards it misses), RUN/quarantine/plan-<digest>.jsonl (rows that fell before the
run), and last RUN/plan/plan.json, created if absent, which names them: a plan without it is not there, and of two who plan at
once neither can touch the other's files. Memory is bounded by one row group in writing and in reading.

Predictions are sums of a few terms with constants that `ov2 bench cost` fits: they size shards, deadlines and the estimate
that a user sees, and the report holds them against what happened.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store
from ov2_core.storage.layout import PLAN_DIR, PLAN_JSON, QUARANTINE_DIR
from schemas.shard import PlannedRow, PlanRecord, QuarantineRow

ROW_GROUP_ROWS = 2048
ROWS_SCHEMA = pa.schema(
    [
        pa.field("line", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
    ]
)

_DIGEST_CHARS = 16
_PLAN_FILE = re.compile(r"plan/rows(-[0-9a-f]{16})?\.parquet|quarantine/plan(-[0-9a-f]{16})?\.jsonl")
_SHARD = '"shard":0,'


class PlannedText(NamedTuple):
    """A PlannedRow as JSON of shard 0, and what of it the driver needs."""

    line: int
    key: str
    id: str
    uri: str
    text: str
    tokens: int
    bytes: int
    cpu_seconds: float
    video_seconds: float
    rule: str | None = None
    """That leaves it out; it costs nothing then."""

    def text_of_shard(self, shard: int) -> str:
        """The JSON with its shard. The name cannot stand earlier: inside a string its quotes would be escaped."""
        return self.text.replace(_SHARD, f'"shard":{shard},', 1)


def planned_text(planned: PlannedRow) -> PlannedText:
    """A planned row whose shard is not known yet."""
    assert planned.shard == 0, planned.shard
    return PlannedText(
        line=planned.line,
        key=planned.key,
        id=planned.id,
        uri=planned.uri,
        text=planned.model_dump_json(),
        tokens=planned.predicted_tokens,
        bytes=planned.predicted_bytes,
        cpu_seconds=planned.predicted_cpu_seconds,
        video_seconds=0.0 if planned.filtered is not None else planned.probe.duration_seconds,
        rule=None if planned.filtered is None else planned.filtered.rule,
    )


class PlanWriter:
    """Writes a plan's files. Rows must come with shards in ascending order; `finish` makes the plan exist."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = tempfile.TemporaryDirectory(prefix="ov2-plan-")
        self._rows_path = os.path.join(self._folder.name, "rows.parquet")
        self._quarantine_path = os.path.join(self._folder.name, "plan.jsonl")
        self._parquet = pq.ParquetWriter(self._rows_path, ROWS_SCHEMA, compression="zstd")
        self._ledger = open(self._quarantine_path, "w", encoding="utf-8")  # noqa: SIM115 - closed in finish
        self._pending: list[tuple[int, str, str, str, int, str]] = []
        self._last_shard = 0

    def add(self, row: PlannedText, shard: int) -> None:
        """Appends a planned row."""
        assert shard >= self._last_shard, (shard, self._last_shard)
        if len(self._pending) >= ROW_GROUP_ROWS and shard > self._last_shard:
            self._flush()
        self._last_shard = shard
        self._pending.append((row.line, row.key, row.id, row.uri, shard, row.text_of_shard(shard)))
        if len(self._pending) >= 8 * ROW_GROUP_ROWS:
            self._flush()

    def quarantine(self, row: QuarantineRow) -> None:
        """Appends a row to the plan's ledger."""
        self._ledger.write(row.model_dump_json() + "\n")

    def finish(self, record: PlanRecord) -> PlanRecord:
        """Puts the files into the run, plan.json last; returns the plan that stands then: another's where that came first.

        Raises:
            ValueError: another process takes plans away meanwhile.
        """
        self._flush()
        self._parquet.close()
        self._ledger.close()
        failpoint("before_plan")
        rows = f"{PLAN_DIR}/rows-{_file_digest(self._rows_path)}.parquet"
        fallen = f"{QUARANTINE_DIR}/plan-{_file_digest(self._quarantine_path)}.jsonl"
        self._store.put_file(self._rows_path, rows)
        self._store.put_file(self._quarantine_path, fallen)
        failpoint("mid_plan")
        named = record.model_copy(update={"rows": rows, "fallen": fallen})
        self._store.create_bytes(PLAN_JSON, (named.model_dump_json(indent=2) + "\n").encode())
        there = load_plan(self._store)  # what stands there decides, not the answer
        if there is None:
            raise ValueError(f"{self._store.root} is planned by two commands at once; give this one again")
        for rel in {rows, fallen} - {there.rows, there.fallen}:
            self._store.remove(rel)
        failpoint("after_plan")
        return there

    def __enter__(self) -> "PlanWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self._parquet.close()
        self._ledger.close()
        self._folder.cleanup()

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = [list(column) for column in zip(*self._pending, strict=True)]
        self._parquet.write_table(pa.table(columns, schema=ROWS_SCHEMA), row_group_size=len(self._pending))
        self._pending = []


def load_plan(store: Store) -> PlanRecord | None:
    """The run's plan record, or None where there is none.

    Raises:
        ValueError: plan.json is not a plan of this version.
    """
    try:
        data = store.read_bytes(PLAN_JSON)
    except FileNotFoundError:
        return None
    return PlanRecord.model_validate_json(data)


def remove_plan(store: Store) -> None:
    """Takes a plan away, plan.json first."""
    store.remove(PLAN_JSON)
    remove_stray_plan_files(store)


def is_plan_file(rel: str) -> bool:
    """Whether this is a name that a planner gives to rows, or to the ledger of those that fell."""
    return _PLAN_FILE.fullmatch(rel) is not None


def stray_plan_files(store: Store) -> list[str]:
    """Files of plans that were never created: their planner died before, or is at it, or came second."""
    found = [f"{folder}/{name}" for folder in (PLAN_DIR, QUARANTINE_DIR) for name in store.list(folder)]
    found = [rel for rel in found if is_plan_file(rel)]
    plan = load_plan(store) if found else None
    return [rel for rel in found if plan is None or rel not in (plan.rows, plan.fallen)]


def remove_stray_plan_files(store: Store) -> None:
    """Where a plan stands, nobody can need them: whoever is still planning will be the second."""
    for rel in stray_plan_files(store):
        store.remove(rel)


def iter_plan_rows(
    store: Store, *, skip_shards: "set[int] | frozenset[int]" = frozenset(), rel: str | None = None
) -> Iterator[PlannedRow]:
    """Planned rows in order, without those of some shards; row groups of skipped shards alone are not read.

    rel: the file, by default the plan's; that of a round (rounds.py) has the same form.

    Raises:
        FileNotFoundError: there is no plan.
    """
    with store.open_read(rel or _rows_rel(store)) as file:
        parquet = pq.ParquetFile(file)
        shard_column = ROWS_SCHEMA.get_field_index("shard")
        for index in range(parquet.num_row_groups):
            statistics = parquet.metadata.row_group(index).column(shard_column).statistics
            if statistics is not None and statistics.has_min_max:
                needed = any(s not in skip_shards for s in range(statistics.min, statistics.max + 1))
                if not needed:
                    continue
            for batch in parquet.iter_batches(batch_size=512, row_groups=[index], columns=["shard", "record"]):
                for shard, record in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                    if shard not in skip_shards:
                        yield PlannedRow.model_validate_json(record)


def iter_plan_rows_by_line(store: Store, *, rel: str | None = None) -> Iterator[PlannedRow]:
    """Planned rows by ascending line, as they were planned. Holds what shard_balance.py has moved: at most about a window."""
    rel = rel or _rows_rel(store)
    with store.open_read(rel) as file:
        lines = np.sort(pq.ParquetFile(file).read(columns=["line"]).column(0).to_numpy())
    held: dict[int, PlannedRow] = {}
    place = 0
    for row in iter_plan_rows(store, rel=rel):
        held[row.line] = row
        while place < len(lines) and int(lines[place]) in held:
            yield held.pop(int(lines[place]))
            place += 1


def iter_plan_shards(
    store: Store, *, skip_shards: "set[int] | frozenset[int]" = frozenset()
) -> Iterator[tuple[int, list[PlannedRow]]]:
    """(shard, its rows) in order; one shard is held at a time."""
    return group_by_shard(iter_plan_rows(store, skip_shards=skip_shards))


def group_by_shard(rows: Iterable[PlannedRow]) -> Iterator[tuple[int, list[PlannedRow]]]:
    """Consecutive rows of the same shard."""
    gathered: list[PlannedRow] = []
    for row in rows:
        if gathered and row.shard != gathered[0].shard:
            yield gathered[0].shard, gathered
            gathered = []
        gathered.append(row)
    if gathered:
        yield gathered[0].shard, gathered


def iter_plan_quarantine(store: Store, plan: PlanRecord | None = None) -> Iterator[QuarantineRow]:
    """Rows that fell before the run; none where there is no plan. plan: the store's, where the caller has it."""
    plan = plan or load_plan(store)
    if plan is not None:
        with contextlib.suppress(FileNotFoundError):
            yield from iter_fallen(store, plan.fallen)


def iter_fallen(store: Store, rel: str) -> Iterator[QuarantineRow]:
    """Rows of the ledger of a plan or a round. Raises FileNotFoundError."""
    with store.open_read(rel) as file:
        for line in file:
            if line.strip():
                yield QuarantineRow.model_validate_json(line)


def _rows_rel(store: Store) -> str:
    plan = load_plan(store)
    if plan is None:
        raise FileNotFoundError(f"{store.url(PLAN_JSON)}: no plan")
    return plan.rows


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_CHARS]
