"""The books of a run: every line of the manifest against what became of it, and the list of what is wrong.

Enters: the plan, then commits one by one. Leaves: totals and errors. Kept in memory: 20 bytes a planned row.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from ov2_core.storage.files import Store
from ov2_core.storage.layout import PLAN_JSON, PLAN_QUARANTINE, PLAN_ROWS, shard_name
from schemas.shard import CommitRecord, PlanRecord

MAX_ERRORS = 200


def anew(shard: int) -> str:
    """The remedy for a damaged shard."""
    name = shard_name(shard)
    return f"remove commits/{name}.json and shards/{name}.tar and run `ov2 tokenize` again to make the shard anew"


def first_line(error: BaseException) -> str:
    """A pydantic error takes many lines; its first two say what and where."""
    return "; ".join(line.strip() for line in str(error).splitlines()[:3])


@dataclass(slots=True)
class Errors:
    """Findings, the first MAX_ERRORS in full."""

    messages: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, message: str) -> None:
        if len(self.messages) < MAX_ERRORS:
            self.messages.append(message)
        else:
            self.left_out += 1

    def extend(self, messages: list[str]) -> None:
        for message in messages:
            self.add(message)

    def finished(self) -> list[str]:
        tail = [f"and {self.left_out} more; mend these and verify again"] if self.left_out else []
        return self.messages + tail


@dataclass(slots=True)
class Totals:
    committed: int = 0
    filtered: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    tar_bytes: int = 0
    num_images: int = 0
    num_tokens: int = 0

    def add_commit(self, record: CommitRecord) -> None:
        self.committed += len(record.samples)
        self.filtered += len(record.filtered)
        self.quarantined.update(row.reason for row in record.quarantined)
        self.tar_bytes += record.tar_bytes
        self.num_images += sum(sample.num_images for sample in record.samples)
        self.num_tokens += sum(sample.num_tokens for sample in record.samples)


class Ledger:
    """How often each planned line was accounted for."""

    def __init__(
        self, lines: npt.NDArray[np.int64], shards: npt.NDArray[np.int32], keys: npt.NDArray[np.uint64], errors: Errors
    ) -> None:
        order = np.argsort(lines, kind="stable")
        self._lines, self._shards, self._keys = lines[order], shards[order], keys[order]
        self._seen = np.zeros(len(lines), np.uint8)
        self._fallen: set[int] = set()
        for line in np.unique(self._lines[1:][self._lines[1:] == self._lines[:-1]])[:MAX_ERRORS]:
            errors.add(f"line {line}: planned twice; plan again into a new folder")
        unique, first = np.unique(self._keys, return_index=True)
        if len(unique) != len(self._keys):
            repeated = np.setdiff1d(np.arange(len(self._keys)), first)
            errors.add(f"line {self._lines[repeated[0]]}: its key is planned twice; plan again into a new folder")

    @classmethod
    def load(cls, store: Store, errors: Errors) -> "Ledger | None":
        lines, shards, keys = [], [], []
        try:
            with store.open_read(PLAN_ROWS) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=["line", "key", "shard"]):
                    lines.append(batch.column("line").to_numpy())
                    shards.append(batch.column("shard").to_numpy())
                    keys.append(np.array([_hash_key(key) for key in batch.column("key").to_pylist()], np.uint64))
        except (OSError, ValueError, KeyError) as error:
            errors.add(f"{PLAN_ROWS} cannot be read ({first_line(error)}); run `ov2 plan` into a new folder")
            return None
        empty = np.zeros(0, np.int64)
        return cls(
            np.concatenate([empty, *lines]),
            np.concatenate([empty, *shards]).astype(np.int32),
            np.concatenate([empty.astype(np.uint64), *keys]),
            errors,
        )

    def add_fallen(self, line: int, errors: Errors) -> None:
        """A line that the plan itself quarantined."""
        if line in self._fallen:
            errors.add(f"line {line}: stands twice in {PLAN_QUARANTINE}; plan again into a new folder")
        if self._find(line) is not None:
            errors.add(f"line {line}: both planned and quarantined by the plan; plan again into a new folder")
        self._fallen.add(line)

    def add_commit(self, record: CommitRecord, errors: Errors) -> None:
        ends: list[tuple[int, str | None]] = [(sample.line, sample.key) for sample in record.samples]
        ends += [(row.line, None) for row in record.filtered]
        ends += [(row.line, None) for row in record.quarantined]
        for line, key in ends:
            at = self._find(line)
            if at is None:
                errors.add(f"shard {record.shard}, line {line}: committed, but not in the plan; {anew(record.shard)}")
                continue
            if self._shards[at] != record.shard:
                errors.add(
                    f"shard {record.shard}, line {line}: planned for shard {self._shards[at]}; {anew(record.shard)}"
                )
            if key is not None and self._keys[at] != _hash_key(key):
                errors.add(f"shard {record.shard}, line {line}: key {key} is not the planned one; {anew(record.shard)}")
            if self._seen[at]:
                errors.add(f"shard {record.shard}, line {line}: accounted for twice; {anew(record.shard)}")
            self._seen[at] = 1

    def check_sum(self, plan: PlanRecord, committed: set[int], errors: Errors) -> None:
        """Each line once, each planned shard committed, and the numbers of the plan right."""
        missing = self._seen == 0
        open_shards = np.unique(self._shards[missing]).tolist()
        errors.left_out += len(open_shards[MAX_ERRORS:])
        for shard in open_shards[:MAX_ERRORS]:
            lines = self._lines[missing & (self._shards == shard)].tolist()
            shown = ", ".join(map(str, lines[:5])) + (", .." if len(lines) > 5 else "")
            if shard in committed:
                errors.add(f"shard {shard}: its commit leaves out {len(lines)} rows (lines {shown}); {anew(shard)}")
            else:
                errors.add(
                    f"shard {shard}: not committed yet ({len(lines)} rows: lines {shown}); run `ov2 tokenize` again"
                )
        rows = len(self._lines) + len(self._fallen)
        if rows != plan.manifest_rows:
            errors.add(
                f"{PLAN_JSON}: the manifest has {plan.manifest_rows} rows, but the plan accounts for {rows}; "
                "plan again into a new folder"
            )
        for shard in sorted(committed - set(range(plan.num_shards))):
            errors.add(f"shard {shard}: committed, but the plan has {plan.num_shards} shards; {anew(shard)}")

    def _find(self, line: int) -> int | None:
        at = int(np.searchsorted(self._lines, line))
        return at if at < len(self._lines) and self._lines[at] == line else None


def _hash_key(key: str) -> int:
    """64 bits of a key: equal keys are found, and a chance collision needs billions of rows."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
