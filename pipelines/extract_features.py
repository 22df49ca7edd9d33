"""Token shards to feature shards with a frozen encoder; resumed by the same call.

Enters: a finished token run, a model folder, a store. Leaves: RUN2/shards, RUN2/commits, RUN2/quarantine, the index, and a
summary. A shard of the source is a task: one worker reads it, encodes it in batches by tokens, writes the tar of the same number
and commits it, so features never pass through Ray's object store. All state stands in the store, as in tokenize_videos.
"""

import itertools
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ov2_core.features.layout import config_digest
from ov2_core.features.plan import ShardCost, SourceRun, check_fits, open_source, write_plan
from ov2_core.make_sample import TransientItemError, peak_rss_bytes
from ov2_core.storage.commit import (
    collect_orphans,
    commit_shard,
    committed_shards,
    finish_commits,
    load_commit,
    unless_committed,
)
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.index import write_index
from ov2_core.storage.layout import FEATURES_RECIPE
from ov2_core.storage.writer import Member, write_tar
from pipelines.drive import drive
from pipelines.feature_feed import FeatureFeed, FeatureTotals, ShardEncoded, ShardTask, TrialPassed, TrialTask
from pipelines.observe import observed
from pipelines.options import RunOptions, open_executor, session
from pipelines.progress import Counters
from pipelines.run_identity import (
    FEATURE_LEAVES,
    FEATURE_ROOTS,
    Installation,
    check_same_run,
    claim_run,
    code_version,
    library_versions,
    load_run_record,
)
from pipelines.scheduling import Scheduler
from pipelines.tokenize_videos import scratch_folder
from schemas.features import FeatureConfig, FeatureDtype, FeatureStage
from schemas.run import RunRecord
from schemas.shard import CommittedSample, PlanRecord, QuarantineRow

if TYPE_CHECKING:
    from ov2_core.features.extract import FeatureSample

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "numpy", "pillow")
"""Those whose version may change a feature's value."""
TOKENS_PER_BATCH = {"cpu": 1568, "cuda": 16384}
"""By default. 1568: eight canvases of 392 x 392."""
DECODE_THREADS = {"cpu": 1, "cuda": 4}
FLOPS_PER_SECOND = {"cpu": 5e9, "cuda": 2e13}
"""Of a worker, a careful guess: deadlines are 30 times what it predicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeOptions:
    """What is encoded, and how."""

    model: str
    """Folder of a merged model or, for unmerged features, of a standalone encoder; every node must see it."""
    stage: FeatureStage = "merged"
    dtype: FeatureDtype = "bf16"
    device: Literal["cpu", "cuda"] = "cpu"
    tokens_per_batch: int | None = None
    """Merged tokens; None: by device. Changes no value beyond rounding."""
    decode_threads: int | None = None

    def __post_init__(self) -> None:
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch must be >= 1, got {self.tokens_per_batch}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeSummary:
    """What one invocation did."""

    num_shards: int
    num_shards_before: int
    """Committed before this invocation."""
    num_made: int
    num_tokens: int
    num_worker_deaths: int
    wall_seconds: float
    worker_seconds: float
    """Workers at their shards, from the first read to the commit, summed."""
    encode_seconds: float
    """Of these, the encoder at work."""
    starved_seconds: float
    """The encoder waiting for pixels."""
    num_flops: float
    quarantined: dict[str, int] = field(default_factory=dict)

    @property
    def compute_share(self) -> float:
        """Share of the workers' time in which the encoder was at work."""
        return self.encode_seconds / self.worker_seconds if self.worker_seconds else 0.0


def describe_run(source: Store, options: EncodeOptions, *, with_digest: bool = True) -> tuple[SourceRun, FeatureConfig]:
    """The source and the identity of the features.

    Raises:
        ValueError: a source that is not finished, an encoder that cannot be read, or the two do not fit.
    """
    from ov2_core.features.encoder import describe_encoder

    run = open_source(source)
    config = describe_encoder(
        options.model,
        stage=options.stage,
        dtype=options.dtype,
        device=options.device,
        source_digest=run.digest,
        source_config_digest=run.config_digest,
        with_digest=with_digest,
    )
    check_fits(run, config)
    return run, config


