"""Plan to committed shards; resumed by the same call.

Enters: a manifest, a config, a store. Leaves: RUN/shards, RUN/commits, RUN/quarantine, the index, and a summary. All
state stands in the store: what a commit says is done, everything else is done again. Samples stay in Ray's object
store until their shard is complete; then one worker writes its tar in plan order and commits it.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ov2_core import config as configs
from ov2_core.build_kernels import ensure_built
from ov2_core.config import RunConfig
from ov2_core.data.manifest import absolute_uri, manifest_digest
from ov2_core.make_sample import SampleOutcome, TransientItemError, make_sample
from ov2_core.media.bit_cost import bit_cost_reader
from ov2_core.plan import group_by_shard, load_plan, remove_stray_plan_files
from ov2_core.rounds import Rounds, list_rounds, load_rounds
from ov2_core.storage.commit import collect_orphans, commit_shard, committed_shards, finish_commits, unless_committed
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.index import write_index
from ov2_core.storage.layout import ATTEMPTS_DIR
from ov2_core.storage.summaries import BLOCK_SHARDS, iter_summaries
from ov2_core.storage.writer import Member, committed_sample, decode_record, write_tar
from ov2_core.tokenize_video import require_readers
from pipelines.drive import drive
from pipelines.each import each
from pipelines.observe import observed
from pipelines.options import RunOptions, open_executor, session
from pipelines.plan_videos import plan_videos
from pipelines.progress import Counters
from pipelines.run_identity import (
    Installation,
    check_same_plan,
    check_same_run,
    claim_run,
    code_version,
    load_run_record,
    make_run_record,
)
from pipelines.runtime import ObjectLostError, fetch, object_store_bytes
from pipelines.scheduling import Scheduler
from pipelines.shard_feed import MadeSample, Rows, ShardFeed, ShardWritten, WriteTask
from schemas.run import RunRecord
from schemas.shard import PlannedRow

log = logging.getLogger(__name__)
OPEN_STORE_SHARE = 0.5
"""Share of the object store that the samples of open shards may fill, by prediction."""
INLINE_STORE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeSummary:
    """What one invocation did."""

    num_shards: int
    """Of the run."""
    num_shards_before: int
    """Committed before this invocation."""
    num_made: int
    num_images: int
    num_tokens: int
    num_worker_deaths: int
    video_seconds: float
    cpu_seconds: float
    wall_seconds: float
    quarantined: dict[str, int] = field(default_factory=dict)


Make = Callable[[PlannedRow, RunConfig], SampleOutcome]
Outcome = SampleOutcome | None
"""None: a transient error, or a source that is not seen, among several videos; to be tried alone."""
Members = Sequence[Member] | None
"""Of a sample; None: there is none."""


def tokenize_videos(
    manifest_uri: str, store: Store, config: RunConfig, options: RunOptions, *, make: Make = make_sample
) -> TokenizeSummary:
    """Makes, or goes on with, a run: afterwards all its shards are committed and published, and the index is written.

    `make` is what a worker does with a row; tests give one that kills its worker.

    Raises:
        ValueError: the store holds another run or plan (each difference is named), or the manifest cannot be read.
        RunStoppedError: no item is to blame, e.g. workers cannot be started or a shard cannot be written.
    """
    began = time.monotonic()
    if config.tokenizer.policy == "legacy":  # a decoder's device need not be here, but where the workers are
        bit_cost_reader()
    digest = manifest_digest(manifest_uri)
    here = make_run_record(config, manifest_uri=absolute_uri(manifest_uri), manifest_digest=digest)
    there = load_run_record(store)
    if there is not None:
        check_same_run(there, here, where=store.root)
    plan = load_plan(store)
    if plan is None and there is not None:
        raise ValueError(f"{store.root} holds a run whose plan is gone; restore plan/ or give another --out")
    if plan is not None:
        check_same_plan(plan, config, digest, where=store.root)
        return complete_run(store, here, config, options, make=make, began=began)
    with session(options):
        plan_videos(manifest_uri, store, config, options, replace=False)
        return complete_run(store, here, config, options, make=make, began=began)


def complete_run(
    store: Store,
    here: RunRecord,
    config: RunConfig,
    options: RunOptions,
    *,
    make: Make = make_sample,
    began: float | None = None,
) -> TokenizeSummary:
    """Commits all shards of the plan and of all rounds that have no commit, and writes the index.

    here: the run's record, which the caller has compared with what stands there.
    """
    began = time.monotonic() if began is None else began
    rounds = load_rounds(store)
    assert rounds is not None, "no plan"
    claim_run(store, here)
    finish_commits(store)
    before = frozenset(committed_shards(store))
    counters = Counters("tokenize", num_shards=rounds.num_shards, num_shards_done=len(before))
    if len(before) < rounds.num_shards:
        with session(options):
            _make_missing(rounds, config, options, before, counters, make)
    # Every shard is committed now: an attempt that is still there belongs to nobody who could win; unless another process
    # has begun a round meanwhile, which then sweeps for itself.
    if len(list_rounds(store)) == len(rounds.records):
        collect_orphans(store)
    remove_stray_plan_files(store)
    write_index(store)
    return TokenizeSummary(
        num_shards=rounds.num_shards,
        num_shards_before=len(before),
        num_made=counters.num_made,
        num_images=counters.num_images,
        num_tokens=counters.num_tokens,
        num_worker_deaths=counters.num_deaths,
        video_seconds=counters.video_seconds,
        cpu_seconds=counters.cpu_seconds,
        wall_seconds=time.monotonic() - began,
        quarantined=dict(counters.quarantined),
    )


def _make_missing(
    rounds: Rounds, config: RunConfig, options: RunOptions, before: frozenset[int], counters: Counters, make: Make
) -> None:
    store = rounds.store
    counters.num_items = rounds.count_rows(skip_shards=before)
    counters.restart()
    job = TokenizeJob(
        config=config,
        store=store,
        config_digest=configs.digest(config),
        code_version=code_version(),
        make=make,
        ask_elsewhere=options.on_cluster,
    )
    with open_executor(job, options, Installation.here(runs=[store])) as (executor, num_workers):
        feed = ShardFeed(
            group_by_shard(rounds.iter_rows(skip_shards=before)), counters, **_open_limits(num_workers, options)
        )
        scheduler = Scheduler(feed, num_workers=num_workers, deadlines=options.deadlines)
        with observed(store, counters, scheduler, options.progress) as tick:
            summarise = _summarising(store, counters, tick)

            def on_tick() -> None:
                nonlocal num_workers
                summarise()
                if len(scheduler.workers) > num_workers:
                    num_workers = len(scheduler.workers)
                    feed.allow(**_open_limits(num_workers, options))

            drive(executor, scheduler, clock=time.monotonic, on_tick=on_tick)


def _open_limits(num_workers: int, options: RunOptions) -> dict[str, int]:
    """What a feed may have open, of what there is now."""
    store_bytes = INLINE_STORE_BYTES if options.workers == 0 else object_store_bytes()
    return {"max_open_bytes": int(OPEN_STORE_SHARE * store_bytes), "max_open_shards": num_workers + 2}


def _summarising(store: Store, counters: Counters, tick: Callable[[], None]) -> Callable[[], None]:
    """`tick`, which also has the newest commits summarised now and then, so that a resume has few to read."""
    next_shards = counters.num_shards_done + BLOCK_SHARDS

    def tick_and_summarise() -> None:
        nonlocal next_shards
        tick()
        if counters.num_shards_done >= next_shards:
            next_shards = counters.num_shards_done + BLOCK_SHARDS
            deque(iter_summaries(store), maxlen=0)

    return tick_and_summarise


@dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """Makes samples and writes shards in workers; see runtime.Job."""

    config: RunConfig
    store: Store
    config_digest: str
    code_version: str
    make: Make = make_sample
    ask_elsewhere: bool = False
    """What one node says of a missing source is not enough."""

    def warm_up(self) -> None:
        """Besides imports: kernels are built on a node that has none (ov2_core/build_kernels.py)."""
        require_readers(self.config.tokenizer)
        ensure_built()

    def run(self, payload: Rows | WriteTask) -> tuple[list[Outcome] | ShardWritten, list[Members] | None]:
        """Some videos, or one shard."""
        if isinstance(payload, WriteTask):
            with unless_committed(self.store, payload.shard):
                return self._write(payload), None
            return ShardWritten(payload.shard, []), None
        made: list[Outcome] = each(self._make, payload)
        outcomes = [None if outcome is None else dataclasses.replace(outcome, members=None) for outcome in made]
        return outcomes, [None if outcome is None else outcome.members for outcome in made]

    def _make(self, row: PlannedRow) -> SampleOutcome:
        outcome = self.make(row, self.config)
        if self.ask_elsewhere:
            outcome.require_seen()
        return outcome

    def _write(self, task: WriteTask) -> ShardWritten:
        lost: list[str] = []
        records = []
        batches = _LastBatch()

        def samples() -> Iterator[tuple[str, Sequence[Member]]]:
            for made in task.made:
                try:
                    members = batches.fetch(made)
                except ObjectLostError:
                    lost.append(made.key)
                    continue
                records.append(decode_record(dict(members)))
                yield made.key, members

        with scratch_folder(self.store) as folder:
            tar = None
            if task.made:
                try:
                    tar = write_tar(os.path.join(folder, "shard.tar"), samples())
                except ValueError:
                    if not lost:
                        raise
            if lost:
                return ShardWritten(task.shard, lost)
            committed = [
                committed_sample(
                    record,
                    placed,
                    cpu_seconds=made.outcome.cpu_seconds,
                    peak_rss_bytes=made.outcome.peak_rss_bytes,
                )
                for record, placed, made in zip(records, tar.samples if tar else [], task.made, strict=True)
            ]
            try:
                commit_shard(
                    self.store,
                    shard=task.shard,
                    tar=tar,
                    samples=committed,
                    filtered=task.filtered,
                    quarantined=task.quarantined,
                    config_digest=self.config_digest,
                    code_version=self.code_version,
                    started_unix_seconds=task.started_unix_seconds,
                    finished_unix_seconds=round(time.time(), 3),
                )
            except Exception as error:
                if is_transient(error):
                    raise TransientItemError(f"shard {task.shard}: {error}") from error
                raise
        return ShardWritten(task.shard, [])


class _LastBatch:
    """The members of the call that was asked for last: samples of one call lie side by side in their shard."""

    def __init__(self) -> None:
        self._reference: Any = None
        self._members: list[Members] = []

    def fetch(self, made: MadeSample) -> Sequence[Member]:
        """Members of a sample.

        Raises:
            ObjectLostError: they are gone with their node.
        """
        if made.batch is not self._reference:
            self._reference, self._members = made.batch, []
            self._members = fetch(made.batch)
        if not self._members:
            raise ObjectLostError(f"{made.key} went with its call's other samples")
        members = self._members[made.place]
        assert members is not None, f"{made.key} was not made"
        return members


@contextlib.contextmanager
def scratch_folder(store: Store) -> Iterator[str]:
    """On the store's own disk where that is local, so that a finished tar is moved by renaming it. Its parent stays: another
    worker may be about to use it."""
    if not store.is_local:
        with tempfile.TemporaryDirectory(prefix="ov2-shard-") as folder:
            yield folder
        return
    folder = store.local(f"{ATTEMPTS_DIR}/tmp-{uuid.uuid4().hex}")
    os.makedirs(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
