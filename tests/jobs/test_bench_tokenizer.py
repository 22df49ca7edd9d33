"""The tokenizer benchmark: what it measures is what it says, and a failure is a row."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jobs.bench_peer as bench_peer
import jobs.bench_tokenizer as bench
from jobs.bench_measure import encode_jpegs, measure, workload
from jobs.bench_quality import jpeg_cost, score_clip, source_frames, tokenize_all
from jobs.bench_report import BEGIN, END, QUALITY_BEGIN, tables_of, write_markdown
from ov2_core.evals.clips import write_rope_clip
from ov2_core.evals.evidence import evidence_of, with_source_pixels
from ov2_core.media.probe import probe_video


@pytest.fixture(scope="module")
def rope(tmp_path_factory):
    path = tmp_path_factory.mktemp("rope") / "rope.mp4"
    return path, write_rope_clip(path, seed=4, seconds=2, width_px=320, height_px=180)


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_measure_counts_cpu_of_the_call_and_not_its_sleep():
    def call(path):
        burn(0.2)
        time.sleep(0.2)
        return {"path": path}

    result = measure(call, "here")
    assert result["path"] == "here"
    assert 0.19 < result["cpu_seconds"] < 0.35
    assert result["wall_seconds"] > 0.39


def test_measure_counts_cpu_of_children():
    import subprocess

    spin = "import time\nwhile time.process_time() < 0.4: pass"
    result = measure(lambda _: subprocess.run([sys.executable, "-c", spin], check=True) and {}, "")
    assert result["cpu_seconds"] > 0.35


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak of a call needs Linux's /proc")
def test_measure_peak_is_of_the_call_alone():
    def allocate(mebibytes):
        return {"sum": int(np.ones(mebibytes << 20, np.uint8)[:: 1 << 12].sum())}

    allocate(120)
    result = measure(lambda _: allocate(60), "")
    if not result["peak_is_of_the_call"]:
        pytest.skip("this kernel does not let a process reset its peak")
    above = result["peak_rss_bytes"] - result["rss_before_bytes"]
    assert 50 << 20 < above < 100 << 20


@pytest.mark.parametrize("kind", ["saliency", "evidence", "saliency fast", "evidence fast", "uniform"])
def test_workload_tokenizes_and_encodes(rope, kind):
    result = workload(kind, 8)(str(rope[0]))
    assert result["images"] == 8
    assert result["tokens"] == 8 * 11 * 6
    assert result["jpeg_bytes"] > 8000


def test_workload_decode_counts_every_frame(rope):
    assert workload("decode", 0)(str(rope[0])) == {"frames": 60}


def test_our_canvases_hold_the_source_pixels_that_their_positions_name(rope):
    """So the peer's selection, repainted with source pixels, is measured on equal terms with ours."""
    path, _ = rope
    probe = probe_video(str(path))
    for kind, video in tokenize_all(path, 8).items():
        if kind.endswith("fast"):  # decoded without the loop filter: near the source's pixels, not equal
            continue
        evidence = evidence_of(video)
        height, width = video.images_NHW3.shape[1:3]
        repainted = with_source_pixels(evidence, source_frames(path, probe, width_px=width, height_px=height))
        np.testing.assert_array_equal(repainted.pixels_EBB3, evidence.pixels_EBB3)


def test_score_clip_gives_each_policy_the_same_tokens(rope):
    path, truth = rope
    cases, jpeg = score_clip(path, truth=truth, budgets=[4, 8], peer_folders={})
    assert [(c["budget"], c["policy"]) for c in cases] == [
        (b, p) for b in (4, 8) for p in ("evidence", "evidence fast", "saliency", "saliency fast", "uniform")
    ]
    for budget in (4, 8):
        assert len({c["tokens"] for c in cases if c["budget"] == budget}) == 1
    assert all(c["num_events"] == len(truth.event_frames) > 0 for c in cases)
    by = {(c["budget"], c["policy"]): c for c in cases}
    assert by[8, "uniform"]["psnr_db"] < by[8, "evidence"]["psnr_db"], "hold-DP under a static camera"
    assert {r["policy"] for r in jpeg} == {"saliency", "evidence", "uniform"}


def test_jpeg_cost_falls_with_quality_and_so_does_psnr(rope):
    rows = jpeg_cost("uniform", tokenize_all(rope[0], 4)["uniform"])
    for field in ("bytes", "psnr_db"):
        values = [r[field] for r in rows]
        assert values == sorted(values)
    assert rows[0]["bytes_per_token"] == rows[0]["bytes"] / (4 * 66)


def test_jpegs_are_files_of_the_asked_quality():
    noise = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    low, high = encode_jpegs(noise, quality=50), encode_jpegs(noise, quality=95)
    assert len(low) == 2
    assert all(f[:2] == b"\xff\xd8" for f in low)
    assert sum(map(len, low)) < sum(map(len, high))


