"""A stage's index to shards of its own: upstream's packed samples, the Energon index, the commit contract of token shards.

Enters: a store that holds packs/ and tars.parquet, the StageRecord. Leaves: shards/, commits/, .nv-meta/, and the record with
form "shards". A shard is the packs of one stretch of the index, cut by the bytes that they read; a worker makes and commits it.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ov2_core.data.chunks import OWN_RUN
from ov2_core.data.stage import PackIndex, TarTable
from ov2_core.data.stage_shards import PackedPack, committed_pack, shard_spans
from ov2_core.make_sample import TransientItemError, peak_rss_bytes
from ov2_core.storage.commit import collect_orphans, commit_shard, committed_shards, finish_commits, unless_committed
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.index import write_index
from ov2_core.storage.writer import Member, write_tar
from pipelines.drive import drive
from pipelines.options import RunOptions, open_executor
from pipelines.progress import Counters, show
from pipelines.run_identity import Installation, code_version
from pipelines.scheduling import Scheduler
from pipelines.tasks import RunStoppedError, Task, Verdict
from pipelines.tokenize_videos import scratch_folder
from schemas.stage import StageRecord

log = logging.getLogger(__name__)
SHARD_ROOTS = ("ov2_core.data.stage_shards", "ov2_core.storage.commit")
SECONDS_PER_BYTE = 1e-7


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpan:
    """Packs [start, stop) make one shard."""

    shard: int
    start: int
    stop: int
    num_bytes: int


def materialize(store: Store, record: StageRecord, *, shard_bytes: int, run_options: RunOptions) -> StageRecord:
    """Makes, or goes on with, the stage's shards.

    Raises:
        RunStoppedError: a pack's source cannot be read; it is named.
    """
    spans = [
        ShardSpan(shard=i, start=start, stop=stop, num_bytes=num_bytes)
        for i, (start, stop, num_bytes) in enumerate(shard_spans(PackIndex(store, record), shard_bytes=shard_bytes))
    ]
    finish_commits(store)
    before = frozenset(committed_shards(store))
    missing = [span for span in spans if span.shard not in before]
    counters = Counters("curriculum", num_items=sum(span.stop - span.start for span in missing))
    counters.num_shards, counters.num_shards_done = len(spans), len(spans) - len(missing)
    if missing:
        job = MaterializeJob(store, record)
        feed = SpanFeed(missing, counters)
        runs = [store, *(Store(run) for run in TarTable(store).runs() if run != OWN_RUN)]
        installation = Installation.here(SHARD_ROOTS, runs=runs)
        with (
            open_executor(job, run_options, installation) as (executor, num_workers),
            show(counters, run_options.progress) as redraw,
        ):
            scheduler = Scheduler(feed, num_workers=min(num_workers, len(missing)), deadlines=run_options.deadlines)
            drive(executor, scheduler, clock=time.monotonic, on_tick=redraw)
    collect_orphans(store)
    write_index(store)
    return record.model_copy(update={"form": "shards"})


class MaterializeJob:
    """Writes and commits shards in workers; see runtime.Job."""

    def __init__(self, store: Store, record: StageRecord) -> None:
        self.store, self.record = store, record
        self._packs: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packs": None}

    def warm_up(self) -> None:
        """Opens the index."""
        self._packs = PackedPack.open(self.store, self.record)

    def run(self, payload: ShardSpan) -> tuple[int, None]:
        """One shard; returns its number of packs, or raises what it could not read."""
        try:
            with unless_committed(self.store, payload.shard):
                return self._write(payload), None
            return 0, None
        except Exception as error:
            if is_transient(error):
                raise TransientItemError(f"shard {payload.shard}: {error}") from error
            raise

    def _write(self, span: ShardSpan) -> int:
        began, began_cpu = round(time.time(), 3), time.process_time()
        made = []

        def samples() -> Iterator[tuple[str, list[Member]]]:
            for number in range(span.start, span.stop):
                packed = self._packs.read(number)
                made.append(packed)
                failpoint("mid_materialize")
                yield packed.key, packed.take_members()

        with scratch_folder(self.store) as folder:
            tar = write_tar(os.path.join(folder, "shard.tar"), samples())
            cpu_seconds = (time.process_time() - began_cpu) / len(made)
            commit_shard(
                self.store,
                shard=span.shard,
                tar=tar,
                samples=[
                    committed_pack(packed, placed, cpu_seconds=cpu_seconds, peak_rss_bytes=peak_rss_bytes())
                    for packed, placed in zip(made, tar.samples, strict=True)
                ],
                filtered=[],
                quarantined=[],
                config_digest=self.record.digest,
                code_version=code_version(SHARD_ROOTS),
                started_unix_seconds=began,
                finished_unix_seconds=round(time.time(), 3),
            )
        return span.stop - span.start


class SpanFeed:
    """Shards to tasks. See tasks.Feed."""

    def __init__(self, spans: list[ShardSpan], counters: Counters) -> None:
        self._fresh = iter(spans)
        self._num_left = len(spans)
        self._counters = counters

    @property
    def finished(self) -> bool:
        """All shards are committed."""
        return self._num_left == 0

    def pull(self) -> Task | None:
        """The next shard."""
        span = next(self._fresh, None)
        if span is None:
            return None
        return Task(f"shard {span.shard}", span, span.num_bytes * SECONDS_PER_BYTE)

    def done(self, task: Task, info: int, payload: Any) -> None:
        """A shard is committed."""
        self._num_left -= 1
        self._counters.num_done += info
        self._counters.num_made += info
        self._counters.num_shards_done += 1

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A pack that cannot be read: the stage would not hold what its index says."""
        raise RunStoppedError(f"{task.name}: {verdict.message}")
