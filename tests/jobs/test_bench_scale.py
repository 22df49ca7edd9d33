import json
from pathlib import Path

import pytest

from jobs import bench_scale, scale_efficiency, scale_parts
from jobs.bench_scale import broken, main, table_text
from ov2_core.plan import iter_plan_rows
from ov2_core.storage.commit import committed_shards, load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.summaries import iter_summaries


def test_plan_part_plans_every_row_but_those_made_to_fall(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    scale_parts.write_manifest(manifest, 7_100)
    found = scale_parts.part_plan({"manifest": str(manifest), "run": str(tmp_path / "run"), "workers": 0})
    assert (found["rows"], found["planned"], found["quarantined"]) == (7_100, 7_098, 2)
    rows = list(iter_plan_rows(Store(tmp_path / "run")))
    assert len({row.key for row in rows}) == 7_098
    assert len({row.probe.codec for row in rows}) == 3
    assert found["shards"] == rows[-1].shard + 1


def test_restore_part_goes_on_up_to_the_first_video(tmp_path: Path) -> None:
    spec = {"manifest": str(tmp_path / "m.jsonl"), "run": str(tmp_path / "run"), "shards": 30, "samples_per_shard": 2}
    assert scale_parts.part_make_run(spec)["shards"] == 29
    store = Store(tmp_path / "run")
    assert committed_shards(store) == list(range(29))
    assert load_commit(store, 7).samples[1].key == "shard-000007-1"
    found = scale_parts.part_restore(spec)
    assert found["shards"] == 29
    assert committed_shards(store) == list(range(29)), "nothing was made"
    assert found["commit_bytes"] == sum(summary.commit_bytes for summary in iter_summaries(store))


def test_overhead_part_commits_every_video(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    scale_parts.write_manifest(manifest, 40)
    spec = {"manifest": str(manifest), "run": str(tmp_path / "run"), "workers": 0}
    scale_parts.part_plan(spec)
    assert scale_parts.part_overhead(spec)["rows"] == 40


def test_plain_processes_write_what_the_pipeline_writes(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_efficiency, "NUM_FILES", 6)
    few = scale_efficiency.with_overrides(scale_efficiency.CONFIG, {"shards.max_samples": "4"})
    monkeypatch.setattr(scale_efficiency, "CONFIG", few)
    for seed in range(6):
        (tmp_path / f"clip-{seed}.mp4").write_bytes((clip_folder / f"clip_{seed}.mp4").read_bytes())
    manifest = scale_efficiency.write_clips(tmp_path, 10, seconds=2.0)
    run, times = tmp_path / "ours", tmp_path / "seconds.txt"
    options = scale_efficiency.RunOptions(workers=0, progress="off")
    for folder in (run, tmp_path / "bare"):
        scale_efficiency.plan_videos(str(manifest), Store(folder), scale_efficiency.CONFIG, options)
    make = scale_efficiency.TimedMake(str(times))
    with scale_efficiency.CpuWatch(pause_seconds=0.02) as watch:
        scale_efficiency.tokenize_videos(str(manifest), Store(run), scale_efficiency.CONFIG, options, make=make)
    for number in range(2):
        scale_efficiency.make_share(str(tmp_path / "bare"), number, 2, str(tmp_path / f"{number}.txt"))
    digests = scale_efficiency.digests(Store(run))
    assert len(digests) == 3
    assert digests == scale_efficiency.digests(Store(tmp_path / "bare"))
    assert len(times.read_text().splitlines()) == 10
    spent = scale_efficiency._spent([times], [run], watch)
    assert 0 < spent["made_seconds"] <= spent["wall_seconds"]
    assert spent["tree_cpu_seconds"] > 0


def test_neighbours_are_compared_so_that_a_slow_minute_of_the_machine_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowness = iter([1, 1, 1, 3, 3, 3, 2, 1, 1, 1])  # of each run in turn
    order = []

    def run(kind: str, seconds: float) -> dict[str, float]:
        order.append(kind)
        wall = next(slowness) * seconds
        return {"wall_seconds": wall, "tree_cpu_seconds": 2 * wall, "made_seconds": wall, "cpu_seconds": wall}

    monkeypatch.setattr(scale_efficiency, "write_clips", lambda folder, *args, **options: folder / "manifest.jsonl")
    monkeypatch.setattr(scale_efficiency, "plan_videos", lambda *args: None)
    monkeypatch.setattr(scale_efficiency, "digests", lambda store: ["same"])
    monkeypatch.setattr(scale_efficiency, "_by_workers", lambda *args: run("ours", 10.0))
    monkeypatch.setattr(scale_efficiency, "_by_processes", lambda *args: run("bare", 9.0))
    found = scale_efficiency.measure_efficiency(tmp_path, num_clips=1, clip_seconds=1.0, height_px=360, workers=2)
    assert order[:6] == ["bare", "ours", "ours", "bare", "bare", "ours"]
    assert found["efficiency"] == pytest.approx(0.9)
    assert found["least_efficiency"] == pytest.approx(0.45)
    assert found["most_efficiency"] == pytest.approx(2.7)
    assert found["busy"] == found["bare_busy"] == 1.0


def test_broken_limits_are_named_and_set_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"rows": 10, "driver_ms_per_video": 1.5}
    monkeypatch.setattr(bench_scale, "_run_part", lambda part, folder, args: found)
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    arguments = ["--part", "overhead", "--json", str(kept), "--markdown", str(page)]
    assert main(arguments) == 0
    found["driver_ms_per_video"] = 2.5
    assert main(arguments) == 1
    assert json.loads(kept.read_text())["overhead"]["driver_ms_per_video"] == 2.5
    assert "driver_ms_per_video 2.5, not <= 2" in page.read_text()
    assert page.read_text().count(bench_scale.BEGIN) == 1
    assert "2.50 ms" in capsys.readouterr().out


def test_every_part_has_words_and_limits() -> None:
    machine = {"date": "d", "load_average": 1.0, "cpus": 2, "versions": "v"}
    plan = {"rows": 1, "shards": 1, "wall_seconds": 901, "cpu_seconds": 1, "tree_cpu_seconds": 1, "peak_rss_mib": 1}
    restore = {"shards": 1, "commit_bytes": 1, "summary_bytes": 1, "restore_seconds": 1, "status_seconds": 1}
    few = {"rows": 1, "plan_peak_rss_mib": 100, "peak_rss_mib": 100}
    efficiency = {
        "clips": 1,
        "clip_seconds": 10.0,
        "clip_height_px": 720,
        "workers": 2,
        "wall_seconds": 1,
        "bare_seconds": 1,
        "efficiency": 0.93,
        "busy": 0.94,
        "bare_busy": 1.0,
        "repeats": 5,
        "least_efficiency": 0.9,
        "most_efficiency": 1.1,
    }
    found = {
        "plan": {**plan, "tree_peak_mib": 1},
        "restore": {**restore, "first_look_seconds": 1},
        "memory": {"few": few, "many": few, "growth": 1.0},
        "overhead": {"rows": 1, "driver_ms_per_video": 1},
        "efficiency": efficiency,
        "short-clips": efficiency,
        "small-clips": efficiency,
    }
    text = table_text({part: {**one, **machine} for part, one in found.items()})
    assert len(text.splitlines()) == 2 + len(bench_scale.PARTS) + 2
    assert broken("plan", found["plan"]) == ["rows 1, not >= 1e+07", "wall_seconds 901, not <= 900"]
    assert broken("efficiency", found["efficiency"]) == ["busy 0.94, not >= 0.95"]
