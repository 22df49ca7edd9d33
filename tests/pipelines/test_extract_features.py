"""Feature runs: exactly once, resumed by the same call, byte-identical after kills, nobody charged for a neighbour."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from feature_runs import INLINE, make_model

from ov2_core.features.plan import ShardCost
from ov2_core.features.reader import FeatureReader
from ov2_core.storage.commit import load_commit, load_commits
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run
from pipelines import extract_features as pipeline
from pipelines.extract_features import EncodeJob, EncodeOptions, extract_features, predict_features
from pipelines.feature_feed import FeatureFeed, FeatureTotals, ShardEncoded, ShardTask, TrialPassed, TrialTask
from pipelines.options import RunOptions
from pipelines.progress import Counters
from pipelines.tasks import DeadlinePolicy, RunStoppedError, Verdict

PROCESSES = multiprocessing.get_context("forkserver")  # pytest's own process has threads: no fork of it
PROCESSES.set_forkserver_preload(["pipelines.extract_features", "ov2_core.features.reader", "ov2_core.storage.verify"])

ON_RAY = RunOptions(workers=2, progress="off", deadlines=DeadlinePolicy(base_seconds=20, factor=1))
KEYS = ["clip-0", "clip-1", "still", "clip-2", "clip-3", "clip-4"]


def published(run: Path) -> dict[str, str]:
    """Digest of every file that a reader of the run sees."""
    files = [*(run / "shards").iterdir(), *(run / ".nv-meta").iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def options(tiny_model: Path) -> EncodeOptions:
    return EncodeOptions(model=str(tiny_model), tokens_per_batch=100)


@pytest.fixture(scope="module")
def reference(token_run: Path, options: EncodeOptions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An undisturbed run without Ray; never written to. One thread for all of the module, as workers have."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("features") / "run"
    extract_features(Store(token_run), Store(run), options, INLINE)
    yield run
    torch.set_num_threads(num_threads)


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "copy"))


def test_run_mirrors_its_source_and_verifies(token_run: Path, reference: Path) -> None:
    found = verify_run(Store(reference))
    assert found.errors == []
    assert (found.manifest_rows, found.committed, found.quarantined, found.shards) == (6, 6, 0, 3)
    source, made = load_commits(Store(token_run)), load_commits(Store(reference))
    assert [[(s.key, s.line, s.num_tokens) for s in c.samples] for c in made.values()] == [
        [(s.key, s.line, s.num_tokens) for s in c.samples] for c in source.values()
    ]
    with FeatureReader(reference) as reader:
        assert reader.keys() == KEYS
    assert Store(reference).list("attempts") == []


@pytest.mark.parametrize("stage", ["merged", "unmerged"])
@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp32"])
def test_storage_is_predicted_to_the_byte(
    token_run: Path, tiny_model: Path, tmp_path: Path, stage: Any, dtype: Any
) -> None:
    options = EncodeOptions(model=str(tiny_model), stage=stage, dtype=dtype)
    plan, config = predict_features(Store(token_run), options)
    assert not list(tmp_path.iterdir())
    assert config.width == (64 if stage == "merged" else 128)
    extract_features(Store(token_run), Store(tmp_path), options, INLINE)
    found = verify_run(Store(tmp_path))
    assert found.errors == []
    assert (plan.predicted_bytes, plan.predicted_tokens) == (found.tar_bytes, found.num_tokens)


def test_second_call_makes_nothing_and_changes_nothing(token_run: Path, options: EncodeOptions, copy: Path) -> None:
    before = published(copy)
    summary = extract_features(Store(token_run), Store(copy), options, INLINE)
    assert (summary.num_made, summary.num_shards_before) == (0, 3)
    assert published(copy) == before


def test_lost_commit_is_made_again_and_alone(token_run: Path, options: EncodeOptions, copy: Path) -> None:
    before = published(copy)
    for path in copy.glob("*/shard-000001.*"):
        path.unlink()
    shutil.rmtree(copy / "plan")
    summary = extract_features(Store(token_run), Store(copy), options, INLINE)
    assert (summary.num_made, summary.num_shards_before) == (2, 2)
    assert published(copy) == before
    assert verify_run(Store(copy)).ok


def test_other_encoder_dtype_stage_or_source_is_refused_by_name(
    token_run: Path, tiny_model: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = Store(token_run), Store(copy)

    def refused(source: Store, **fields: Any) -> str:
        with pytest.raises(ValueError, match="differs from this command") as caught:
            extract_features(source, store, EncodeOptions(**{"model": str(tiny_model), **fields}), INLINE)
        return str(caught.value)

    assert "config.encoder_digest: " in refused(source, model=str(make_model(tmp_path / "other", seed=1)))
    assert "config.dtype: 'bf16' there, 'int8' here" in refused(source, dtype="int8")
    assert "config.stage: 'merged' there, 'unmerged' here" in refused(source, stage="unmerged")
    other = Path(shutil.copytree(token_run, tmp_path / "other-run"))
    commit = other / "commits" / "shard-000002.json"
    commit.write_text(commit.read_text().replace('"tar_digest":"', '"tar_digest":"0'))
    assert "config.source_digest: " in refused(Store(other))
    monkeypatch.setattr(pipeline, "code_version", lambda *_: "0+other")
    assert "code_version" in refused(source)


def test_sources_that_cannot_be_encoded_are_refused(
    token_run: Path, reference: Path, options: EncodeOptions, tmp_path: Path
) -> None:
    out = Store(tmp_path / "out")

    def refused(source: Path, message: str, options: EncodeOptions = options, out: Store = out) -> None:
        with pytest.raises(ValueError, match=message):
            extract_features(Store(source), out, options, INLINE)

    refused(tmp_path / "nothing", "holds no run")
    refused(reference, "features are made of token shards")
    refused(token_run, "another folder", out=Store(token_run))
    open_run = Path(shutil.copytree(token_run, tmp_path / "open"))
    (open_run / "commits" / "shard-000001.json").unlink()
    refused(open_run, "2 of 3 shards committed; finish it first")
    other = make_model(tmp_path / "patches", patch_size=16)
    refused(token_run, "patches of 14 px .* takes 16 px", options=EncodeOptions(model=str(other)))
    assert not (tmp_path / "out").exists()


def test_token_run_is_not_taken_for_a_feature_run(token_run: Path) -> None:
    with pytest.raises(ValueError, match="no features"):
        FeatureReader(token_run)


def test_source_that_lost_a_shard_stops_the_run_and_can_be_resumed(
    token_run: Path, options: EncodeOptions, reference: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(token_run, tmp_path / "source"))
    tar = source / "shards" / "shard-000001.tar"
    tar.rename(tmp_path / "away.tar")
    store = Store(tmp_path / "run")
    with pytest.raises(RunStoppedError, match=r"shard-000001.tar is missing; `ov2 verify"):
        extract_features(Store(source), store, options, INLINE)
    (tmp_path / "away.tar").rename(tar)
    extract_features(Store(source), store, options, INLINE)
    assert published(tmp_path / "run") == published(reference)


def test_damaged_samples_are_counted_and_the_sum_still_holds(
    token_run: Path, options: EncodeOptions, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(token_run, tmp_path / "source"))
    for key in ("still", "clip-2"):  # all that shard 1 holds
        commit = load_commit(Store(source), 1)
        sample = next(s for s in commit.samples if s.key == key)
        with open(source / "shards" / "shard-000001.tar", "r+b") as file:
            file.seek(next(p.content_byte_offset for p in sample.parts if p.name == "img_000.jpg"))
            file.write(b"damage")
    store = Store(tmp_path / "run")
    summary = extract_features(Store(source), store, options, INLINE)
    assert summary.quarantined == {"damaged_sample": 2}
    found = verify_run(store)
    assert found.errors == []
    assert (found.committed, found.quarantined_by_reason) == (4, {"damaged_sample": 2})
    assert load_commit(store, 1).tar_name is None
    ledger = (tmp_path / "run" / "quarantine" / "shard-000001.jsonl").read_text()
    assert ledger.count('"id":"') >= 2


@pytest.mark.parametrize(
    ("member", "data", "finding"),
    [
        ("features.safetensors", b"\xff" * 64, "not finite"),
        ("features.safetensors", b"\xff" * 8, "not safetensors"),
        ("patch_positions_001.npy", b"\x05", "positions_digest"),
        ("json", b"}", "not a FeatureRecord"),
    ],
)
def test_verify_names_what_is_damaged(copy: Path, member: str, data: bytes, finding: str) -> None:
    (sample, *_) = load_commit(Store(copy), 0).samples
    part = next(p for p in sample.parts if p.name == member)
    at = 0 if len(data) < 64 else part.content_byte_size - 64
    at = 200 if member.endswith("npy") else at
    with open(copy / "shards" / "shard-000000.tar", "r+b") as file:
        file.seek(part.content_byte_offset + at)
        file.write(data)
    found = verify_run(Store(copy))
    assert not found.ok
    mine = [error for error in found.errors if "key clip-0" in error]
    assert any(finding in error for error in mine), found.errors
    assert all("ov2 tokenize" not in error for error in found.errors)
    assert any("sha256" in error for error in found.errors)


def test_verify_tells_a_missing_shard_and_a_foreign_encoder(copy: Path, reference: Path) -> None:
    for path in copy.glob("*/shard-000002.*"):
        path.unlink()
    found = verify_run(Store(copy), deep=False)
    assert any("shard 2: not committed yet" in error and "`ov2 encode`" in error for error in found.errors)
    record = copy / "run.json"
    digest = load_run_config(copy)["encoder_digest"]
    record.write_text(record.read_text().replace(digest, "f" * 64))
    found = verify_run(Store(copy))
    assert any("its json says encoder_digest" in error for error in found.errors)


def load_run_config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run / "run.json").read_text())["config"]
    return config


# The feed alone


def make_feed(token_run: Path) -> FeatureFeed:
    costs = [ShardCost(shard=i, num_samples=2, num_tokens=320, predicted_bytes=1) for i in range(2)]
    return FeatureFeed(Store(token_run), costs, Counters("encode"), FeatureTotals(), seconds_per_token=0.01)


def test_feed_takes_a_deadly_shard_apart_and_charges_one_sample(token_run: Path) -> None:
    feed = make_feed(token_run)
    shard, other = feed.pull(), feed.pull()
    assert shard is not None
    assert other is not None
    assert shard.divisible
    assert feed.pull() is None
    feed.condemned(shard, Verdict("worker_died", "SIGSEGV", 2))
    trials = [feed.pull(), feed.pull()]
    assert [trial.payload for trial in trials] == [TrialTask(0, "clip-0"), TrialTask(0, "clip-1")]
    assert not any(trial.divisible for trial in trials)
    feed.condemned(trials[1], Verdict("worker_died", "SIGSEGV", 3))
    assert feed.pull() is None, "the other trial is still on"
    feed.done(trials[0], TrialPassed(0), None)
    last = feed.pull()
    assert last is not None
    assert isinstance(last.payload, ShardTask)
    assert (last.blamed, last.payload.one_by_one, list(last.payload.fallen)) == (False, True, ["clip-1"])
    row = last.payload.fallen["clip-1"]
    assert (row.reason, row.attempts, row.stage, row.line) == ("worker_died", 3, "encode", 2)
    feed.done(other, ShardEncoded(shard=1), None)
    assert not feed.finished
    feed.done(last, ShardEncoded(shard=0), None)
    assert feed.finished


def test_feed_stops_where_the_source_is_lost(token_run: Path) -> None:
    feed = make_feed(token_run)
    task = feed.pull()
    assert task is not None
    with pytest.raises(RunStoppedError, match="gone"):
        feed.done(task, ShardEncoded(shard=0, source_lost="gone"), None)


# On Ray


@pytest.mark.ray
def test_ray_run_is_byte_identical_to_one_without(
    local_ray: None, token_run: Path, options: EncodeOptions, reference: Path, tmp_path: Path
) -> None:
    summary = extract_features(Store(token_run), Store(tmp_path / "ray"), options, ON_RAY)
    assert published(tmp_path / "ray") == published(reference)
    assert 0 < summary.compute_share < 1


@pytest.mark.ray
@pytest.mark.parametrize(
    ("deed", "reason", "attempts"),
    [
        ("kill", "worker_died", 3),
        pytest.param("hang", "deadline_exceeded", 2, marks=pytest.mark.slow),
        pytest.param("hog", "out_of_memory", 3, marks=pytest.mark.slow),
    ],
)
def test_worker_killers_are_quarantined_and_nobody_else(
    local_ray: None,
    token_run: Path,
    options: EncodeOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deed: str,
    reason: str,
    attempts: int,
) -> None:
    marker = tmp_path / "died-once"

    class DeadlyJob(EncodeJob):
        """Reading clip-1 is deadly, and the still kills its worker once, without a reason."""

        def warm_up(self) -> None:
            super().warm_up()
            from ov2_core.features import extract

            show_sample = extract.show_sample

            def deadly(stored: Any) -> Any:
                if stored.key == "clip-1" and deed == "kill":
                    os.kill(os.getpid(), signal.SIGSEGV)
                if stored.key == "clip-1" and deed == "hang":
                    time.sleep(3600)
                if stored.key == "clip-1":
                    raise MemoryError("a frame of 80 GiB")
                if stored.key == "still" and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return show_sample(stored)

            extract.show_sample = deadly

    monkeypatch.setattr(pipeline, "EncodeJob", DeadlyJob)
    store = Store(tmp_path / "run")
    quick = RunOptions(workers=2, progress="off", deadlines=DeadlinePolicy(base_seconds=4, factor=0))
    summary = extract_features(Store(token_run), store, options, quick)
    assert summary.quarantined == {reason: 1}
    fallen = [row for commit in load_commits(store).values() for row in commit.quarantined]
    assert [(row.id, row.reason, row.attempts) for row in fallen] == [("clip-1", reason, attempts)]
    with FeatureReader(store.root) as reader:
        assert reader.keys() == [key for key in KEYS if key != "clip-1"]
    assert marker.exists()
    assert verify_run(store).errors == []


FAILPOINTS = ("before_encode", "mid_encode:2", "mid_tar", "after_upload", "after_commit", "before_cleanup")


@pytest.mark.ray
def test_killed_worker_and_killed_driver_leave_the_same_bytes(
    token_run: Path, options: EncodeOptions, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "jobs.cli", "encode", "--shards", str(token_run), "--out", str(run)),
        *("--model", options.model, "--tokens-per-batch", "100", "--device", "cpu"),
        *("--workers", "2", "--progress", "off"),
    ]

    def start(**environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def kill_when(process: subprocess.Popen[bytes], happened: Callable[[], Any]) -> None:
        while not happened():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.kill()
        process.communicate()

    first = start(OV2_FAILPOINT="mid_encode:2", OV2_FAILPOINT_MARKER=str(tmp_path / "once"))
    kill_when(first, lambda: (tmp_path / "once").exists() and list(run.glob("commits/*")))
    assert not (run / ".nv-meta" / ".info.json").exists()
    last = start()
    out, err = last.communicate()
    assert last.returncode == 0, err.decode()
    assert b"ok: 6 rows = 6 committed + 0 filtered + 0 quarantined" in out
    assert published(run) == published(reference)
    assert verify_run(Store(run)).errors == []
    assert Store(run).list("attempts") == []


def _encode_and_die(source: str, run: str, options: EncodeOptions, point: str) -> None:
    os.environ["OV2_FAILPOINT"] = point
    extract_features(Store(source), Store(run), options, INLINE)


@pytest.mark.parametrize(
    "point", [*FAILPOINTS, "before_tar", "after_tar", "before_commit", "before_publish", "mid_index"]
)
def test_a_kill_at_any_failpoint_is_mended_by_the_same_call(
    token_run: Path, options: EncodeOptions, reference: Path, tmp_path: Path, point: str
) -> None:
    """Without Ray the whole process dies, as when a machine does."""
    run = tmp_path / "run"
    process = PROCESSES.Process(target=_encode_and_die, args=(str(token_run), str(run), options, point))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    extract_features(Store(token_run), Store(run), options, INLINE)
    assert published(run) == published(reference)
    assert verify_run(Store(run)).errors == []
    assert Store(run).list("attempts") == []
