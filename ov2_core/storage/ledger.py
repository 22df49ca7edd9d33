"""The books of a run: every line of the manifest against what became of it, and the list of what is wrong.

Enters: the plan, then commits one by one. Leaves: totals and errors. Kept in memory: 20 bytes a planned row.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from ov2_core.rounds import Rounds
from ov2_core.storage.layout import PLAN_DIR, PLAN_JSON, shard_name
from schemas.shard import CommitRecord, FilteredRow, QuarantineRow

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
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    tar_bytes: int = 0
    num_images: int = 0
    num_tokens: int = 0

    def add_commit(
        self, record: CommitRecord, filtered: Sequence[FilteredRow], quarantined: Sequence[QuarantineRow]
    ) -> None:
        """filtered, quarantined: those of the record that no later round took."""
        self.committed += len(record.samples)
        self.filtered.update(row.rule for row in filtered)
        self.quarantined.update(row.reason for row in quarantined)
        self.tar_bytes += record.tar_bytes
        self.num_images += sum(sample.num_images for sample in record.samples)
        self.num_tokens += sum(sample.num_tokens for sample in record.samples)


class Ledger:
    """How often each planned line was accounted for."""

    def __init__(
        self,
        lines: npt.NDArray[np.int64],
        shards: npt.NDArray[np.int32],
        keys: npt.NDArray[np.uint64],
        errors: Errors,
        *,
        rounds: Rounds | None = None,
    ) -> None:
        order = np.lexsort((shards, lines))
        self._lines, self._shards, self._keys = lines[order], shards[order], keys[order]
        self._seen = np.zeros(len(lines), np.uint8)
        self._rounds = rounds
        self._fallen: list[set[int]] = [set() for _ in range(len(rounds.records) + 1 if rounds else 1)]
        """Of the plan, then of each round."""
        again = self._lines[1:] == self._lines[:-1]
        twice = again & (self._rounds_of(self._shards[1:]) == self._rounds_of(self._shards[:-1]))
        for line in np.unique(self._lines[1:][twice])[:MAX_ERRORS]:
            errors.add(f"line {line}: planned twice; plan again into a new folder")
        new = np.concatenate([[True], ~again])[: len(lines)]  # a replayed line comes again, with its own key
        first_lines, first_keys = self._lines[new], self._keys[new]
        unique, first = np.unique(first_keys, return_index=True)
        if len(unique) != len(first_keys):
            repeated = np.setdiff1d(np.arange(len(first_keys)), first)
            errors.add(f"line {first_lines[repeated[0]]}: its key is planned twice; plan again into a new folder")
        if (self._keys[1:] != self._keys[:-1])[again].any():
            errors.add("a replayed line has another key than before; plan again into a new folder")

    @classmethod
    def load(cls, rounds: Rounds, errors: Errors) -> "Ledger | None":
        lines, shards, keys = [], [], []
        for number in range(len(rounds.records) + 1):
            rel = rounds.rows_rel(number)
            try:
                with rounds.store.open_read(rel) as file:
                    for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=["line", "key", "shard"]):
                        lines.append(batch.column("line").to_numpy())
                        shards.append(batch.column("shard").to_numpy())
                        keys.append(np.array([_hash_key(key) for key in batch.column("key").to_pylist()], np.uint64))
            except (OSError, ValueError, KeyError) as error:
                errors.add(f"{rel} cannot be read ({first_line(error)}); run `ov2 plan` into a new folder")
                return None
        empty = np.zeros(0, np.int64)
        return cls(
            np.concatenate([empty, *lines]),
            np.concatenate([empty, *shards]).astype(np.int32),
            np.concatenate([empty.astype(np.uint64), *keys]),
            errors,
            rounds=rounds,
        )

    def add_fallen(self, line: int, errors: Errors, *, number: int = 0) -> None:
        """A line that the plan itself quarantined, or a round's (by its number)."""
        if line in self._fallen[number]:
            where = "the plan" if self._rounds is None else self._rounds.fallen_rel(number)
            errors.add(f"line {line}: stands twice in {where}; plan again into a new folder")
        if self._find(line, number) is not None:
            errors.add(f"line {line}: both planned and quarantined by the plan; plan again into a new folder")
        self._fallen[number].add(line)

    def add_commit(self, record: CommitRecord, errors: Errors) -> None:
        ends: list[tuple[int, str | None]] = [(sample.line, sample.key) for sample in record.samples]
        ends += [(row.line, None) for row in record.filtered]
        ends += [(row.line, None) for row in record.quarantined]
        number = self._round_of(record.shard)
        takeable = {row.line for row in record.quarantined} | {row.line for row in record.filtered}
        for line, key in ends:
            if self._rounds is not None and line not in takeable and self._rounds.is_history(line, number):
                errors.add(
                    f"shard {record.shard}, line {line}: a later round took it although it was committed; "
                    f"remove that round's {PLAN_DIR}/round-*.json, commits and shards"
                )
            at = self._find(line, number)
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

    def check_sum(self, rounds: Rounds, committed: set[int], errors: Errors) -> None:
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
        rows = len(set().union(*self._fallen).union(self._lines.tolist()) if rounds.records else self._fallen[0])
        rows += 0 if rounds.records else len(self._lines)
        if rows != rounds.manifest_rows:
            errors.add(
                f"{PLAN_JSON}: the manifest has {rounds.manifest_rows} rows, but the plan accounts for {rows}; "
                "plan again into a new folder"
            )
        for shard in sorted(committed - set(range(rounds.num_shards))):
            errors.add(f"shard {shard}: committed, but the plan has {rounds.num_shards} shards; {anew(shard)}")

    def _find(self, line: int, number: int) -> int | None:
        """Where a line stands that a round (0: the plan) planned."""
        low, high = np.searchsorted(self._lines, [line, line + 1])
        return next((at for at in range(low, high) if self._round_of(int(self._shards[at])) == number), None)

    def _round_of(self, shard: int) -> int:
        return 0 if self._rounds is None else self._rounds.round_of(shard)

    def _rounds_of(self, shards: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        starts = [record.first_shard for record in self._rounds.records] if self._rounds else []
        return np.searchsorted(np.array(starts, np.int64), shards, side="right")


def _hash_key(key: str) -> int:
    """64 bits of a key: equal keys are found, and a chance collision needs billions of rows."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
