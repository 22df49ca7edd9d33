"""Proof that a run is whole: manifest = committed + filtered + quarantined, every tar readable, every digest right.

Enters: a Store. Leaves: a VerifyReport whose errors each name a shard, key or line, and the remedy. Nothing is repaired.

Shards are checked one by one (check_shard.py), a few at a time, so memory is bounded by the largest samples; the books
(ledger.py) keep 20 bytes a planned row.
"""

import os
import sqlite3
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from ov2_core.plan import is_plan_file
from ov2_core.rounds import Rounds, list_rounds
from ov2_core.storage.check_shard import check_shard, read_or_none
from ov2_core.storage.commit import committed_shards
from ov2_core.storage.files import Store
from ov2_core.storage.index import index_texts
from ov2_core.storage.layout import (
    FEATURES_RECIPE,
    INDEX_DIR,
    PLAN_DIR,
    PLAN_JSON,
    QUARANTINE_DIR,
    RUN_JSON,
    SHARDS_DIR,
    shard_name,
    tar_rel,
)
from ov2_core.storage.ledger import Errors, Ledger, Totals, first_line
from ov2_core.storage.reader import open_index
from schemas.features import FeatureConfig
from schemas.run import RunRecord, VerifyReport
from schemas.shard import CommitRecord, PlanRecord, QuarantineRow

T = TypeVar("T")
_REINDEX = "run `ov2 tokenize` again, which writes the index anew from the commits"


def verify_run(store: Store, *, deep: bool = True, num_threads: int | None = None) -> VerifyReport:
    """Check a finished run.

    deep: read every tar (digest, members, JPEGs, positions); else sizes and the ledger alone.
    num_threads: tars read at once; by default one a core, at most 8.
    """
    errors = Errors()
    totals = Totals()
    rounds = _load_rounds(store, errors)
    features = _feature_config(store, errors)
    ledger = Ledger.load(rounds, errors) if rounds is not None else None
    for number in range(len(rounds.records) + 1 if rounds is not None else 0):
        assert rounds is not None
        _add_fallen(rounds, number, ledger, totals, errors)

    tars = store.list_sizes(SHARDS_DIR)
    shards = committed_shards(store)
    counts: dict[str, int] = {}
    digests: list[str] = []
    ledgers: set[str] = set()
    index = _Index.open(store, errors)
    num_threads = num_threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        found_by_shard = (
            pool.submit(check_shard, store, shard, deep=deep, tars=tars, features=features) for shard in shards
        )
        for record, found in _ahead(found_by_shard, num_ahead=2 * num_threads):
            errors.extend(found)
            if record is None:
                continue
            filtered = record.filtered if rounds is None else rounds.filtered_of(record)
            totals.add_commit(record, filtered, record.quarantined if rounds is None else rounds.quarantined_of(record))
            if record.quarantined:
                ledgers.add(f"{shard_name(record.shard)}.jsonl")
            if ledger is not None:
                ledger.add_commit(record, errors)
            if record.tar_name is not None and record.tar_digest is not None:
                if index is not None:
                    index.check_shard(len(counts), record, errors)
                counts[tar_rel(record.shard)] = len(record.samples)
                digests.append(record.tar_digest)
    if index is not None:
        index.check_whole(counts, digests, errors)
        index.close()
    _check_strangers(store, tars, counts, ledgers, errors)
    if rounds is not None and ledger is not None:
        ledger.check_sum(rounds, set(shards), errors)
    return VerifyReport(
        ok=not errors.messages,
        manifest_rows=rounds.manifest_rows if rounds is not None else 0,
        committed=totals.committed,
        filtered=totals.filtered.total(),
        filtered_by_rule=dict(sorted(totals.filtered.items())),
        quarantined=sum(totals.quarantined.values()),
        quarantined_by_reason=dict(sorted(totals.quarantined.items())),
        shards=len(shards),
        tar_bytes=totals.tar_bytes,
        num_images=totals.num_images,
        num_tokens=totals.num_tokens,
        errors=errors.finished() if features is None else [_for_features(text) for text in errors.finished()],
    )


def _ahead(futures: Iterator["Future[T]"], *, num_ahead: int) -> Iterator[T]:
    """Results in order; `futures` is drawn, and so begun, only a few ahead of the consumer."""
    pending: deque[Future[T]] = deque()
    for future in futures:
        pending.append(future)
        if len(pending) >= num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