def test_peer_settings_meet_the_number_of_canvases():
    settings = bench_peer.peer_settings(images=16, num_frames=1000)
    assert (settings["num_sampled_frames"], settings["group_size"]) == (128, 32)
    assert settings["num_sampled_frames"] // settings["group_size"] * settings["images_per_group"] == 16
    assert bench_peer.peer_settings(images=16, num_frames=50)["num_sampled_frames"] == 48


@pytest.mark.parametrize(("images", "num_frames"), [(10, 100), (16, 15), (2, 100)])
def test_peer_settings_refuse_what_cannot_be_met(images, num_frames):
    with pytest.raises(ValueError, match=r"canvases|too few"):
        bench_peer.peer_settings(images=images, num_frames=num_frames)


def test_peer_without_ffprobe_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(bench_peer.shutil, "which", lambda name: None)
    python, note = bench_peer.find_peer(sys.executable)
    assert python is None
    assert "ffprobe" in note


def test_peer_python_without_the_package_says_so(monkeypatch):
    monkeypatch.setattr(bench_peer.shutil, "which", lambda name: "/bin/true")
    python, note = bench_peer.find_peer(sys.executable)
    assert python is None
    assert "codec_video_prep" in note
    assert "does not run" in bench_peer.find_peer("/no/such/python")[1]


def test_peer_that_crashes_is_a_row_with_its_last_line(rope, tmp_path):
    """Our own Python stands in: it runs the child's script and fails at its import."""
    result = bench_peer.run_peer(
        sys.executable,
        video=rope[0],
        images=4,
        num_frames=60,
        coded_size_px=(320, 180),
        warmups=[rope[0]],
        warmup_frames=60,
        out=tmp_path / "out",
    )
    assert "codec_video_prep" in result["error"]


def run_in_process(kind, budget, path, warmups, folder):
    return measure(workload(kind, budget), str(path))


@pytest.fixture
def quick(monkeypatch):
    """The whole command on one generated clip, children in this process."""
    monkeypatch.setattr(bench, "_GENERATED", (bench.GeneratedClip(name="rope", content="static"),))
    monkeypatch.setattr(bench, "run_child", run_in_process)


def test_command_writes_json_and_fills_the_marked_section(quick, tmp_path, capsys):
    page, report_path = tmp_path / "page.md", tmp_path / "report.json"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    real = tmp_path / "real"
    real.mkdir()
    write_rope_clip(real / "mine.mp4", seconds=1, width_px=192, height_px=128)
    (real / "broken.mp4").write_text("no video")
    options = ["--videos", str(real), "--budgets", "4,8", "--repeats", "2", "--generated-seconds", "0.8", "--no-peer"]
    status = bench.main([*options, "--json", str(report_path), "--markdown", str(page)])
    assert status == 1, "one clip is broken"
    report = json.loads(report_path.read_text())
    assert [c["name"] for c in report["clips"]] == ["rope.mp4", "broken.mp4", "mine.mp4"]
    assert report["clips"][1]["error"].startswith("not_media")
    assert len(report["clips"][0]["cases"]) == 2 * 5, "four codec kinds and uniform frames at two budgets"
    decode = next(c for c in report["clips"][0]["cost"] if c["kind"] == "decode")
    assert len(decode["runs"]) == 2
    assert decode["cpu_seconds"]["min"] <= decode["cpu_seconds"]["median"] <= decode["cpu_seconds"]["max"]
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("After\n")
    assert "old" not in text
    assert "broken.mp4" in text
    assert str(tmp_path) not in text + report_path.read_text(), "paths of this machine"
    assert "saliency" in capsys.readouterr().out

    again = tmp_path / "again.md"
    again.write_text(text)
    write_markdown(report, again)
    assert again.read_text() == text


def test_quality_alone_fills_a_section_of_its_own(quick, tmp_path):
    page, report_path = tmp_path / "page.md", tmp_path / "report.json"
    page.write_text(f"{BEGIN}\ncosts\n{END}\n")
    options = ["--no-cost", "--budgets", "4,8", "--generated-seconds", "0.8"]
    assert bench.main([*options, "--json", str(report_path), "--markdown", str(page)]) == 0
    report = json.loads(report_path.read_text())
    assert all(clip["cases"] and not clip["cost"] for clip in report["clips"])
    (table,) = tables_of(report)
    assert {row[1] for row in table.rows} == {"4", "8"}
    assert "peer" not in {row[0] for row in table.rows}
    text = page.read_text()
    assert f"{BEGIN}\ncosts\n{END}\n" in text
    assert "Quality alone" in text.split(QUALITY_BEGIN)[1]


@pytest.mark.parametrize("options", [["--budgets", "2"], ["--repeats", "0"], ["--videos", "/no/such/folder"]])
def test_command_refuses_options_that_make_no_sense(quick, options, capsys):
    assert bench.main([*options, "--no-peer"]) == 2
    assert "ov2 bench tokenizer:" in capsys.readouterr().err


