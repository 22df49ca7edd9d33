"""The benchmark of a long video: what it makes is long, and its table holds a cost and a ratio for every way."""

import json

import jobs.bench_sparse as bench
from jobs.bench_measure import measure, workload
from jobs.bench_tokenizer import main
from ov2_core.media.probe import probe_video


def test_long_clip_repeats_its_packets_with_later_times(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CLIP_SECONDS", 1.0)
    path = tmp_path / "long.mp4"
    assert bench.write_long_clip(path, minutes=0.05) == 90
    probe = probe_video(str(path))
    assert (probe.num_frames, round(probe.duration_seconds, 2)) == (90, 3.0)
    assert probe.keyframe_T.nonzero()[0].tolist() == [0, 30, 60]
    assert workload("decode", 0)(str(path)) == {"frames": 90}


def test_sparse_benchmark_tells_costs_against_a_decode(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CLIP_SECONDS", 1.0)

    def in_this_process(kind, budget, path, warmups, folder, overrides=None):
        return measure(workload(kind, budget, overrides), str(path))

    monkeypatch.setattr(bench, "run_child", in_this_process)
    out = tmp_path / "report.json"
    assert main(["--sparse", "--sparse-minutes", "0.05", "--sparse-images", "8", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["frames"] == 90
    assert [way["kind"] for way in report["ways"]] == [
        "decode",
        "uniform",
        "uniform",
        "uniform",
        "saliency",
        "evidence",
    ]
    assert all(way["cpu_seconds"] > 0 for way in report["ways"])
    assert "| uniform | tokenizer.keyframe_reach=0 | 8 |" in capsys.readouterr().out
    assert main(["--sparse", "--sparse-minutes", "0"]) == 2
