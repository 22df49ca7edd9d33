"""The whole pipeline on tiny clips: in this process where that is enough, on Ray where workers have to die."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.make_sample import SampleOutcome, TransientItemError, make_sample, quarantine_planned
from ov2_core.plan import iter_plan_rows, load_plan
from ov2_core.storage.commit import load_commits
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from pipelines.options import RunOptions
from pipelines.plan_videos import plan_videos
from pipelines.progress import Counters
from pipelines.runtime import ObjectLostError
from pipelines.shard_feed import (
    LAST_BATCH_SECONDS,
    MAX_BATCH_ROWS,
    MadeSample,
    ShardFeed,
    ShardWritten,
    WriteTask,
    in_batches,
)
from pipelines.tasks import DeadlinePolicy, Task, Verdict
from pipelines.tokenize_videos import TokenizeJob, scratch_folder, tokenize_videos
from schemas.shard import PlannedRow

INLINE = RunOptions(workers=0, progress="off")
SMALL_SHARDS = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2", "area_px": "12544"})


def published(run: Path) -> dict[str, str]:
    """Digest of every file that a reader of the run sees."""
    files = [*(run / "shards").iterdir(), *(run / ".nv-meta").iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def reference(clip_manifest: Path, tmp_path: Path) -> dict[str, str]:
    """What an undisturbed run without Ray publishes."""
    run = tmp_path / "reference"
    tokenize_videos(str(clip_manifest), Store(run), SMALL_SHARDS, INLINE)
    return published(run)


def test_run_commits_every_row_once_and_verifies(clip_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    summary = tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    assert (summary.num_shards, summary.num_made) == (3, 6)
    found = verify_run(store)
    assert found.errors == []
    assert (found.manifest_rows, found.committed, found.quarantined_by_reason) == (7, 6, {"source_missing": 1})
    with ShardReader(store.root) as reader:
        assert reader.keys() == [f"v{i}" for i in range(6)]
        record = reader.read("v3").record
    assert record.messages[0].content.startswith("<video>\n")
    assert record.provenance.manifest_line == 5
    assert store.list("attempts") == []


def test_second_call_makes_nothing_and_changes_nothing(
    clip_manifest: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    run = tmp_path / "reference"
    summary = tokenize_videos(str(clip_manifest), Store(run), SMALL_SHARDS, INLINE)
    assert (summary.num_made, summary.num_shards_before) == (0, 3)
    assert published(run) == reference


def test_lost_commit_is_made_again_and_alone(clip_manifest: Path, tmp_path: Path, reference: dict[str, str]) -> None:
    run = tmp_path / "reference"
    (run / "commits" / "shard-000001.json").unlink()
    (run / "shards" / "shard-000001.tar").unlink()
    summary = tokenize_videos(str(clip_manifest), Store(run), SMALL_SHARDS, INLINE)
    assert summary.num_made == 2
    assert published(run) == reference


def test_resume_with_other_arguments_is_refused_and_each_is_named(
    clip_manifest: Path, tmp_path: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "reference")
    other = with_overrides(SMALL_SHARDS, {"jpeg_quality": "80", "budget": "5"})
    with pytest.raises(ValueError, match="differs") as caught:
        tokenize_videos(str(clip_manifest), store, other, INLINE)
    assert "config.tokenizer.jpeg_quality: 95 there, 80 here" in str(caught.value)
    assert "config.tokenizer.budget: 4 there, 5 here" in str(caught.value)
    clip_manifest.write_text(clip_manifest.read_text() + "\n")
    with pytest.raises(ValueError, match="manifest_digest"):
        tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    monkeypatch.setattr("pipelines.run_identity.code_version", lambda: "0.0.0+other")
    with pytest.raises(ValueError, match=r"code_version: .* there, '0.0.0\+other' here"):
        tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    with pytest.raises(ValueError, match="already holds a run"):
        plan_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)


def test_plan_of_another_config_is_refused(clip_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    plan_videos(str(clip_manifest), store, recipe("uniform-8"), INLINE)
    with pytest.raises(ValueError, match="holds a plan that differs"):
        tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    assert not store.exists("run.json")


def test_source_that_changed_since_the_plan_is_quarantined(
    clip_manifest: Path, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "mine.mp4", seed=1)
    clip_manifest.write_text(clip_manifest.read_text() + json.dumps({"video": str(clip), "id": "mine"}) + "\n")
    store = Store(tmp_path / "run")
    plan_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    make_clip(clip, seed=2, num_frames=20)
    tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    found = verify_run(store)
    assert found.ok
    assert found.quarantined_by_reason == {"source_missing": 1, "source_changed": 1}


@pytest.mark.parametrize("manifest", ["", '{"video": "nowhere.mp4"}\n{"video": "nowhere.mp4"}\nnot json\n'])
def test_run_without_any_sample_still_ends_and_verifies(tmp_path: Path, manifest: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(manifest)
    store = Store(tmp_path / "run")
    tokenize_videos(str(path), store, SMALL_SHARDS, INLINE)
    found = verify_run(store)
    assert found.errors == []
    assert found.manifest_rows == found.quarantined == len(manifest.splitlines())


def test_shard_whose_rows_all_fell_commits_without_a_tar(clip_manifest: Path, tmp_path: Path) -> None:
    def fail_two(row: PlannedRow, config: RunConfig) -> SampleOutcome:
        if row.key in ("v2", "v3"):
            row = row.model_copy(update={"uri": row.uri + ".gone"})
        return make_sample(row, config)

    store = Store(tmp_path / "run")
    tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE, make=fail_two)
    commits = load_commits(store)
    assert commits[1].tar_name is None
    assert [row.id for row in commits[1].quarantined] == ["v2", "v3"]
    assert verify_run(store).errors == []


def test_stills_recipe_filters_videos(clip_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    tokenize_videos(str(clip_manifest), store, recipe("stills"), INLINE)
    found = verify_run(store)
    assert found.errors == []
    assert (found.filtered, found.committed) == (6, 0)


def test_one_writer_leaves_the_folder_of_another(tmp_path: Path) -> None:
    with scratch_folder(Store(tmp_path)) as mine:
        with scratch_folder(Store(tmp_path)) as other:
            assert mine != other
        assert not Path(other).exists()
        assert Path(mine).is_dir()


# The feed alone


@pytest.fixture
def planned(clip_manifest: Path, tmp_path: Path) -> list[PlannedRow]:
    store = Store(tmp_path / "plan-only")
    plan_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE)
    return list(iter_plan_rows(store))


def make_feed(planned: list[PlannedRow], **limits: float) -> ShardFeed:
    """One row a call, unless batch_seconds is given."""
    shards = ((shard, list(rows)) for shard, rows in itertools.groupby(planned, key=lambda row: row.shard))
    defaults = {"max_open_bytes": 10**9, "max_open_shards": 9, "batch_seconds": 0.0}
    return ShardFeed(shards, Counters("tokenize"), **{**defaults, **limits})  # type: ignore[arg-type]


def pulled(feed: ShardFeed) -> Task:
    task = feed.pull()
    assert task is not None
    return task


def made(task: Task) -> list[SampleOutcome]:
    return [SampleOutcome(line=row.line, key=row.key, num_images=1) for row in task.payload]


@pytest.mark.parametrize("limits", [{"max_open_shards": 1}, {"max_open_bytes": 1}])
def test_feed_opens_no_more_shards_than_allowed(planned: list[PlannedRow], limits: dict[str, int]) -> None:
    feed = make_feed(planned, **limits)
    first, second = pulled(feed), pulled(feed)
    assert feed.pull() is None
    assert feed.num_open == 1
    for task in (first, second):
        feed.done(task, made(task), "payload")
    write = pulled(feed)
    assert isinstance(write.payload, WriteTask)
    assert feed.pull() is None, "an unwritten shard still fills the store"
    feed.done(write, ShardWritten(0, []), None)
    assert feed.pull() is not None


def test_feed_writes_in_plan_order_whatever_finishes_first(planned: list[PlannedRow]) -> None:
    costs = [row.model_copy(update={"predicted_cpu_seconds": float(row.line)}) for row in planned]
    feed = make_feed(costs)
    first, second = pulled(feed), pulled(feed)
    assert [first.name, second.name] == ["v1", "v0"], "the more expensive one first"
    feed.done(first, made(first), "b")
    feed.done(second, made(second), "a")
    assert [(sample.key, sample.batch) for sample in pulled(feed).payload.made] == [("v0", "a"), ("v1", "b")]


def test_feed_makes_lost_samples_again_and_keeps_the_others(planned: list[PlannedRow]) -> None:
    feed = make_feed(planned[:2])
    for task in [pulled(feed), pulled(feed)]:
        feed.done(task, made(task), f"old {task.name}")
    feed.done(pulled(feed), ShardWritten(0, ["v1"]), None)
    again = pulled(feed)
    assert again.name == "v1"
    assert feed.pull() is None
    assert not feed.finished
    feed.done(again, made(again), "new v1")
    write = pulled(feed)
    samples: list[MadeSample] = write.payload.made
    assert [sample.batch for sample in samples] == ["old v0", "new v1"]
    feed.done(write, ShardWritten(0, []), None)
    assert feed.finished


def test_feed_turns_a_verdict_into_a_ledger_row(planned: list[PlannedRow]) -> None:
    feed = make_feed(planned[:1])
    feed.condemned(pulled(feed), Verdict("worker_died", "SIGSEGV", 3))
    (row,) = pulled(feed).payload.quarantined
    assert (row.id, row.reason, row.attempts, row.line) == ("v0", "worker_died", 3, 1)
    assert row.row.video == planned[0].uri


def in_one_shard(planned: list[PlannedRow], *seconds: float) -> list[PlannedRow]:
    """Rows of these predictions."""
    return [
        planned[0].model_copy(update={"key": f"v{place}", "line": place + 1, "predicted_cpu_seconds": cost})
        for place, cost in enumerate(seconds)
    ]


def test_short_videos_go_out_together_in_plan_order_and_long_ones_alone(planned: list[PlannedRow]) -> None:
    rows = in_one_shard(planned, 0.5, 0.25, 9.0, 0.25, 0.5, 0.75, 0.125)
    names = [[row.key for row in batch] for batch in in_batches(rows, 1.0)]
    assert names == [["v2"], ["v0", "v1", "v3"], ["v4"], ["v5", "v6"]]
    assert [len(batch) for batch in in_batches(in_one_shard(planned, *[0.0] * (MAX_BATCH_ROWS + 3)), 1.0)] == [
        MAX_BATCH_ROWS,
        3,
    ]
    another = [planned[0].model_copy(update={"key": "last", "shard": planned[0].shard + 1})]
    feed = make_feed([*rows, *another], batch_seconds=1.0)
    assert [pulled(feed).name for _ in range(4)] == ["v2", "v0 and 2 more", "v5 and 1 more", "v4"]


def test_rows_of_the_last_shard_go_out_in_smaller_numbers(planned: list[PlannedRow]) -> None:
    rows = in_one_shard(planned, *[LAST_BATCH_SECONDS / 2] * 6)
    feed = make_feed(rows, batch_seconds=1.0)
    assert [len(pulled(feed).payload) for _ in range(3)] == [2, 2, 2]


def test_rows_of_a_call_that_failed_are_tried_alone(planned: list[PlannedRow]) -> None:
    feed = make_feed(in_one_shard(planned, 0.05, 0.05, 0.05), batch_seconds=1.0)
    together = pulled(feed)
    assert together.divisible
    together.attempts = 1
    feed.condemned(together, Verdict("worker_died", "SIGSEGV", 1))
    alone = [pulled(feed) for _ in range(3)]
    assert [(task.name, task.divisible, task.attempts) for task in alone] == [
        ("v0", False, 1),
        ("v1", False, 1),
        ("v2", False, 1),
    ]
    feed.done(alone[0], made(alone[0]), "a")
    feed.condemned(alone[1], Verdict("worker_died", "SIGSEGV", 4))
    feed.done(alone[2], made(alone[2]), "c")
    write: WriteTask = pulled(feed).payload
    assert [sample.key for sample in write.made] == ["v0", "v2"]
    assert [(row.id, row.attempts) for row in write.quarantined] == [("v0", 4)]  # all rows here have the first one's id


def test_transient_error_among_several_is_tried_alone_and_the_others_are_kept(planned: list[PlannedRow]) -> None:
    def down(row: PlannedRow, config: RunConfig) -> SampleOutcome:
        if row.key == "v1":
            raise TransientItemError("503")
        return SampleOutcome(line=row.line, key=row.key, members=[("a", row.key.encode())])

    job = TokenizeJob(config=SMALL_SHARDS, store=Store("/nowhere"), config_digest="", code_version="", make=down)
    feed = make_feed(in_one_shard(planned, 0.05, 0.05, 0.05), batch_seconds=1.0)
    together = pulled(feed)
    outcomes, members = job.run(together.payload)
    assert members == [[("a", b"v0")], None, [("a", b"v2")]]
    feed.done(together, outcomes, "abc")
    alone = pulled(feed)
    assert alone.name == "v1"
    assert feed.pull() is None
    with pytest.raises(TransientItemError):
        job.run(alone.payload)
    feed.done(alone, made(alone), "b")
    write: WriteTask = pulled(feed).payload
    assert [(sample.key, sample.batch, sample.place) for sample in write.made] == [
        ("v0", "abc", 0),
        ("v1", "b", 0),
        ("v2", "abc", 2),
    ]


def test_writer_fetches_a_call_once_and_tells_all_its_samples_when_it_is_lost(
    planned: list[PlannedRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TokenizeJob(config=SMALL_SHARDS, store=Store(tmp_path / "run"), config_digest="c", code_version="v")
    outcomes, members = job.run(tuple(planned[:2]))
    assert isinstance(outcomes, list)
    fetched: list[str] = []

    def fetch(reference: str) -> Any:
        fetched.append(reference)
        if reference == "gone":
            raise ObjectLostError("with its node")
        return members

    monkeypatch.setattr("pipelines.tokenize_videos.fetch", fetch)

    def write(*batches: str) -> Any:
        samples = [
            MadeSample(row.key, outcome, batch, place)
            for place, (row, outcome, batch) in enumerate(zip(planned, outcomes, batches, strict=False))
            if outcome is not None
        ]
        task = WriteTask(shard=0, made=samples, filtered=[], quarantined=[], started_unix_seconds=1.0)
        return job.run(task)[0]

    assert write("gone", "gone") == ShardWritten(0, ["v0", "v1"])
    assert write("there", "gone") == ShardWritten(0, ["v1"])
    assert write("there", "there") == ShardWritten(0, [])
    assert fetched == ["gone", "there", "gone", "there"]
    assert load_commits(job.store)[0].tar_digest is not None


# On Ray


@pytest.mark.ray
def test_ray_run_is_byte_identical_to_one_without(
    local_ray: None, clip_manifest: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    run = tmp_path / "ray"
    tokenize_videos(str(clip_manifest), Store(run), SMALL_SHARDS, RunOptions(workers=2, progress="off"))
    assert published(run) == reference


@pytest.mark.ray
def test_worker_killers_are_quarantined_and_nobody_else(
    local_ray: None, clip_manifest: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    marker = tmp_path / "died-once"

    def poisoned(row: PlannedRow, config: RunConfig) -> SampleOutcome:
        if row.key == "v0" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if row.key == "v2":
            os.kill(os.getpid(), signal.SIGSEGV)
        if row.key == "v3":
            time.sleep(3600)
        if row.key == "v5":
            raise MemoryError("a frame of 80 GiB")
        return make_sample(row, config)

    store = Store(tmp_path / "run")
    deadlines = DeadlinePolicy(base_seconds=4, factor=1)
    options = RunOptions(workers=2, progress="off", deadlines=deadlines)
    summary = tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, options, make=poisoned)
    assert summary.quarantined == {"worker_died": 1, "deadline_exceeded": 1, "out_of_memory": 1}
    fallen = {row.id: row for record in load_commits(store).values() for row in record.quarantined}
    assert fallen["v3"].attempts in (3, 4)  # one more where a worker with nothing to do took a copy
    assert {id: (row.reason, row.attempts) for id, row in fallen.items() if id != "v3"} == {
        "v2": ("worker_died", 4),  # with its neighbour, then alone
        "v5": ("out_of_memory", 4),
    }
    with ShardReader(store.root) as reader:
        assert reader.keys() == ["v0", "v1", "v4"]
    assert verify_run(store).errors == []
    assert published(tmp_path / "run")["shard-000000.tar"] == reference["shard-000000.tar"]


@pytest.mark.ray
def test_driver_killed_three_times_then_resumed_is_byte_identical(
    clip_manifest: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    run = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "jobs.cli", "tokenize", "--manifest", str(clip_manifest), "--out", str(run)),
        *("--recipe", "uniform-4", "--set", "shards.max_samples=2", "--set", "area_px=12544"),
        *("--workers", "2", "--progress", "off"),
    ]

    def start(**environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def signal_when(
        process: subprocess.Popen[bytes], happened: Callable[[], Any], number: int = signal.SIGKILL
    ) -> bytes:
        while not happened():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(number)
        return process.communicate()[1]

    signal_when(start(), lambda: (run / "plan" / "plan.json").exists())
    assert load_plan(Store(run)) is not None
    signal_when(start(), lambda: list((run / "commits").glob("*.json")))
    # The middle commit is taken away, so that the next driver has something to do when it is told to stop.
    for path in run.glob("*/shard-000001.*"):
        path.unlink()
    attempt = start()
    at_work = f'"pid": {attempt.pid}'  # an attempt alone may be of a worker that outlives the driver before by a moment
    err = signal_when(
        attempt,
        lambda: any(at_work in path.read_text() for path in run.glob("invocations/*.json")),
        signal.SIGTERM,
    )
    assert attempt.returncode == 130, err
    assert err.decode().strip().endswith("the same command goes on from here")
    before_index = start(OV2_FAILPOINT="before_index")
    err = before_index.communicate()[1]
    assert before_index.returncode == -signal.SIGKILL, err
    assert not (run / ".nv-meta" / ".info.json").exists()

    last = start()
    out, err = last.communicate()
    assert last.returncode == 0, err.decode()
    assert b"ok: 7 rows = 6 committed + 0 filtered + 1 quarantined" in out
    assert published(run) == reference


def test_driver_summarises_commits_and_a_resume_finishes_what_they_promise(
    clip_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ov2_core.storage import summaries
    from pipelines import tokenize_videos as tokenizing

    def fell(row: PlannedRow, config: RunConfig) -> SampleOutcome:
        if row.key == "v1":
            fallen = quarantine_planned(row, reason="not_media", message="no")
            return SampleOutcome(line=row.line, key=row.key, quarantined=fallen)
        return make_sample(row, config)

    monkeypatch.setattr(summaries, "MIN_NEW_COMMITS", 1)
    monkeypatch.setattr(tokenizing, "BLOCK_SHARDS", 2)
    store = Store(tmp_path / "run")
    tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE, make=fell)
    block = summaries.SummaryBlock.model_validate_json(store.read_bytes("summaries/block-000000.json"))
    assert [summary.shard for summary in block.commits] == [0, 1]
    before = {rel: store.read_bytes(rel) for rel in ("shards/shard-000000.tar.idx", "quarantine/shard-000000.jsonl")}
    for rel in before:
        store.remove(rel)
    store.remove("commits/shard-000002.json")
    summary = tokenize_videos(str(clip_manifest), store, SMALL_SHARDS, INLINE, make=fell)
    assert (summary.num_shards_before, summary.num_made) == (2, 2)
    assert {rel: store.read_bytes(rel) for rel in before} == before
    assert verify_run(store).errors == []