def test_markdown_refuses_half_a_section(tmp_path):
    (tmp_path / "page.md").write_text(f"{BEGIN}\n")
    with pytest.raises(ValueError, match="only one of"):
        write_markdown(synthetic_report([]), tmp_path / "page.md")


def synthetic_report(clips):
    return {
        "machine": {"date": "2026-01-01", "cpu": "x", "usable_cpus": 2, "system": "Linux"},
        "versions": {},
        "settings": {"budgets": [8], "repeats": 1},
        "peer": {"note": "none"},
        "load_average_before": [0.1],
        "load_average_after": [0.2],
        "clips": clips,
    }


def synthetic_case(policy, psnr_db, tokens=100):
    return {
        "budget": 8,
        "policy": policy,
        "tokens": tokens,
        "psnr_db": psnr_db,
        "ssim": 0.5,
        "event_recall": None,
        "strict_recall": None,
        "num_events": 0,
    }


def test_summary_averages_gains_counts_wins_and_leaves_out_unequal_tokens():
    def clip(name, uniform, evidence, tokens=100):
        cases = [synthetic_case("uniform", uniform), synthetic_case("evidence", evidence, tokens)]
        return {"name": name, "cases": cases, "cost": [], "jpeg": []}

    clips = [clip("a", 20.0, 23.0), clip("b", 20.0, 19.0), clip("c", 20.0, None), clip("d", 20.0, 90.0, tokens=150)]
    row = next(r for r in tables_of(synthetic_report(clips))[0].rows if r[0] == "evidence")
    assert row[2] == "3", "clips of equal tokens"
    assert row[3] == "+1.00", "mean of +3 and -1; the exact one has no decibels"
    assert row[7] == "2", "the +3 and the exact one"


def test_summary_is_repeated_on_the_clips_that_the_peer_could_do():
    def clip(name, *cases):
        return {"name": name, "cases": list(cases), "cost": [], "jpeg": []}

    uniform, evidence = synthetic_case("uniform", 20.0), synthetic_case("evidence", 23.0)
    both = clip("both", uniform, evidence, synthetic_case("peer", 21.0))
    larger = clip("larger", uniform, synthetic_case("evidence", 40.0), synthetic_case("peer", 50.0, tokens=150))
    alone = clip("alone", uniform, synthetic_case("evidence", 60.0))
    tables = tables_of(synthetic_report([both, larger, alone]))
    whole, narrow = (t for t in tables if t.title.startswith("Evidence and events"))
    assert {r[0]: (r[2], r[3]) for r in whole.rows}["evidence"] == ("3", "+21.00")
    rows = {r[0]: (r[2], r[3]) for r in narrow.rows}
    assert rows == {"uniform": ("1", "+0.00"), "evidence": ("1", "+3.00"), "peer": ("1", "+1.00")}


def test_tables_by_clip_give_gains_and_multiples_and_a_dash_where_tokens_differ():
    costs = [
        {
            "budget": budget,
            "kind": kind,
            "cpu_seconds": {"median": cpu, "min": cpu, "max": cpu},
            "wall_seconds": {"median": cpu},
        }
        | {"peak_rss_bytes": {"median": 3 << 20}}
        for budget, kind, cpu in ((None, "decode", 2.0), (8, "uniform", 1.0), (8, "evidence", 3.0))
    ]
    cases = [
        synthetic_case("uniform", 20.0),
        synthetic_case("evidence", 23.0),
        synthetic_case("peer", 99.0, tokens=150),
    ]
    form = {"codec": "h264", "width_px": 64, "height_px": 64, "num_frames": 9, "seconds": 1.0}
    clip = {"name": "a", "cases": cases, "cost": costs, "jpeg": [], **form}
    tables = {t.title: t for t in tables_of(synthetic_report([clip]))}
    quality = tables["Quality by clip, 8 images"]
    row = dict(zip(quality.header, quality.rows[0], strict=True))
    assert (row["uniform dB"], row["evidence dB"], row["evidence SSIM"], row["peer dB"]) == (
        "20.0",
        "+3.0",
        "+0.000",
        "-",
    )
    cost = tables["Cost by clip, 8 images"]
    row = dict(zip(cost.header, cost.rows[0], strict=True))
    assert (row["uniform x"], row["evidence x"], row["evidence MiB"]) == ("0.50", "1.50", "3")


@pytest.mark.slow
def test_children_measure_in_fresh_processes(rope, tmp_path):
    path, _ = rope
    result = bench.run_child("uniform", 4, path, [path], tmp_path)
    assert result["images"] == 4
    assert 0 < result["cpu_seconds"] < 5
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    error = bench.run_child("decode", 0, broken, [path], tmp_path)["error"]
    assert "InvalidData" in error
    assert str(tmp_path) not in error
