"""Sources to a stage: draw, measure, pack, write the index, and on demand write the stage's own shards. Resumed by the same call.

Enters: a recipe, a sources file, a model folder (its tokenizer counts), a seed. Leaves: STAGE. All state stands in the store:

    run.json                 identity; a resume that differs is refused
    work/<source>/*.jsonl.gz measured chunks, each created once (data/chunks.py); removed when the stage is done
    stills/<digest>.tar      stills that lay in no token run
    packs/, tars.parquet, dropped.jsonl, missing/<source>.jsonl
    commits/, shards/, .nv-meta/   with materialize: data/stage_shards.py
    stage.json               last
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ov2_core import config as configs
from ov2_core.data.chunks import (
    OWN_RUN,
    STILLS_DIR,
    WORK_DIR,
    Chunk,
    ChunkDone,
    committed_chunks,
    measure_chunk,
)
from ov2_core.data.mixture import plan_counts
from ov2_core.data.source_state import SourceState
from ov2_core.data.stage_config import SourceSpec, StageConfig, load_sources
from ov2_core.make_sample import TransientItemError
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.fetch import FetchLimits
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.layout import INDEX_DIR, RUN_JSON
from pipelines.chunk_feed import ChunkFeed
from pipelines.drive import drive
from pipelines.options import RunOptions, open_executor, session
from pipelines.progress import Counters, show
from pipelines.run_identity import Installation, claim_run, code_version, library_versions
from pipelines.scheduling import Scheduler
from schemas.run import RunRecord
from schemas.stage import StageRecord

log = logging.getLogger(__name__)

CURRICULUM_ROOTS = (
    "ov2_core.data.chunks",
    "ov2_core.data.source_state",
    "ov2_core.data.assemble",
    "ov2_core.data.stage_shards",
)
LIBRARIES = ("numpy", "numba", "pillow", "pyarrow", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumOptions:
    """What is built, beside the recipe."""

    sources: str
    """Path or URL of the sources file."""
    model: str | None = None
    """Folder with the tokenizer and processor files of the model that will be trained; every node must see it. None: text is
    counted in bytes, an upper bound for every byte-level tokenizer (Qwen's is one)."""
    seed: int = 0
    limit: int | None = None
    """Samples at most, the mixture scaled down exactly; None: all that the sources give."""
    materialize: bool = False
    shard_bytes: int = 1 << 30
    """Of the stage's own shards."""
    fetch: bool = False
    """Fetch images that rows name by URL."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts ("host" or "host:port") that may be fetched from although their addresses are private or local."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {self.limit}")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes must be >= 1, got {self.shard_bytes}")
        if self.fetch_hosts and not self.fetch:
            raise ValueError("--fetch-host says where --fetch may go too; give --fetch")
        FetchLimits(private_hosts=self.fetch_hosts)  # raises for what is no host


def build_curriculum(
    store: Store, config: StageConfig, options: CurriculumOptions, run_options: RunOptions
) -> StageRecord:
    """Makes, or goes on with, a stage.

    Raises:
        ValueError: sources, model or counts that do not fit; or the store holds another stage (each difference is named).
        RunStoppedError: workers cannot be started, or storage fails for good.
    """
    from ov2_core.data.assemble import assemble
    from ov2_core.data.lengths import layout_digest
    from ov2_core.data.stage import STAGE_JSON, load_stage
    from ov2_core.model.create import BYTES, open_processor

    specs = load_sources(options.sources, config)
    processor = open_processor(options.model or BYTES)
    states = [SourceState(spec, options.seed) for spec in specs]
    for state in states:
        state.learn()
    tokenizer_digest = layout_digest(processor)
    claim_run(store, _run_record(config, options, states, tokenizer_digest))
    if store.exists(STAGE_JSON):
        log.info("%s is finished already", store.root)
        _remove_work(store, states)
        return load_stage(store)
    with session(run_options):
        try:
            counts = _measure_enough(store, config, options, run_options, states)
        except ValueError as error:
            raise ValueError(_give_up(store, states, error)) from error
        record = assemble(
            store,
            config,
            seed=options.seed,
            tokenizer_digest=tokenizer_digest,
            lengths_are="bound" if options.model is None else "exact",
            parts=[state.part(counts[state.spec.name]) for state in states],
        )
        if options.materialize:
            from pipelines.materialize_stage import materialize

            record = materialize(store, record, shard_bytes=options.shard_bytes, run_options=run_options)
    _remove_unnamed_stills(store)
    failpoint("before_stage_json")
    store.write_bytes(STAGE_JSON, (record.model_dump_json(indent=2) + "\n").encode())
    _remove_work(store, states)
    return record


def _give_up(store: Store, states: Sequence[SourceState], error: ValueError) -> str:
    """These sources make no such stage: says what is missing, and frees the folder for others. The error's text."""
    from ov2_core.data.assemble import write_dropped

    manifests = write_dropped(store, [state.part(0) for state in states])
    _remove_work(store, states)
    _remove_unnamed_stills(store)
    store.remove(RUN_JSON)
    slots = {state.spec.name: state.spec.slot for state in states}
    hints = [
        f"\n  media in no token run: ov2 tokenize --manifest {store.url(rel)} "
        f"--recipe {slots[rel.removeprefix('missing/').removesuffix('.jsonl')].tokenize_recipe} --out RUN, then `shards: RUN`"
        for rel in manifests
    ]
    return f"{error}; all that was left out stands in {store.url('dropped.jsonl')}{''.join(hints)}"


def _run_record(
    config: StageConfig, options: CurriculumOptions, states: Sequence[SourceState], tokenizer_digest: str
) -> RunRecord:
    digest = hashlib.sha256()
    for state in states:
        digest.update(state.spec.name.encode() + b"\0" + state.hashes.astype("<u8").tobytes())
    fields = {
        "stage": configs.to_dict(config),
        "seed": options.seed,
        "limit": options.limit,
        "materialize": options.materialize,
        "shard_bytes": options.shard_bytes,
        "fetch": options.fetch,
        "fetch_hosts": list(options.fetch_hosts),
        "tokenizer_digest": tokenizer_digest,
        "lengths": "bound" if options.model is None else "exact",
        "sources": [configs.to_dict(state.spec) for state in states],
    }
    return RunRecord(
        recipe=f"curriculum-{config.name}",
        config=fields,
        config_digest=hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest(),
        code_version=code_version(CURRICULUM_ROOTS),
        library_versions=library_versions(LIBRARIES),
        manifest_uri=options.sources,
        manifest_digest=digest.hexdigest(),
        created_unix_seconds=round(time.time(), 3),
    )


def _measure_enough(
    store: Store,
    config: StageConfig,
    options: CurriculumOptions,
    run_options: RunOptions,
    states: Sequence[SourceState],
) -> dict[str, int]:
    """Measures until every source has as many usable samples as the plan asks of it; the plan's counts.

    A weighted source that runs out lowers the whole plan; one with a count is an error.
    """
    shares = [state.spec.share for state in states]
    while True:
        available = {s.spec.name: s.num_usable if s.exhausted else len(s.hashes) for s in states}
        _name_what_is_missing(states)
        counts = plan_counts(shares, available, limit=options.limit)
        short = [state for state in states if state.num_usable < counts[state.spec.name]]
        if not short:
            return counts
        rounds = [(state, *state.next_round(counts[state.spec.name])) for state in short]
        _measure(store, config, options, run_options, rounds)


def _name_what_is_missing(states: Sequence[SourceState]) -> None:
    """Raises ValueError for a source none of whose records can be used, with the commonest reasons."""
    for state in states:
        if state.exhausted and not state.num_usable:
            reasons = sum((done.dropped for done in state.done.values()), Counter[str]())
            reasons.update(item.quarantined.reason for item in state.quarantined if item.quarantined is not None)
            listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(4)) or "it is empty"
            raise ValueError(
                f"source {state.spec.name!r} ({state.spec.path}) has no usable record: {listed}; mend or remove it"
            )


