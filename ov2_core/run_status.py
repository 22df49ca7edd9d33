"""How a run stands, from its storage alone: what `ov2 status` and `ov2 failed` tell, while it runs or long after.

Enters: a Store. Leaves: a RunStatus, or the rows that stand quarantined. Costs one listing, the summaries of the commits (each
commit is read once, by whoever comes first), and the commits that hold what is shown or asked for.
"""

import heapq
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ov2_core.rounds import Rounds, load_rounds
from ov2_core.storage.commit import load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.invocations import load_invocations
from ov2_core.storage.layout import RUN_JSON
from ov2_core.storage.summaries import iter_summaries
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
    filtered: dict[str, int] = field(default_factory=dict)
    """By rule."""
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
        return self.manifest_rows - self.committed - sum(self.filtered.values()) - sum(self.quarantined.values())

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
    filtered: Counter[str] = Counter()
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
    youngest: list[tuple[float, int, int]] = []  # (finished, line, shard) of fallen rows
    for summary in iter_summaries(store):
        status.num_shards_committed += 1
        status.committed += summary.num_samples
        status.num_tokens += summary.num_tokens
        status.tar_bytes += summary.tar_bytes
        status.last_commit_unix_seconds = max(status.last_commit_unix_seconds or 0.0, summary.finished_unix_seconds)
        number = 0 if rounds is None else rounds.round_of(summary.shard)
        for rule, lines in summary.filtered.items():
            filtered[rule] += sum(rounds is None or not rounds.is_history(line, number) for line in lines)
        for reason, lines in summary.quarantined.items():
            for line in lines:
                if rounds is None or not rounds.is_history(line, number):
                    quarantined[reason] += 1
                    youngest.append((summary.finished_unix_seconds, line, summary.shard))
        youngest = heapq.nlargest(num_newest, youngest)
    status.filtered = dict(sorted(filtered.items()))
    status.quarantined = dict(sorted(quarantined.items()))
    for shard in {shard for _, _, shard in youngest}:
        commit = load_commit(store, shard)
        shown = {line for _, line, other in youngest if other == shard}
        newest += [(commit.finished_unix_seconds, row.line, row) for row in commit.quarantined if row.line in shown]
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
    fallen = (load_commit(store, summary.shard).quarantined for summary in iter_summaries(store) if summary.quarantined)
    rows = (row for found in fallen for row in found) if rounds is None else rounds.iter_quarantined()
    return (row for row in rows if reason is None or row.reason == reason)
