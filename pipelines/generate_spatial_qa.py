"""Scenes to committed shards of proven questions; resumed by the same call.

Enters: a source of scenes, a recipe, a store. Leaves: RUN/shards (a sample a scene: what became of it, and its questions),
RUN/commits, RUN/quarantine, RUN/records/*.jsonl for the importer, RUN/report.json. A shard of scenes is a task: one worker loads
its scenes one after the other, so memory is bounded by one scene and a shard's text. All state stands in the store.

Records are derived from committed tars, so they are as exactly-once as those: once all shards are committed, what repeats or can be
guessed over the run is left out of them (corpus.py). A scene that cannot be trusted is quarantined with its reason; a copy of one
before it in its shard, and one that yields nothing, is filtered. A shard that kills its workers is
taken apart, scene by scene, as in extract_features.
"""

import contextlib
import logging
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

from ov2_core.errors import BadItemError
from ov2_core.make_sample import TransientItemError, peak_rss_bytes
from ov2_core.spatial.balance import balance
from ov2_core.spatial.corpus import QUESTIONS_MEMBER, level_corpus
from ov2_core.spatial.generate import SceneQuestions, generate_questions
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.remote import is_remote
from ov2_core.spatial.run_files import (
    make_report,
    publish_records,
    recipe_digest,
    scene_key,
)
from ov2_core.spatial.scene import Scene
from ov2_core.spatial.scene_files import write_scene
from ov2_core.spatial.sources import SceneSource, fingerprint, open_source
from ov2_core.storage.commit import collect_orphans, commit_shard, committed_shards, finish_commits, unless_committed
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.layout import RECORDS_DIR, SPATIAL_RECIPE
from ov2_core.storage.writer import Member, canonical_json, write_tar
from pipelines.drive import drive
from pipelines.options import RunOptions, open_executor, session
from pipelines.progress import Counters, show
from pipelines.run_identity import (
    Installation,
    check_same_run,
    claim_run,
    code_version,
    library_versions,
    load_run_record,
)
from pipelines.scheduling import Scheduler
from pipelines.tasks import Task, Verdict
from pipelines.tokenize_videos import scratch_folder
from schemas.run import RunRecord
from schemas.shard import CommittedSample, FilteredRow, QuarantineReason, QuarantineRow
from schemas.spatial import SceneYield, SpatialQuestion, SpatialReport

