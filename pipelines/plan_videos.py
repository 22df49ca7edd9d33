"""Manifest to plan: every row is read, named, probed in a worker, priced and placed in a shard.

Enters: a manifest URL, a config, a store. Leaves: the plan's files (ov2_core/plan.py) and its record. Probes finish
in any order; a window of bounded size puts them back into the manifest's, so the plan is the same whatever the
workers did.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ov2_core import config as configs
from ov2_core.config import RunConfig
from ov2_core.data.keys import IdLedger, derived_id
from ov2_core.data.manifest import ManifestItem, absolute_uri, manifest_digest, read_manifest, resolve_uri
from ov2_core.errors import BadItemError
from ov2_core.make_sample import ProbeOutcome, ProbeTask, make_probe, quarantine_row
from ov2_core.plan import PlanWriter, ShardCutter, remove_plan
from ov2_core.redact import redacted
from ov2_core.storage.files import Store
from pipelines.observe import observed
from pipelines.options import RunOptions, open_executor
from pipelines.progress import Counters
from pipelines.run_identity import load_run_record
from pipelines.scheduling import Scheduler, Task, Verdict, drive
from schemas.shard import PlannedRow, PlanRecord, QuarantineRow

log = logging.getLogger(__name__)
WINDOW_ROWS = 4096
PROBE_CPU_SECONDS = 0.1


def plan_videos(manifest_uri: str, store: Store, config: RunConfig, options: RunOptions) -> PlanRecord:
    """Makes the plan of a manifest, replacing one that no run has used yet.

    Raises:
        ValueError: the manifest cannot be read, or the store already holds a run.
        RunStoppedError: workers cannot be started.
    """
    if load_run_record(store) is not None:
        raise ValueError(
            f"{store.root} already holds a run made from its plan; `ov2 tokenize` resumes it, and another --out plans anew"
        )
    digest = manifest_digest(manifest_uri)
    items = read_manifest(manifest_uri)
    remove_plan(store)
    counters = Counters("plan")
    with IdLedger() as ledger, PlanWriter(store) as writer:
        feed = PlanFeed(items, manifest_uri, config, writer, ledger, counters)
        probe_all(feed, store, config, options, counters)
        record = feed.record(manifest_digest=digest)
        writer.finish(record)
    return record


def probe_all(feed: "PlanFeed", store: Store, config: RunConfig, options: RunOptions, counters: Counters) -> None:
    """Probes the feed's rows until it is finished."""
    with open_executor(ProbeJob(config), options) as (executor, num_workers):
        scheduler = Scheduler(feed, num_workers=num_workers, deadlines=options.deadlines)
        with observed(store, counters, scheduler, options.progress) as tick:
            drive(executor, scheduler, clock=time.monotonic, on_tick=tick)


@dataclass(frozen=True)
class ProbeJob:
    """Probes in workers; see runtime.Job."""

    config: RunConfig

    def warm_up(self) -> None:
        """Nothing to warm: the imports were enough."""

    def run(self, payload: ProbeTask) -> tuple[ProbeOutcome, None]:
        """One probe."""
        return make_probe(payload, self.config), None


