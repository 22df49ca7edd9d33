"""The binding canary: it passes where all is bound right, and fails where one video's pixels come under another's name."""

import json
from dataclasses import replace

import pytest

import jobs.bench_canary as bench
from ov2_core.make_sample import make_sample
from pipelines.shard_feed import ShardFeed

FEW = ["--clips", "12", "--workers", "0", "--recipe", "evidence-8"]


def test_bench_canary_reads_every_block_caption_and_feature_back(tmp_path, capsys):
    out, page = tmp_path / "report.json", tmp_path / "page.md"
    page.write_text(f"{bench.BEGIN}\n{bench.END}\n")
    assert bench.main([*FEW, "--out", str(out), "--markdown", str(page)]) == 0
    (report,) = json.loads(out.read_text())
    assert report["samples"] == report["feature_samples"] == 12
    assert report["quarantined"] == 3, "a broken file after ten clips, one that vanished after each five"
    assert report["blocks"] == report["feature_blocks"] > 12 * 4 * 12, "all images of all samples"
    assert "| evidence-8 | 0 | 12 | 12 |" in page.read_text()
    assert str(tmp_path) not in capsys.readouterr().out


def test_bench_canary_fails_where_one_video_goes_by_the_name_of_another(tmp_path, monkeypatch, capsys):
    def crossed(planned, config):
        if planned.id != "canary-3":
            return make_sample(planned, config)
        row = planned.row.model_copy(update={"caption": "Canary 4."})
        return make_sample(planned.model_copy(update={"row": row}), config)

    monkeypatch.setattr(bench, "make_sample", crossed)
    assert bench.main([*FEW, "--no-features"]) == 1
    said = capsys.readouterr().err
    assert "caption of video 4, id canary-3" in said
    assert "says Canary(video_id=4" in said
    assert "shows Canary(video_id=3" in said
    assert "canary-3 is in 0 samples" in said
    assert "canary-4 is in 2 samples" in said


@pytest.mark.parametrize("pair", [("canary-3", "canary-5"), ("canary-7", "gone-9")])
def test_bench_canary_fails_where_two_rows_change_places(pair, monkeypatch, capsys):
    """Each with its own pixels, caption and id, but under the other's key."""
    at_home, held = ShardFeed._made, []

    def swapped(feed, row, outcome, sample, attempts):
        if row.id not in pair:
            at_home(feed, row, outcome, sample, attempts)
            return
        held.append((row, outcome, sample))
        if len(held) == 2:
            for (row, _, _), (_, outcome, sample) in zip(held, reversed(held), strict=True):
                at_home(feed, row, outcome, replace(sample, key=row.key), attempts)

    monkeypatch.setattr(ShardFeed, "_made", swapped)
    assert bench.main([*FEW, "--no-features"]) == 1
    assert f"{pair[1]}: the sample of {pair[0]}" in capsys.readouterr().err