def predict_features(source: Store, options: EncodeOptions) -> tuple[PlanRecord, FeatureConfig]:
    """Exact bytes and tokens of a feature run, from the source's commits and the model's config alone."""
    run, config = describe_run(source, options, with_digest=False)
    return write_plan(source, run, config, None)[0], config


def extract_features(source: Store, store: Store, options: EncodeOptions, run_options: RunOptions) -> EncodeSummary:
    """Makes, or goes on with, a feature run: afterwards all its shards are committed and published, and the index is written.

    Raises:
        ValueError: see describe_run; or the store holds another run (each difference is named).
        RunStoppedError: no sample is to blame, e.g. workers cannot be started or the source lost a shard.
    """
    began = time.monotonic()
    if os.path.realpath(source.root) == os.path.realpath(store.root):
        raise ValueError(f"--out must be another folder than --shards, got {store.root} for both")
    run, config = describe_run(source, options)
    here = _run_record(run, config)
    there = load_run_record(store)
    if there is not None:
        check_same_run(there, here, where=store.root)
    claim_run(store, here)
    _, costs = write_plan(source, run, config, store)
    finish_commits(store)
    before = frozenset(committed_shards(store))
    missing = [cost for cost in costs if cost.shard not in before]
    counters = Counters("encode", num_items=sum(cost.num_samples for cost in missing))
    counters.num_shards, counters.num_shards_done = len(costs), len(costs) - len(missing)
    totals = FeatureTotals()
    if missing:
        with session(run_options):
            _make_missing(source, store, config, options, run_options, missing, counters, totals)
    collect_orphans(store)
    write_index(store)
    return EncodeSummary(
        num_shards=len(costs),
        num_shards_before=len(costs) - len(missing),
        num_made=counters.num_made,
        num_tokens=counters.num_tokens,
        num_worker_deaths=counters.num_deaths,
        wall_seconds=time.monotonic() - began,
        worker_seconds=totals.worker_seconds,
        encode_seconds=totals.encode_seconds,
        starved_seconds=totals.starved_seconds,
        num_flops=totals.num_flops,
        quarantined=dict(counters.quarantined),
    )


def _run_record(run: SourceRun, config: FeatureConfig) -> RunRecord:
    fields = config.model_dump(mode="json", exclude={"schema_version"})
    return RunRecord(
        recipe=FEATURES_RECIPE,
        config=fields,
        config_digest=config_digest(config),
        code_version=code_version(FEATURE_ROOTS, FEATURE_LEAVES),
        library_versions=library_versions(LIBRARIES),
        manifest_uri=run.root,
        manifest_digest=run.digest,
        created_unix_seconds=round(time.time(), 3),
    )


def _make_missing(
    source: Store,
    store: Store,
    config: FeatureConfig,
    options: EncodeOptions,
    run_options: RunOptions,
    missing: list[ShardCost],
    counters: Counters,
    totals: FeatureTotals,
) -> None:
    job = EncodeJob(
        source=source,
        store=store,
        config=config,
        model=options.model,
        device=options.device,
        tokens_per_batch=options.tokens_per_batch or TOKENS_PER_BATCH[options.device],
        decode_threads=options.decode_threads or DECODE_THREADS[options.device],
        num_threads=None if run_options.workers == 0 else 1,
    )
    feed = FeatureFeed(source, missing, counters, totals, seconds_per_token=_seconds_per_token(options))
    installation = Installation.here(FEATURE_ROOTS, FEATURE_LEAVES, libraries=LIBRARIES, runs=[source, store])
    with open_executor(job, run_options, installation) as (executor, num_workers):
        num_workers = min(num_workers, len(missing))
        scheduler = Scheduler(feed, num_workers=num_workers, deadlines=run_options.deadlines)
        with observed(store, counters, scheduler, run_options.progress) as tick:
            drive(executor, scheduler, clock=time.monotonic, on_tick=tick)


def _seconds_per_token(options: EncodeOptions) -> float:
    from ov2_core.features.encoder import flops_per_token

    return 2e-4 + flops_per_token(options.model, stage=options.stage) / FLOPS_PER_SECOND[options.device]


