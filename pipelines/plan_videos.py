"""Manifest to plan: every row is read, named, probed in a worker, priced and placed in a shard.

Enters: a manifest URL, a config, a store. Leaves: the plan's files (ov2_core/plan.py) and its record. Probes finish
in any order; a window of bounded size puts them back into the manifest's, so the plan is the same whatever the
workers did.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ov2_core import config as configs
from ov2_core.config import RunConfig
from ov2_core.data.keys import IdLedger
from ov2_core.data.manifest import ManifestItem, RawRow, absolute_uri, manifest_digest, read_rows
from ov2_core.filters.corpus import CorpusRules, corpus_rules
from ov2_core.make_sample import (
    ProbeOutcome,
    ProbeTask,
    make_probe,
    quarantine_row,
)
from ov2_core.plan import PlannedText, PlanWriter, load_plan, planned_text, remove_plan
from ov2_core.plan_row import duplicate, name_row
from ov2_core.plan_totals import PlanTotals
from ov2_core.probe_cache import CachedProbe
from ov2_core.redact import redacted
from ov2_core.storage.files import Store
from pipelines.drive import drive
from pipelines.each import each
from pipelines.observe import observed
from pipelines.options import RunOptions, open_executor
from pipelines.progress import Counters
from pipelines.run_identity import Installation, check_same_plan, code_version, library_versions, load_run_record
from pipelines.scheduling import Scheduler
from pipelines.tasks import Task, Verdict
from schemas.shard import PlannedRow, PlanRecord, QuarantineRow

log = logging.getLogger(__name__)
WINDOW_ROWS = 16384
"""Rows between the first that has not ended and the last that was read."""
TASK_SECONDS = 0.5
MAX_TASK_ROWS = 256
PROBE_ROOTS = ("ov2_core.media.probe", "ov2_core.media.image", "ov2_core.filters.pixels", "schemas.video")
"""Modules from which all comes that a probe says."""
PROBE_SECONDS = 0.1
"""Assumed until the first comes back."""


Probe = Callable[[ProbeTask, RunConfig], ProbeOutcome]


def plan_videos(
    manifest_uri: str,
    store: Store,
    config: RunConfig,
    options: RunOptions,
    *,
    replace: bool = True,
    probe: Probe = make_probe,
) -> PlanRecord:
    """Makes the plan of a manifest; where another process makes one meanwhile, that one stands and is returned.

    replace: a plan that no run has used yet is taken away first.

    `probe` is what a worker does with a row; benchmarks give one that opens nothing.

    Raises:
        ValueError: the manifest cannot be read, or the store already holds a run.
        RunStoppedError: workers cannot be started.
    """
    digest = manifest_digest(manifest_uri)
    if load_run_record(store) is not None:
        there = None if replace else load_plan(store)  # of a command that has come and begun the run meanwhile
        if there is None:
            raise ValueError(
                f"{store.root} already holds a run made from its plan; `ov2 tokenize` resumes it, and another --out plans anew"
            )
        check_same_plan(there, config, digest, where=store.root)
        return there
    items = read_rows(manifest_uri)
    if replace:
        remove_plan(store)
    counters = Counters("plan")
    with IdLedger() as ledger, PlanWriter(store) as writer, corpus_rules(config.filter) as rules:
        feed = PlanFeed(items, manifest_uri, config, writer, ledger, counters, rules=rules)
        probe_all(feed, store, config, options, counters, probe=probe)
        there = writer.finish(feed.record(manifest_digest=digest))
    check_same_plan(there, config, digest, where=store.root)
    return there


def probe_all(
    feed: "PlanFeed",
    store: Store,
    config: RunConfig,
    options: RunOptions,
    counters: Counters,
    *,
    probe: Probe = make_probe,
) -> None:
    """Probes the feed's rows until it is finished."""
    if options.probe_cache is not None:
        probe = CachedProbe(os.path.abspath(options.probe_cache), f"{code_version(PROBE_ROOTS)} {library_versions()}")
    job = ProbeJob(config, feed.manifest_uri, probe, ask_elsewhere=options.on_cluster)
    installation = Installation.here(PROBE_ROOTS)
    with open_executor(job, options, installation) as (executor, num_workers):
        scheduler = Scheduler(feed, num_workers=num_workers, deadlines=options.deadlines)
        with observed(store, counters, scheduler, options.progress) as tick:
            drive(executor, scheduler, clock=time.monotonic, on_tick=tick)


Rows = tuple[tuple[int, RawRow | ManifestItem], ...]
"""(place in the manifest's order, row as read)."""
Found = PlannedText | QuarantineRow | None
"""None: a transient error or a source that is not seen, to be tried alone."""