class _Index:
    """The Energon index held against the commits."""

    def __init__(self, store: Store, db: sqlite3.Connection, folder: Any) -> None:
        self._store, self._db, self._folder = store, db, folder

    @classmethod
    def open(cls, store: Store, errors: Errors) -> "_Index | None":
        try:
            db, folder = open_index(store)
        except FileNotFoundError:
            errors.add(f"the index in {INDEX_DIR} is missing or unfinished; {_REINDEX}")
            return None
        return cls(store, db, folder)

    def check_shard(self, tar_id: int, record: CommitRecord, errors: Errors) -> None:
        samples = [(i, s.key, s.byte_offset, s.byte_size) for i, s in enumerate(record.samples)]
        parts = [
            (i, part.name, part.content_byte_offset, part.content_byte_size)
            for i, sample in enumerate(record.samples)
            for part in sample.parts
        ]
        try:
            right = samples == self._query(
                "SELECT sample_index, sample_key, byte_offset, byte_size FROM samples "
                "WHERE tar_file_id = ? ORDER BY sample_index",
                tar_id,
            ) and parts == self._query(
                "SELECT sample_index, part_name, content_byte_offset, content_byte_size FROM sample_parts "
                "WHERE tar_file_id = ? ORDER BY sample_index, content_byte_offset",
                tar_id,
            )
        except sqlite3.DatabaseError as error:
            errors.add(f"shard {record.shard}: {INDEX_DIR}/index.sqlite cannot be read ({error}); {_REINDEX}")
            return
        if not right:
            errors.add(f"shard {record.shard}: {INDEX_DIR}/index.sqlite is not what the commit says; {_REINDEX}")

    def check_whole(self, counts: dict[str, int], digests: list[str], errors: Errors) -> None:
        """The other files, and that the sqlite holds nothing beside the committed shards."""
        for rel, data in index_texts(counts, digests).items():
            if read_or_none(self._store, rel) != data:
                errors.add(f"{rel} is missing or not what the commits say; {_REINDEX}")
        try:
            if self._query("SELECT count(*) FROM samples WHERE tar_file_id >= ?", len(counts)) != [(0,)]:
                errors.add(f"{INDEX_DIR}/index.sqlite holds samples of no committed shard; {_REINDEX}")
        except sqlite3.DatabaseError as error:
            errors.add(f"{INDEX_DIR}/index.sqlite cannot be read ({error}); {_REINDEX}")

    def close(self) -> None:
        self._db.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _query(self, sql: str, tar_id: int) -> list[tuple[Any, ...]]:
        with closing(self._db.execute(sql, (tar_id,))) as cursor:
            return cursor.fetchall()


def _load_rounds(store: Store, errors: Errors) -> Rounds | None:
    try:
        plan = PlanRecord.model_validate_json(store.read_bytes(PLAN_JSON))
    except FileNotFoundError:
        errors.add(f"{store.url(PLAN_JSON)} is missing: no plan, so nothing to account for; run `ov2 plan` first")
        return None
    except ValueError as error:
        errors.add(f"{PLAN_JSON} cannot be read ({first_line(error)}); run `ov2 plan` into a new folder")
        return None
    try:
        rounds = Rounds(store, plan, list_rounds(store))
        len(rounds.taken)
    except (OSError, ValueError) as error:
        errors.add(f"{PLAN_DIR}/round-*: a round cannot be read ({first_line(error)}); restore its files")
        return Rounds(store, plan, [])
    return rounds


def _feature_config(store: Store, errors: Errors) -> FeatureConfig | None:
    """What run.json says of a feature run; None for token shards."""
    try:
        record = RunRecord.model_validate_json(store.read_bytes(RUN_JSON))
        return FeatureConfig.model_validate(record.config) if record.recipe == FEATURES_RECIPE else None
    except FileNotFoundError:
        return None
    except ValueError as error:
        errors.add(f"{RUN_JSON} cannot be read ({first_line(error)}); start anew in a new folder")
        return None


def _for_features(text: str) -> str:
    """The remedy of a feature run is another command, and its plan is written by it."""
    for command in ("tokenize", "plan"):
        text = text.replace(f"`ov2 {command}`", "`ov2 encode`")
    return text


def _add_fallen(rounds: Rounds, number: int, ledger: Ledger | None, totals: Totals, errors: Errors) -> None:
    """Rows that fell while the plan (0) or a round was planned."""
    rel = rounds.fallen_rel(number)
    try:
        file = rounds.store.open_read(rel)
    except FileNotFoundError:
        return
    with file:
        for place, text in enumerate(file, start=1):
            try:
                row = QuarantineRow.model_validate_json(text)
            except ValueError as error:
                errors.add(f"{rel}:{place}: {first_line(error)}; plan again into a new folder")
                continue
            if not rounds.is_history(row.line, number):
                totals.quarantined[row.reason] += 1
            if ledger is not None:
                ledger.add_fallen(row.line, errors, number=number)


def _check_strangers(
    store: Store, tars: dict[str, int], counts: dict[str, int], ledgers: set[str], errors: Errors
) -> None:
    """Files that no commit answers for: a plain glob over the published folders must be right too."""
    for name in sorted(tars):
        if f"{SHARDS_DIR}/{name.removesuffix('.idx')}" not in counts:
            errors.add(f"{SHARDS_DIR}/{name}: no commit answers for it; remove it: readers that glob would read it")
    for name in store.list(QUARANTINE_DIR):
        if name not in ledgers and not is_plan_file(f"{QUARANTINE_DIR}/{name}"):
            errors.add(f"{QUARANTINE_DIR}/{name}: no commit answers for it; remove it")