class PlanFeed:
    """Manifest rows to probe tasks and back into order; see scheduling.Feed."""

    def __init__(
        self,
        items: Iterator[ManifestItem],
        manifest_uri: str,
        config: RunConfig,
        writer: PlanWriter,
        ledger: IdLedger,
        counters: Counters,
        *,
        window_rows: int = WINDOW_ROWS,
        first_shard: int = 0,
    ) -> None:
        self._items = items
        self._manifest_uri = manifest_uri
        self._config = config
        self._writer = writer
        self._ledger = ledger
        self._counters = counters
        self._window_rows = window_rows
        self._cutter = ShardCutter(config.shards)
        self._first_shard = first_shard
        self._exhausted = False
        self._next_in = 0
        self._next_out = 0
        self._ended: dict[int, ProbeOutcome] = {}
        self._places: dict[int, int] = {}
        """Line -> place in the manifest's order, for rows at work."""
        self._num_planned = self._num_quarantined = 0
        self._tokens = self._bytes = 0
        self._cpu_seconds = self._video_seconds = 0.0

    @property
    def finished(self) -> bool:
        """All rows are written."""
        return self._exhausted and self._next_out == self._next_in

    def pull(self) -> Task | None:
        """The next row that needs a probe; rows that fall before it are settled on the way."""
        while not self._exhausted and self._next_in - self._next_out < self._window_rows:
            item = next(self._items, None)
            if item is None:
                self._exhausted = True
                self._counters.num_items = self._next_in
                return None
            place, self._next_in = self._next_in, self._next_in + 1
            found = self._name(item)
            if isinstance(found, ProbeTask):
                self._places[found.line] = place
                return Task(f"line {found.line}", found, PROBE_CPU_SECONDS)
            self._settle(place, ProbeOutcome(line=item.line, quarantined=found))
        return None

    def done(self, task: Task, info: Any, payload: Any) -> None:
        """A probe came back."""
        self._settle(self._places.pop(info.line), info)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A probe that killed its worker, or never came back."""
        asked: ProbeTask = task.payload
        row = quarantine_row(
            line=asked.line,
            id=asked.id,
            uri=asked.uri,
            row=asked.row,
            reason=verdict.reason,
            stage="probe",
            message=verdict.message,
            attempts=verdict.attempts,
        )
        self._settle(self._places.pop(asked.line), ProbeOutcome(line=asked.line, quarantined=row))

    def record(self, *, manifest_digest: str) -> PlanRecord:
        """The plan's totals."""
        assert self.finished
        return PlanRecord(
            manifest_uri=redacted(absolute_uri(self._manifest_uri)),
            manifest_digest=manifest_digest,
            manifest_rows=self._next_in,
            config_digest=configs.digest(self._config),
            num_shards=self._cutter.num_shards,
            num_planned=self._num_planned,
            num_quarantined=self._num_quarantined,
            predicted_tokens=self._tokens,
            predicted_bytes=self._bytes,
            predicted_cpu_seconds=round(self._cpu_seconds, 3),
            predicted_video_seconds=round(self._video_seconds, 3),
        )

    def _name(self, item: ManifestItem) -> ProbeTask | QuarantineRow:
        if item.row is None:
            return quarantine_row(
                line=item.line,
                id=None,
                uri=None,
                reason="malformed_row",
                stage="manifest",
                message=item.error or "",
                raw=item.raw,
            )
        row = item.row
        uri = row.video or row.image or ""
        id = row.id or derived_id(row)
        key, refusal = self._ledger.claim(id, item.line)
        try:
            uri = resolve_uri(uri, self._manifest_uri)
            if refusal is not None:
                raise BadItemError("duplicate_id", refusal, stage="manifest")
        except BadItemError as error:
            return quarantine_row(
                line=item.line, id=id, uri=uri, row=row, reason=error.reason, stage=error.stage, message=str(error)
            )
        return ProbeTask(line=item.line, id=id, key=key, uri=uri, row=row)

    def _settle(self, place: int, outcome: ProbeOutcome) -> None:
        self._counters.num_done += 1
        if outcome.quarantined is not None:
            self._counters.quarantined[outcome.quarantined.reason] += 1
        elif outcome.planned is not None:
            self._counters.num_made += 1
            self._counters.video_seconds += outcome.planned.probe.duration_seconds
        self._ended[place] = outcome
        while self._next_out in self._ended:
            self._write(self._ended.pop(self._next_out))
            self._next_out += 1

    def _write(self, outcome: ProbeOutcome) -> None:
        if outcome.quarantined is not None:
            self._num_quarantined += 1
            self._writer.quarantine(outcome.quarantined)
            return
        assert outcome.planned is not None
        planned: PlannedRow = outcome.planned
        shard = self._first_shard + self._cutter.place(planned.predicted_bytes)
        self._writer.add(planned.model_copy(update={"shard": shard}))
        self._num_planned += 1
        self._tokens += planned.predicted_tokens
        self._bytes += planned.predicted_bytes
        self._cpu_seconds += planned.predicted_cpu_seconds
        self._video_seconds += planned.probe.duration_seconds