log = logging.getLogger(__name__)
LIBRARIES = ("numpy", "numba", "pillow")
SPATIAL_ROOTS = (
    "ov2_core.spatial.generate",
    "ov2_core.spatial.balance",
    "ov2_core.spatial.corpus",
    "ov2_core.spatial.sources",
    "ov2_core.storage.commit",
)
"""Modules from which every byte of a spatial shard comes."""
SECONDS_PER_SCENE = 1.5
"""A careful guess: deadlines are 30 times what it predicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialSummary:
    """What one invocation did."""

    num_shards: int
    num_shards_before: int
    num_scenes: int
    """Of this invocation, whichever way they ended."""
    num_questions: int
    num_worker_deaths: int
    wall_seconds: float
    worker_seconds: float
    report: SpatialReport


def generate_spatial_qa(
    scenes: str, store: Store, recipe: SpatialRecipe, options: RunOptions, *, export_folder: str | None = None
) -> SpatialSummary:
    """Makes, or goes on with, a spatial run: afterwards all its shards are committed, and records and report are written.

    export_folder: where scenes are written in our plain format. Scenes whose frames are files nowhere else (procedural ones, tars,
    videos) always are: into RUN/scenes, if no folder is given.

    Raises:
        ValueError: the source cannot be read, or the store holds another run (each difference is named).
        RunStoppedError: no scene is to blame.
    """
    began = time.monotonic()
    source = open_source(scenes)
    if export_folder is None and source.is_packed:
        if not store.is_local:
            raise ValueError(
                "these scenes' pictures must be written to files: give --export-scenes DIR, or a local --out"
            )
        export_folder = store.local("scenes")
    digest = recipe_digest(recipe)
    here = RunRecord(
        recipe=SPATIAL_RECIPE,
        config=recipe.to_dict()
        | {"num_scenes": source.count, "export": None if export_folder is None else os.path.abspath(export_folder)},
        config_digest=digest,
        code_version=code_version(SPATIAL_ROOTS),
        library_versions=library_versions(LIBRARIES),
        manifest_uri=source.text,
        manifest_digest=source.digest,
        created_unix_seconds=round(time.time(), 3),
    )
    there = load_run_record(store)
    if there is not None:
        check_same_run(there, here, where=store.root)
    claim_run(store, here)
    finish_commits(store)
    num_shards = -(-source.count // recipe.scenes_per_shard)
    before = frozenset(committed_shards(store))
    missing = [shard for shard in range(num_shards) if shard not in before]
    counters = Counters("spatial", num_items=sum(len(_numbers(source, recipe, shard)) for shard in missing))
    counters.num_shards, counters.num_shards_done = num_shards, num_shards - len(missing)
    totals = _Totals()
    if missing:
        job = SpatialJob(source=source, store=store, recipe=recipe, config_digest=digest, export_folder=export_folder)
        feed = SceneFeed(source, recipe, missing, counters, totals)
        if export_folder is not None:
            os.makedirs(export_folder, exist_ok=True)
        places = [place for place in (source.witness, export_folder) if place is not None]
        installation = Installation.here(SPATIAL_ROOTS, libraries=LIBRARIES, runs=[store], places=places)
        with (
            session(options),
            open_executor(job, options, installation) as (executor, num_workers),
            show(counters, options.progress) as redraw,
        ):
            scheduler = Scheduler(feed, num_workers=min(num_workers, len(missing)), deadlines=options.deadlines)

            def tick() -> None:
                counters.num_running, counters.num_deaths = scheduler.num_running, scheduler.deaths
                redraw()

            drive(executor, scheduler, clock=time.monotonic, on_tick=tick)
    collect_orphans(store)
    verdict = level_corpus(store, max_share=recipe.max_share)
    publish_records(store, verdict)
    store.remove_temporaries(RECORDS_DIR)
    report = make_report(store, verdict)
    return SpatialSummary(
        num_shards=num_shards,
        num_shards_before=num_shards - len(missing),
        num_scenes=counters.num_done,
        num_questions=counters.num_tokens,
        num_worker_deaths=counters.num_deaths,
        wall_seconds=time.monotonic() - began,
        worker_seconds=totals.worker_seconds,
        report=report,
    )


@dataclass(slots=True)
class _Totals:
    worker_seconds: float = 0.0


def _numbers(source: SceneSource, recipe: SpatialRecipe, shard: int) -> range:
    """Scenes of a shard."""
    first = shard * recipe.scenes_per_shard
    return range(first, min(source.count, first + recipe.scenes_per_shard))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesTask:
    """Make a shard and commit it."""

    shard: int
    fallen: dict[int, QuarantineRow] = field(default_factory=dict)
    """By scene: those that killed their workers; left out."""
    started_unix_seconds: float


@dataclass(frozen=True, slots=True)
class SceneTrial:
    """Make one scene's questions and throw them away: does it kill its worker?"""

    shard: int
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesDone:
    """A shard is committed."""

    shard: int
    num_scenes: int = 0
    num_made: int = 0
    num_questions: int = 0
    num_filtered: int = 0
    quarantined: tuple[str, ...] = ()
    worker_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TrialPassed:
    """The scene's worker lived."""