class EncodeJob:
    """Encodes and commits shards in workers; see runtime.Job. The encoder is loaded once a worker, by warm_up."""

    def __init__(
        self,
        *,
        source: Store,
        store: Store,
        config: FeatureConfig,
        model: str,
        device: Literal["cpu", "cuda"],
        tokens_per_batch: int,
        decode_threads: int,
        num_threads: int | None,
    ) -> None:
        """num_threads: that compute, on a CPU; None leaves torch's own choice."""
        self.source, self.store, self.config = source, store, config
        self.model, self.device = model, device
        self.tokens_per_batch, self.decode_threads, self.num_threads = tokens_per_batch, decode_threads, num_threads
        self._encoder: Any = None

    def warm_up(self) -> None:
        """Loads the encoder."""
        from ov2_core.features.encoder import FeatureEncoder, set_num_threads

        if self.num_threads is not None:
            set_num_threads(self.num_threads)
        self._encoder = FeatureEncoder.load(self.model, self.config, self.device)

    def run(self, payload: ShardTask | TrialTask) -> tuple[ShardEncoded | TrialPassed, None]:
        """One shard, or one sample on trial."""
        from ov2_core.features.extract import SourceLostError

        try:
            with unless_committed(self.store, payload.shard):
                if isinstance(payload, TrialTask):
                    return self._try(payload), None
                return self._encode(payload), None
            return ShardEncoded(shard=payload.shard), None
        except SourceLostError as error:
            return ShardEncoded(shard=payload.shard, source_lost=str(error)), None
        except Exception as error:
            if is_transient(error):
                raise TransientItemError(f"shard {payload.shard}: {error}") from error
            raise

    def _try(self, task: TrialTask) -> TrialPassed:
        from ov2_core.features.extract import extract_shard

        commit = load_commit(self.source, task.shard)
        with extract_shard(self.source, commit, self._encoder, tokens_per_batch=1, only={task.key}) as ended:
            for _ in ended:
                pass
        return TrialPassed(task.shard)

    def _encode(self, task: ShardTask) -> ShardEncoded:
        from ov2_core.features.extract import Timings, extract_shard

        began, began_cpu = time.perf_counter(), time.process_time()
        commit = load_commit(self.source, task.shard)
        timings = Timings()
        made: list[CommittedSample] = []
        quarantined = list(task.fallen.values())

        def samples(ended: "Iterator[FeatureSample | QuarantineRow]") -> Iterator[tuple[str, list[Member]]]:
            for end in ended:
                if isinstance(end, QuarantineRow):
                    quarantined.append(end)
                    continue
                made.append(end.source)
                failpoint("mid_encode")
                yield end.source.key, end.members

        failpoint("before_encode")
        with (
            scratch_folder(self.store) as folder,
            extract_shard(
                self.source,
                commit,
                self._encoder,
                tokens_per_batch=1 if task.one_by_one else self.tokens_per_batch,
                decode_threads=1 if task.one_by_one else self.decode_threads,
                skip=task.fallen.keys(),
                timings=timings,
            ) as ended,
        ):
            members = samples(ended)
            first = next(members, None)
            tar = None
            if first is not None:
                tar = write_tar(os.path.join(folder, "shard.tar"), itertools.chain([first], members))
            cpu_seconds = time.process_time() - began_cpu
            num_tokens = sum(sample.num_tokens for sample in made)
            commit_shard(
                self.store,
                shard=task.shard,
                tar=tar,
                samples=[
                    sample.model_copy(
                        update={
                            "byte_offset": placed.byte_offset,
                            "byte_size": placed.byte_size,
                            "parts": placed.parts,
                            "cpu_seconds": cpu_seconds * sample.num_tokens / num_tokens,
                            "peak_rss_bytes": peak_rss_bytes(),
                        }
                    )
                    for sample, placed in zip(made, tar.samples if tar else [], strict=True)
                ],
                filtered=[],
                quarantined=quarantined,
                config_digest=config_digest(self.config),
                code_version=code_version(FEATURE_ROOTS, FEATURE_LEAVES),
                started_unix_seconds=task.started_unix_seconds,
                finished_unix_seconds=round(time.time(), 3),
                line_offset=commit.line_offset,
            )
        return ShardEncoded(
            shard=task.shard,
            num_made=len(made),
            num_images=sum(sample.num_images for sample in made),
            num_tokens=num_tokens,
            video_seconds=sum(sample.duration_seconds for sample in made),
            quarantined=tuple(row.reason for row in quarantined),
            worker_seconds=time.perf_counter() - began,
            encode_seconds=timings.encode_seconds,
            starved_seconds=timings.starved_seconds,
            num_flops=timings.num_flops,
        )
