"""What streaming keeps: the benchmark compares equal numbers of canvases, and its sums are right."""

import json

import pytest

import jobs.bench_tokenizer as bench
from jobs.bench_stream import bench_stream_clip, share_kept, stream_lines
from ov2_core.evals.clips import write_rope_clip


def case(stream, offline, uniform=20.0):
    values = {"stream": stream, "offline": offline, "uniform": uniform, "uniform of offline": 20.0}
    return {"policy": "evidence", **{name: {"psnr_db": v, "ssim": 0.5} for name, v in values.items()}}


def test_share_kept_is_the_sum_of_gains():
    assert share_kept([case(28.0, 30.0), case(22.0, 22.5)]) == pytest.approx(10 / 12.5)
    assert share_kept([case(19.0, 30.0)]) == pytest.approx(-0.1)
    assert share_kept([case(25.0, 19.0)]) is None
    assert share_kept([case(None, 30.0)]) is None, "a clip rebuilt exactly has no decibels"


def test_streaming_keeps_most_of_the_evidence_of_a_rope_clip(tmp_path):
    path = tmp_path / "rope.mp4"
    truth = write_rope_clip(path, seed=7, seconds=4, width_px=224, height_px=168)
    cases = bench_stream_clip(path, truth=truth, budgets=[8])
    assert {c["policy"] for c in cases} == {"saliency", "evidence"}
    for found in cases:
        assert abs(found["images"] - found["offline_images"]) <= 2
        assert found["images"] <= 8 + 8
        assert found["max_delay_seconds"] <= 2
        assert found["max_held_frames"] < 120
        assert found["stream"]["event_recall"] >= 0.9
    assert share_kept(c for c in cases if c["policy"] == "evidence") >= 0.8


def test_bench_tokenizer_stream_reports_lines_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_GENERATED", (bench.GeneratedClip(name="rope-static", content="static"),))
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "broken.mp4").write_bytes(b"nothing")
    report = tmp_path / "report.json"
    arguments = ["--stream", "--budgets", "4", "--generated-seconds", "1", "--videos", str(videos)]
    assert bench.main([*arguments, "--json", str(report)]) == 1, "a clip that fails is told of"
    said = capsys.readouterr().out
    assert "| rope-static.mp4 | 4 | evidence |" in said
    assert "not_media" in said
    assert str(tmp_path) not in report.read_text()
    stored = json.loads(report.read_text())
    assert stream_lines(stored["clips"])[-1] in said
    assert bench.main([*arguments, "--markdown", str(tmp_path / "a.md")]) == 2