def _measure(
    store: Store,
    config: StageConfig,
    options: CurriculumOptions,
    run_options: RunOptions,
    rounds: Sequence[tuple[SourceState, int, Iterator[Chunk]]],
) -> None:
    counters = Counters("curriculum", num_items=sum(num for _, num, _ in rounds))
    specs = [state.spec for state, _, _ in rounds]
    job = MeasureJob(store=store, config=config, options=options, specs=specs, ask_elsewhere=run_options.on_cluster)
    feed = ChunkFeed(store, rounds, counters)
    runs = [store, *(Store(shards) for state, _, _ in rounds for shards in state.spec.shards)]
    installation = Installation.here(CURRICULUM_ROOTS, libraries=LIBRARIES, runs=runs)
    with (
        open_executor(job, run_options, installation) as (executor, num_workers),
        show(counters, run_options.progress) as redraw,
    ):
        scheduler = Scheduler(feed, num_workers=num_workers, deadlines=run_options.deadlines)

        def tick() -> None:
            counters.num_running, counters.num_deaths = scheduler.num_running, scheduler.deaths
            redraw()

        drive(executor, scheduler, clock=time.monotonic, on_tick=tick)


class MeasureJob:
    """Measures and commits chunks in workers; see runtime.Job."""

    def __init__(
        self,
        *,
        store: Store,
        config: StageConfig,
        options: CurriculumOptions,
        specs: Sequence[SourceSpec],
        ask_elsewhere: bool = False,
    ) -> None:
        """ask_elsewhere: what one node says of a missing still is not enough."""
        self.store, self.config, self.options, self.ask_elsewhere = store, config, options, ask_elsewhere
        self.specs = {spec.name: spec for spec in specs}
        self._counter: Any = None
        self._measurers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counter": None, "_measurers": {}}

    def warm_up(self) -> None:
        """Loads the tokenizer."""
        from ov2_core.data.lengths import LengthCounter
        from ov2_core.model.create import BYTES, open_processor

        self._counter = LengthCounter(open_processor(self.options.model or BYTES))

    def run(self, payload: Chunk) -> tuple[ChunkDone, None]:
        """One chunk."""
        try:
            measurer = self._measurer(payload.source)
            return measure_chunk(self.store, payload, measurer, ask_elsewhere=self.ask_elsewhere), None
        except Exception as error:
            if is_transient(error):
                raise TransientItemError(f"{payload.rel}: {error}") from error
            raise

    def _measurer(self, source: str) -> Any:
        from dataclasses import replace

        from ov2_core.data.measure import Fetching, SampleMeasurer
        from ov2_core.data.runs import RunSet

        if source not in self._measurers:
            spec = self.specs[source]
            still = configs.recipe("stills")
            processor = self._counter.processor.config
            tokenizer = replace(
                still.tokenizer,
                still_area_px=self.config.still_area_px,
                patch_px=processor.patch_px,
                merge=processor.merge,
            )
            self._measurers[source] = SampleMeasurer(
                RunSet(spec.shards),
                self._counter,
                slot=spec.slot,
                config=self.config,
                still_config=replace(still, tokenizer=tokenizer),
                fetching=Fetching(
                    allowed=self.options.fetch, limits=FetchLimits(private_hosts=self.options.fetch_hosts)
                ),
            )
        return self._measurers[source]


def _remove_unnamed_stills(store: Store) -> None:
    """What killed attempts, and samples that the stage does not take, left behind; half-written files too."""
    from ov2_core.data.stage import TARS_PARQUET, load_tars

    tars = load_tars(store) if store.exists(TARS_PARQUET) else []
    named = {tar.name for tar in tars if tar.run == OWN_RUN}
    for name in store.list(STILLS_DIR):
        if f"{STILLS_DIR}/{name}" not in named:
            store.remove(f"{STILLS_DIR}/{name}")
    for folder in ("", STILLS_DIR, "packs", "missing", INDEX_DIR):
        store.remove_temporaries(folder)
    store.remove_empty_dirs(STILLS_DIR)


def _remove_work(store: Store, states: Sequence[SourceState]) -> None:
    for state in states:
        for rel in committed_chunks(store, state.spec.name):
            store.remove(rel)
            failpoint("mid_cleanup")
        store.remove_temporaries(f"{WORK_DIR}/{state.spec.name}")
        store.remove_empty_dirs(f"{WORK_DIR}/{state.spec.name}")
    store.remove_empty_dirs(WORK_DIR)