@dataclass(slots=True)
class _Made:
    number: int
    scene_id: str
    fingerprint: str
    found: SceneQuestions
    num_frames: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class SpatialJob:
    """Makes and commits shards in workers; see runtime.Job."""

    source: SceneSource
    store: Store
    recipe: SpatialRecipe
    config_digest: str
    export_folder: str | None

    def warm_up(self) -> None:
        """Compiled kernels come from numba's cache, or with the first scene."""

    def run(self, payload: ScenesTask | SceneTrial) -> tuple[ScenesDone | TrialPassed, None]:
        """One shard, or one scene on trial."""
        try:
            with unless_committed(self.store, payload.shard):
                if isinstance(payload, SceneTrial):
                    with contextlib.suppress(BadItemError):
                        generate_questions(self._load(payload.number), self.recipe)
                    return TrialPassed(), None
                return self._make(payload), None
            return ScenesDone(shard=payload.shard), None
        except Exception as error:
            if is_transient(error):
                raise TransientItemError(f"shard {payload.shard}: {error}") from error
            raise

    def _load(self, number: int) -> Scene:
        scene = self.source.load(number)
        if self.recipe.input != "stills" and scene.record.video is None:
            if scene.rgb_FHW3 is None:
                raise BadItemError(
                    "unsupported",
                    f"scene {scene.id} has no video; its record must name one, or take --input stills",
                    stage="spatial",
                )
            scene = replace(scene, record=scene.record.model_copy(update={"video": "video.mp4"}))
        if self.export_folder is not None and scene.rgb_FHW3 is not None:
            return write_scene(scene, os.path.join(self.export_folder, scene.id))
        if self.export_folder is not None:
            from ov2_core.spatial.export import export_scene

            return export_scene(scene, os.path.join(self.export_folder, scene_key(scene.id)))
        return scene

    def _make(self, task: ScenesTask) -> ScenesDone:
        began = time.perf_counter()
        made: list[_Made] = []
        filtered: list[FilteredRow] = []
        quarantined = list(task.fallen.values())
        copies: dict[str, str] = {}
        for number in _numbers(self.source, self.recipe, task.shard):
            if number in task.fallen:
                continue
            failpoint("mid_shard")
            began_cpu = time.process_time()
            name = self.source.name(number)
            try:
                scene = self._load(number)
                mark = fingerprint(scene)
                if mark in copies:
                    message = f"shows the same as {copies[mark]}"
                    filtered.append(_filtered(self.source, number, "duplicate_scene", message))
                    continue
                copies[mark] = name
                found = generate_questions(scene, self.recipe)
            except BadItemError as error:
                quarantined.append(_quarantined(self.source, number, error.reason, str(error)))
                continue
            if not found.questions:
                message = "; ".join(f"{reason} ({count})" for reason, count in found.dropped.most_common(3))
                filtered.append(_filtered(self.source, number, "no_question", message))
                continue
            found.questions = [self._with_paths(question, scene) for question in found.questions]
            times = [frame.time_seconds for frame in scene.record.frames]
            cpu = time.process_time() - began_cpu
            made.append(_Made(number, scene.id, mark, found, len(times), times[-1] - times[0], cpu))
        shipped, dropped = balance([q for scene in made for q in scene.found.questions], self.recipe)
        by_scene: dict[str, list[SpatialQuestion]] = {}
        for question in shipped:
            by_scene.setdefault(question.scene_id, []).append(question)
        samples = []
        for position, scene_made in enumerate(made):
            questions = by_scene.get(scene_made.scene_id, [])
            reasons = Counter(scene_made.found.dropped)
            if position == 0:
                reasons.update(dropped)  # levelling is of the shard; it stands with its first scene
            fate = SceneYield(
                scene_id=scene_made.scene_id,
                fingerprint=scene_made.fingerprint,
                num_drafted=scene_made.found.num_drafted,
                shipped=dict(sorted(Counter(question.type for question in questions).items())),
                dropped=dict(sorted(reasons.items())),
            )
            lines = b"".join(canonical_json(question) + b"\n" for question in questions)
            members: list[Member] = [("json", canonical_json(fate)), (QUESTIONS_MEMBER, lines)]
            samples.append((scene_key(self.source.name(scene_made.number)), members))
        with scratch_folder(self.store) as folder:
            tar = write_tar(os.path.join(folder, "shard.tar"), samples) if samples else None
            commit_shard(
                self.store,
                shard=task.shard,
                tar=tar,
                samples=[
                    CommittedSample(
                        line=m.number + 1,
                        key=placed.key,
                        id=m.scene_id,
                        byte_offset=placed.byte_offset,
                        byte_size=placed.byte_size,
                        parts=placed.parts,
                        num_images=m.num_frames,
                        num_tokens=len(by_scene.get(m.scene_id, [])),
                        num_groups=1,
                        duration_seconds=m.seconds,
                        codec="scene",
                        mode=self.recipe.input,
                        flags=[],
                        cpu_seconds=m.cpu_seconds,
                        peak_rss_bytes=peak_rss_bytes(),
                    )
                    for m, placed in zip(made, tar.samples if tar else [], strict=True)
                ],
                filtered=filtered,
                quarantined=quarantined,
                config_digest=self.config_digest,
                code_version=code_version(SPATIAL_ROOTS),
                started_unix_seconds=task.started_unix_seconds,
                finished_unix_seconds=round(time.time(), 3),
            )
        return ScenesDone(
            shard=task.shard,
            num_scenes=len(_numbers(self.source, self.recipe, task.shard)),
            num_made=len(made),
            num_questions=len(shipped),
            num_filtered=len(filtered),
            quarantined=tuple(row.reason for row in quarantined),
            worker_seconds=time.perf_counter() - began,
        )

    def _with_paths(self, question: SpatialQuestion, scene: Scene) -> SpatialQuestion:
        """Frames that a reader of RUN/records finds: relative to it where they lie in RUN, so that a run may move."""

        def place(path: str) -> str:
            if "://" in path or os.path.isabs(path) or scene.folder is None:
                return path
            if is_remote(scene.folder):
                return f"{scene.folder}/{path}"
            full = os.path.join(os.path.abspath(scene.folder), path)
            if self.store.is_local:
                root = self.store.local("")
                if full.startswith(os.path.join(root, "")):
                    return os.path.join("..", os.path.relpath(full, root))
            return full

        return question.model_copy(
            update={
                "frames": None if question.frames is None else [place(path) for path in question.frames],
                "video": None if question.video is None else place(question.video),
            }
        )


