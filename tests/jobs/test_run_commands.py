"""status, failed, replay, append, index, gc through the command line, on a run without Ray."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from jobs.run_commands import age_seconds, status_text
from ov2_core.config import RunConfig, recipe
from ov2_core.make_sample import SampleOutcome, make_sample, quarantine_planned
from ov2_core.run_status import read_status
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import PlannedRow

FAST = ["--workers", "0", "--progress", "off"]


def ov2(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_but_v1(row: PlannedRow, config: RunConfig) -> SampleOutcome:
    if row.key == "v1":
        fallen = quarantine_planned(row, reason="worker_died", message="SIGSEGV\nmore")
        return SampleOutcome(line=row.line, key=row.key, quarantined=fallen)
    return make_sample(row, config)


@pytest.fixture
def run(clip_manifest: Path, tmp_path: Path) -> Path:
    """A finished run: five committed, v1 fell with its worker, one source is missing."""
    folder = tmp_path / "run"
    options = RunOptions(workers=0, progress="off")
    tokenize_videos(str(clip_manifest), Store(folder), recipe("uniform-4"), options, make=make_but_v1)
    return folder


def test_status_tells_the_sum_and_what_fell_last(run: Path) -> None:
    result = ov2("status", run)
    assert result.exit_code == 0, result.output
    lines = {line[:17].strip(): line[18:] for line in result.stdout.splitlines() if not line.startswith(" ")}
    assert (lines["manifest rows"], lines["left"], lines["shards"]) == ("7", "0", "1 of 1 committed")
    assert lines["committed"].startswith("5 (")
    assert lines["quarantined"] == "2 (source_missing 1, worker_died 1)"
    assert lines["at work"] == "nobody"
    assert "worker_died: line 2, v1 (at tokenize): SIGSEGV" in result.stdout
    plain = json.loads(ov2("status", run, "--json").stdout)
    assert (plain["committed"], plain["left"], plain["alive"]) == (5, 0, [])
    assert [row["reason"] for row in plain["newest"]] == ["worker_died", "source_missing"]


def test_status_from_outside_while_the_run_is_at_work(
    clip_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.observe.SIGN_SECONDS", 0.0)
    monkeypatch.setattr("pipelines.shard_feed.LAST_BATCH_SECONDS", 0.0)  # a row a call
    seen = []

    def look(row: PlannedRow, config: RunConfig) -> SampleOutcome:
        seen.append(read_status(Store(tmp_path / "run")))
        return make_sample(row, config)

    options = RunOptions(workers=0, progress="off")
    tokenize_videos(str(clip_manifest), Store(tmp_path / "run"), recipe("uniform-4"), options, make=look)
    status = seen[3]
    (one,) = status.alive()
    assert (one.stage, one.num_items, status.left, status.num_shards_committed) == ("tokenize", 6, 6, 0)
    assert one.num_done in (2, 3)
    text = status_text(status)
    assert "rows/s" in text
    assert f"{one.num_done} of 6 rows" in text
    assert len(read_status(Store(tmp_path / "run")).invocations) == 2  # the plan's and the tokens'
    silent = status_text(status, now=time.time() + 600)
    assert "no sign of life for 10m" in silent
    assert read_status(Store(tmp_path / "run")).alive() == []


def test_status_before_anything_is_planned_and_of_no_run(tmp_path: Path, clip_manifest: Path) -> None:
    assert (
        ov2("plan", "--manifest", clip_manifest, "--out", tmp_path / "run", "--recipe", "uniform-4", *FAST).exit_code
        == 0
    )
    result = ov2("status", tmp_path / "run")
    assert "left              6" in result.stdout
    for command in (["status"], ["failed"], ["replay", *FAST], ["index"], ["gc"]):
        result = ov2(command[0], tmp_path / "nowhere", *command[1:])
        assert result.exit_code == 2, result.output
        assert "no run" in result.stderr


def test_failed_groups_by_reason_and_gives_rows_and_manifests(run: Path, tmp_path: Path) -> None:
    text = ov2("failed", run).stdout
    assert "quarantined       2" in text
    assert "worker_died: 1\n    line 2, v1 (at tokenize): SIGSEGV" in text
    rows = [json.loads(line) for line in ov2("failed", run, "--json").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["gone", "v1"]
    (row,) = [json.loads(line) for line in ov2("failed", run, "--json", "--reason", "worker_died").stdout.splitlines()]
    assert row["line"] == 2
    manifest = tmp_path / "again.jsonl"
    assert "1 rows" in ov2("failed", run, "--reason", "worker_died", "--manifest", manifest).stdout
    other = ov2("tokenize", "--manifest", manifest, "--out", tmp_path / "other", "--recipe", "uniform-4", *FAST)
    assert "ok: 1 rows = 1 committed" in other.stdout
    assert ov2("failed", run, "--manifest", tmp_path / "x.csv").exit_code == 2


def test_replay_then_append_then_status(run: Path, clip_folder: Path, tmp_path: Path) -> None:
    result = ov2("replay", run, "--reason", "worker_died", *FAST)
    assert result.exit_code == 0, result.output
    assert "round             1 (replay): 1 rows, 1 planned" in result.stdout
    assert "ok: 7 rows = 6 committed + 0 filtered + 1 quarantined" in result.stdout
    assert "nothing to take" in ov2("replay", run, "--reason", "worker_died", *FAST).stdout
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"video": str(clip_folder / "clip_0.mp4"), "id": "more"}) + "\n")
    result = ov2("append", run, "--manifest", more, *FAST)
    assert "ok: 8 rows = 7 committed + 0 filtered + 1 quarantined" in result.stdout
    status = read_status(Store(run))
    assert (status.committed, status.left, status.num_rounds, status.num_shards) == (7, 0, 2, 3)
    assert "quarantined       1" in ov2("failed", run).stdout
    assert ov2("verify", run).exit_code == 0
    report = (run / "report.html").read_text()
    assert "source_missing" in report
    assert "worker_died" not in report


def test_gc_tells_first_and_removes_on_demand(run: Path) -> None:
    orphan = run / "attempts" / "shard-000000" / "late.tar"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(bytes(2048))
    told = ov2("gc", run)
    assert "attempts/shard-000000/late.tar: its shard is committed (2.0 KiB)" in told.stdout
    assert orphan.exists()
    assert "1 (2.0 KiB) removed; 0 kept" in ov2("gc", run, "--delete").stdout
    assert not orphan.exists()
    assert ov2("gc", run, "--older-than", "soon").exit_code == 2


def test_index_is_rebuilt(run: Path) -> None:
    before = (run / ".nv-meta/index.sqlite").read_bytes()
    (run / ".nv-meta/index.sqlite").unlink()
    assert "5 samples" in ov2("index", run).stdout
    assert (run / ".nv-meta/index.sqlite").read_bytes() == before


def test_ages_have_units() -> None:
    assert [age_seconds(text) for text in ("30s", "90m", "1.5h", "7d")] == [30, 5400, 5400, 604800]