@dataclass(frozen=True)
class ProbeJob:
    """Plans rows in workers; see runtime.Job."""

    config: RunConfig
    manifest_uri: str
    probe: Probe = make_probe
    ask_elsewhere: bool = False
    """What one node says of a missing source is not enough."""

    def warm_up(self) -> None:
        """Nothing to warm: the imports were enough."""

    def run(self, payload: Rows) -> tuple[tuple[list[Found], float], None]:
        """What each row became, and the seconds it took."""
        began = time.perf_counter()
        found: list[Found] = each(lambda item: self._plan(item[1]), payload)
        return (found, time.perf_counter() - began), None

    def _plan(self, raw: RawRow | ManifestItem) -> PlannedText | QuarantineRow:
        named = name_row(raw, self.manifest_uri)
        if isinstance(named, QuarantineRow):
            return named
        outcome = self.probe(named, self.config)
        if self.ask_elsewhere:
            outcome.require_seen()
        if outcome.planned is not None:
            return planned_text(outcome.planned)
        assert outcome.quarantined is not None
        return outcome.quarantined


class PlanFeed:
    """Manifest rows to tasks and back into order; see tasks.Feed.

    A task holds as many rows as are planned in about TASK_SECONDS, so that the cost of a call is divided among many where a
    probe is quick. One whose worker dies or hangs is taken apart, and each of its rows is tried alone.
    """

    def __init__(
        self,
        items: Iterator[RawRow] | Iterator[ManifestItem],
        manifest_uri: str,
        config: RunConfig,
        writer: PlanWriter,
        ledger: IdLedger,
        counters: Counters,
        *,
        window_rows: int = WINDOW_ROWS,
        first_shard: int = 0,
        rules: CorpusRules | None = None,
    ) -> None:
        self._items = items
        self.manifest_uri = manifest_uri
        self._config = config
        self._writer = writer
        self._ledger = ledger
        self._counters = counters
        self._window_rows = window_rows
        self._totals = PlanTotals(writer, config.shards, first_shard=first_shard)
        self._rules = rules
        self._exhausted = False
        self._next_in = 0
        self._next_out = 0
        self._alone: deque[tuple[int, RawRow | ManifestItem]] = deque()
        self._ended: dict[int, PlannedText | QuarantineRow] = {}
        self._row_seconds = PROBE_SECONDS
        self._num_quarantined = 0

    @property
    def finished(self) -> bool:
        """All rows have ended."""
        return self._exhausted and self._next_out == self._next_in

    def pull(self) -> Task | None:
        """The next rows."""
        if self._alone:
            return self._task((self._alone.popleft(),))
        places = self._next_out + self._window_rows - self._next_in
        wanted = min(places, max(1, min(MAX_TASK_ROWS, int(TASK_SECONDS / self._row_seconds))))
        rows = tuple(enumerate(islice(self._items, wanted), start=self._next_in)) if wanted > 0 else ()
        self._next_in += len(rows)
        if len(rows) < wanted:
            self._exhausted = True
            self._counters.num_items = self._next_in
        return self._task(rows) if rows else None

    def done(self, task: Task, info: Any, payload: Any) -> None:
        """Rows came back."""
        found, seconds = info
        self._row_seconds = max(1e-6, seconds / len(found))
        for (place, raw), one in zip(task.payload, found, strict=True):
            if one is None:
                self._alone.append((place, raw))
            else:
                self._settle(place, one)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """Rows that killed their worker, or never came back."""
        if len(task.payload) > 1:
            self._alone.extend(task.payload)
            return
        ((place, raw),) = task.payload
        named = name_row(raw, self.manifest_uri)
        if isinstance(named, ProbeTask):
            named = quarantine_row(
                line=named.line,
                id=named.id,
                uri=named.uri,
                row=named.row,
                reason=verdict.reason,
                stage="probe",
                message=verdict.message,
                attempts=verdict.attempts,
            )
        self._settle(place, named)

    def record(self, *, manifest_digest: str) -> PlanRecord:
        """The plan's totals. Writes what is still held back."""
        assert self.finished
        return PlanRecord(
            manifest_uri=redacted(absolute_uri(self.manifest_uri)),
            manifest_digest=manifest_digest,
            manifest_rows=self._next_in,
            config_digest=configs.digest(self._config),
            config=configs.to_dict(self._config),
            num_quarantined=self._num_quarantined,
            **self._totals.finish(),
        )

    def _task(self, rows: Rows) -> Task:
        raw, last = rows[0][1], rows[-1][1]
        name = f"line {raw.line}" if len(rows) == 1 else f"lines {raw.line} to {last.line}"
        return Task(name, rows, len(rows) * self._row_seconds, divisible=len(rows) > 1)

    def _settle(self, place: int, found: PlannedText | QuarantineRow) -> None:
        self._counters.num_done += 1
        self._ended[place] = found
        while (ended := self._ended.pop(self._next_out, None)) is not None:
            self._end(ended)
            self._next_out += 1

    def _end(self, found: PlannedText | QuarantineRow) -> None:
        """A row whose turn it is."""
        if found.id is not None:
            _, refusal = self._ledger.claim(found.id, found.line)
            if refusal is not None:
                found = duplicate(found, refusal)
        if isinstance(found, QuarantineRow):
            self._num_quarantined += 1
            self._counters.quarantined[found.reason] += 1
            self._writer.quarantine(found)
            return
        if self._rules is not None and found.rule is None:
            found = planned_text(self._rules.judge(PlannedRow.model_validate_json(found.text)))
        self._counters.num_made += found.rule is None
        self._counters.num_filtered += found.rule is not None
        self._counters.video_seconds += found.video_seconds
        self._totals.add(found)
