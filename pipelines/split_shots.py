"""A manifest of long videos to a manifest of their clips, a shot each.

Enters: a manifest, lengths. Leaves: a JSONL manifest, whose rows stand in the order of the first. It appears when it is complete;
a command that was cut off begins anew. Rows are split in workers, so a file that kills one costs no other row: after its
retries it stays as it is, and the plan of the new manifest deals with it.
"""

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from ov2_core.data.keys import derived_id
from ov2_core.data.manifest import ManifestItem, read_manifest, resolve_uri
from ov2_core.errors import BadItemError
from ov2_core.make_sample import NotHereError
from ov2_core.split_row import SplitConfig, SplitOutcome, SplitTask, split_row
from ov2_core.storage.files import Store
from pipelines.drive import drive
from pipelines.observe import observed
from pipelines.options import RunOptions, open_executor
from pipelines.progress import Counters
from pipelines.run_identity import Installation
from pipelines.scheduling import Scheduler
from pipelines.tasks import Task, Verdict

log = logging.getLogger(__name__)
SPLIT_ROOTS = ("ov2_core.split_row",)
WINDOW_ROWS = 1024
SPLIT_CPU_SECONDS = 10.0
"""A guess, for deadlines: nothing is known of a file before it is opened."""


@dataclass(kw_only=True, slots=True)
class SplitSummary:
    """What was read and written."""

    num_rows: int = 0
    num_shots: int = 0
    num_written: int = 0
    num_empty: int = 0
    """Rows whose shots were all too short."""
    video_seconds: float = 0.0
    problems: Counter[str] = field(default_factory=Counter)
    """Rows that could not be split and stand in the new manifest as they were, by reason."""


def split_shots(manifest_uri: str, out_uri: str, config: SplitConfig, options: RunOptions) -> SplitSummary:
    """Writes the manifest of clips.

    Raises:
        ValueError: the manifest cannot be read, or `out_uri` does not end in .jsonl.
        RunStoppedError: workers cannot be started.
    """
    folder, _, name = out_uri.rpartition("/")
    if not name.endswith(".jsonl"):
        raise ValueError(f"--out must name a .jsonl file, got {out_uri!r}")
    items = read_manifest(manifest_uri)
    counters = Counters("split")
    with tempfile.TemporaryDirectory(prefix="ov2-split-") as scratch:
        path = os.path.join(scratch, "rows.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            feed = SplitFeed(items, manifest_uri, file, counters)
            job = SplitJob(config, ask_elsewhere=options.on_cluster)
            with open_executor(job, options, Installation.here(SPLIT_ROOTS)) as (executor, num_workers):
                scheduler = Scheduler(feed, num_workers=num_workers, deadlines=options.deadlines)
                with observed(None, counters, scheduler, options.progress) as tick:
                    drive(executor, scheduler, clock=time.monotonic, on_tick=tick)
        Store(folder or ("/" if out_uri.startswith("/") else ".")).put_file(path, name)
    return feed.summary


@dataclass(frozen=True)
class SplitJob:
    """Splits rows in workers; see runtime.Job."""

    config: SplitConfig
    ask_elsewhere: bool = False
    """What one node says of a missing source is not enough."""

    def warm_up(self) -> None:
        """Nothing to warm: the imports were enough."""

    def run(self, payload: SplitTask) -> tuple[SplitOutcome, None]:
        """One row."""
        outcome = split_row(payload, self.config)
        if self.ask_elsewhere and outcome.problem is not None and outcome.problem.startswith("source_missing:"):
            raise NotHereError(outcome.problem.removeprefix("source_missing: "))
        return outcome, None


class SplitFeed:
    """Manifest rows to tasks, and their clips back into the manifest's order; see tasks.Feed."""

    def __init__(self, items: Iterator[ManifestItem], manifest_uri: str, file: IO[str], counters: Counters) -> None:
        self._items, self._manifest_uri, self._file, self._counters = items, manifest_uri, file, counters
        self._exhausted = False
        self._places: dict[int, int] = {}
        """Line -> place in the manifest's order, for rows at work."""
        self._ended: dict[int, SplitOutcome | str] = {}
        self._next_in = self._next_out = 0
        self.summary = SplitSummary()

    @property
    def finished(self) -> bool:
        """All rows are written."""
        return self._exhausted and self._next_out == self._next_in

    def pull(self) -> Task | None:
        """The next row to look into; malformed ones are passed on as their text."""
        while not self._exhausted and self._next_in - self._next_out < WINDOW_ROWS:
            item = next(self._items, None)
            if item is None:
                self._exhausted = True
                self._counters.num_items = self._next_in
                return None
            place, self._next_in = self._next_in, self._next_in + 1
            if item.row is None:
                self._settle(place, item.raw or "")
                continue
            row = item.row.model_copy(update={"id": item.row.id or derived_id(item.row)})
            medium = "video" if row.video is not None else "image"
            try:
                uri = resolve_uri(row.video or row.image or "", self._manifest_uri)
            except BadItemError as error:
                self._settle(place, SplitOutcome(line=item.line, rows=[row], problem=f"{error.reason}: {error}"))
                continue
            self._places[item.line] = place
            task = SplitTask(line=item.line, row=row.model_copy(update={medium: uri}))
            return Task(f"line {item.line}", task, SPLIT_CPU_SECONDS)
        return None

    def done(self, task: Task, info: Any, payload: Any) -> None:
        """A row was split."""
        outcome: SplitOutcome = info
        self._settle(self._places.pop(outcome.line), outcome)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A row that killed its worker, or never came back."""
        asked: SplitTask = task.payload
        outcome = SplitOutcome(line=asked.line, rows=[asked.row], problem=f"{verdict.reason}: {verdict.message}")
        self._settle(self._places.pop(asked.line), outcome)

    def _settle(self, place: int, outcome: SplitOutcome | str) -> None:
        self._ended[place] = outcome
        while self._next_out in self._ended:
            self._write(self._ended.pop(self._next_out))
            self._next_out += 1

    def _write(self, outcome: SplitOutcome | str) -> None:
        summary, counters = self.summary, self._counters
        summary.num_rows += 1
        counters.num_done += 1
        if isinstance(outcome, str):
            summary.problems["malformed_row"] += 1
            counters.quarantined["malformed_row"] += 1
            self._file.write(" ".join(outcome.splitlines()) + "\n")
            return
        if outcome.problem is not None:
            reason = outcome.problem.partition(":")[0]
            log.warning("line %d stays as it is: %s", outcome.line, outcome.problem.splitlines()[0])
            summary.problems[reason] += 1
            counters.quarantined[reason] += 1
        summary.num_shots += outcome.num_shots
        summary.num_empty += not outcome.rows
        summary.num_written += len(outcome.rows)
        summary.video_seconds += outcome.video_seconds
        counters.num_made += len(outcome.rows)
        counters.video_seconds += outcome.video_seconds
        for row in outcome.rows:
            self._file.write(row.model_dump_json(exclude_none=True, exclude={"schema_version"}) + "\n")