def _filtered(source: SceneSource, number: int, rule: str, message: str) -> FilteredRow:
    return FilteredRow(line=number + 1, id=source.name(number), uri=_uri(source, number), rule=rule, message=message)


def _quarantined(
    source: SceneSource, number: int, reason: QuarantineReason, message: str, *, attempts: int = 1
) -> QuarantineRow:
    return QuarantineRow(
        line=number + 1,
        id=source.name(number),
        uri=_uri(source, number),
        reason=reason,
        stage="spatial",
        message=message,
        attempts=attempts,
    )


def _uri(source: SceneSource, number: int) -> str:
    return source.text if source.is_procedural else os.path.join(source.text, source.name(number))


class SceneFeed:
    """Shards to tasks; one that fails to trials of its scenes, then to a last task. See tasks.Feed."""

    def __init__(
        self, source: SceneSource, recipe: SpatialRecipe, shards: list[int], counters: Counters, totals: _Totals
    ) -> None:
        self._source, self._recipe = source, recipe
        self._counters, self._totals = counters, totals
        self._fresh, self._again = deque(shards), deque[Task]()
        self._open = set(shards)
        self._waiting: dict[int, set[int]] = {}
        self._fallen: dict[int, dict[int, QuarantineRow]] = {}

    @property
    def finished(self) -> bool:
        """All shards are committed."""
        return not self._open

    def pull(self) -> Task | None:
        """A trial or a last task, else the next shard."""
        if self._again:
            return self._again.popleft()
        return self._task(self._fresh.popleft()) if self._fresh else None

    def done(self, task: Task, info: ScenesDone | TrialPassed, payload: Any) -> None:
        """A shard is committed, or a scene has passed its trial."""
        if isinstance(info, TrialPassed):
            self._tried(task.payload)
            return
        self._open.discard(info.shard)
        counters = self._counters
        counters.num_shards_done += 1
        counters.num_done += info.num_scenes
        counters.num_made += info.num_made
        counters.num_filtered += info.num_filtered
        counters.num_tokens += info.num_questions
        counters.quarantined.update(info.quarantined)
        self._totals.worker_seconds += info.worker_seconds

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A shard is taken apart; or a scene on trial has killed its workers and is quarantined."""
        payload = task.payload
        if isinstance(payload, SceneTrial):
            self._fallen[payload.shard][payload.number] = _quarantined(
                self._source, payload.number, verdict.reason, verdict.message, attempts=verdict.attempts
            )
            self._tried(payload)
            return
        numbers = _numbers(self._source, self._recipe, payload.shard)
        log.warning(
            "%s: %s: %s; its %d scenes are tried alone", task.name, verdict.reason, verdict.message, len(numbers)
        )
        self._waiting[payload.shard], self._fallen[payload.shard] = set(numbers), {}
        self._again.extend(
            Task(self._source.name(number), SceneTrial(payload.shard, number), SECONDS_PER_SCENE) for number in numbers
        )

    def _tried(self, trial: SceneTrial) -> None:
        waiting = self._waiting[trial.shard]
        waiting.discard(trial.number)
        if not waiting:
            self._again.append(self._task(trial.shard, self._fallen[trial.shard]))

    def _task(self, shard: int, fallen: dict[int, QuarantineRow] | None = None) -> Task:
        payload = ScenesTask(shard=shard, fallen=fallen or {}, started_unix_seconds=round(time.time(), 3))
        cost = SECONDS_PER_SCENE * len(_numbers(self._source, self._recipe, shard))
        last = fallen is not None
        return Task(f"shard {shard}", payload, cost, blamed=not last, divisible=not last)
