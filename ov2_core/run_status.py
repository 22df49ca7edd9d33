"""How a run stands, from its storage alone: what `ov2 status` and `ov2 failed` tell, while it runs or long after.

Enters: a Store. Leaves: a RunStatus, or the rows that stand quarantined. Costs one listing, one small column of the plan
and one read a commit, a few at a time; nothing is kept of a commit but counts and its youngest fallen rows.
"""

import heapq
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ov2_core.rounds import Rounds, load_rounds
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.invocations import load_invocations
from ov2_core.storage.layout import RUN_JSON
from schemas.run import InvocationRecord
from schemas.shard import QuarantineRow

SILENT_SECONDS = 60.0
"""A running invocation that has not been seen for as long is called silent: its driver is dead, or cut off."""


@dataclass(kw_only=True, slots=True)
class RunStatus:
    """Rows of the manifest (and of what was appended) by what became of them."""

    root: str
    manifest_rows: int | None
    """None: no plan yet."""
    committed: int = 0
    filtered: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    num_rounds: int = 0
    num_shards: int = 0
    num_shards_committed: int = 0
    num_tokens: int = 0
    tar_bytes: int = 0
    last_commit_unix_seconds: float | None = None
    newest: list[QuarantineRow] = field(default_factory=list)
    """Youngest first, by the commit that told of them."""
    invocations: list[InvocationRecord] = field(default_factory=list)
    """Oldest first."""

    @property
    def left(self) -> int | None:
        """Rows without an end; of a shard all rows end with its commit."""
        if self.manifest_rows is None:
            return None
        return self.manifest_rows - self.committed - self.filtered - sum(self.quarantined.values())

    def alive(self, now: float | None = None) -> list[InvocationRecord]:
        """Invocations that run, by their last sign of life."""
        now = time.time() if now is None else now
        return [
            one for one in self.invocations if one.state == "running" and now - one.seen_unix_seconds < SILENT_SECONDS
        ]

    def silent(self, now: float | None = None) -> list[InvocationRecord]:
        """Invocations that never ended and are not heard of any more, and that no later one has followed."""
        now = time.time() if now is None else now
        return [
            one
            for one in self.invocations[-1:]
            if one.state == "running" and now - one.seen_unix_seconds >= SILENT_SECONDS
        ]


def read_status(store: Store, *, num_newest: int = 5) -> RunStatus:
    """The run's state.

    Raises:
        ValueError: there is no run, no plan and no invocation at the store's root.
    """
    rounds, invocations = load_rounds(store), load_invocations(store)
    if rounds is None and not invocations and not store.exists(RUN_JSON):
        raise ValueError(f"no run at {store.root}: neither a plan nor run.json is there; is the path right?")
    status = RunStatus(
        root=store.root,
        manifest_rows=None if rounds is None else rounds.manifest_rows,
        num_rounds=0 if rounds is None else len(rounds.records),
        num_shards=0 if rounds is None else rounds.num_shards,
        invocations=invocations,
    )
    quarantined: Counter[str] = Counter()
    newest: list[tuple[float, int, QuarantineRow]] = []
    for number in range(len(rounds.records) + 1 if rounds else 0):
        assert rounds is not None
        for row in rounds.fallen(number):
            if not rounds.is_history(row.line, number):
                quarantined[row.reason] += 1
                _keep(
                    newest,
                    (0.0 if number == 0 else rounds.records[number - 1].created_unix_seconds, row.line, row),
                    num_newest,
                )
    for commit in iter_commits(store):
        status.num_shards_committed += 1
        status.committed += len(commit.samples)
        status.filtered += len(commit.filtered)
        status.num_tokens += sum(sample.num_tokens for sample in commit.samples)
        status.tar_bytes += commit.tar_bytes
        status.last_commit_unix_seconds = max(status.last_commit_unix_seconds or 0.0, commit.finished_unix_seconds)
        for row in commit.quarantined if rounds is None else rounds.quarantined_of(commit):
            quarantined[row.reason] += 1
            _keep(newest, (commit.finished_unix_seconds, row.line, row), num_newest)
    status.quarantined = dict(sorted(quarantined.items()))
    status.newest = [row for _, _, row in heapq.nlargest(num_newest, newest, key=lambda one: one[:2])]
    return status


def _keep(
    newest: list[tuple[float, int, QuarantineRow]], entry: tuple[float, int, QuarantineRow], num_newest: int
) -> None:
    newest.append(entry)
    if len(newest) > 4 * num_newest + 16:
        newest[:] = heapq.nlargest(num_newest, newest, key=lambda one: one[:2])


def iter_failed(store: Store, *, reason: str | None = None) -> Iterator[QuarantineRow]:
    """Rows that stand quarantined now: those of plans first, then by shard.

    Raises:
        ValueError: there is neither a plan nor a run.
    """
    rounds: Rounds | None = load_rounds(store)
    if rounds is None and not store.exists(RUN_JSON):
        raise ValueError(f"no run at {store.root}: neither a plan nor {RUN_JSON} is there; is the path right?")
    fallen = (row for commit in iter_commits(store) for row in commit.quarantined)
    rows = fallen if rounds is None else rounds.iter_quarantined()
    return (row for row in rows if reason is None or row.reason == reason)
