"""The summary of a run, held against what was committed."""

import numpy as np
import pytest

from ov2_core.plan import PlanWriter, planned_text
from ov2_core.report.collect import collect_run, read_sample
from ov2_core.storage.files import Store
from schemas.shard import FilteredRow, PlannedRow, PlanRecord, QuarantineRow
from schemas.video import ManifestRow, ProbeRecord, SourceIdentity


def fallen(line, reason="not_media", stage="probe", **fields):
    return QuarantineRow(
        line=line, id=f"bad {line}", uri="bad.mp4", reason=reason, stage=stage, message="why", **fields
    )


def planned(encoded, shard, cpu_seconds):
    source = encoded.record.provenance
    probe = ProbeRecord(
        media="video",
        container="mp4",
        codec="h264",
        pixel_format="yuv420p",
        width_px=160,
        height_px=120,
        num_frames=40,
        duration_seconds=4.0,
        fps=10.0,
        variable_rate=False,
        rotation_degrees=0,
        size_bytes=1000,
        video_bytes=900,
    )
    return PlannedRow(
        line=source.manifest_line,
        key=encoded.key,
        id=source.id,
        uri=source.uri,
        shard=shard,
        row=ManifestRow(video=source.uri),
        probe=probe,
        identity=SourceIdentity(size_bytes=1000, stamp="1"),
        predicted_tokens=100,
        predicted_bytes=5000,
        predicted_cpu_seconds=cpu_seconds,
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


@pytest.fixture
def encoded(make_tokenized, make_encoded):
    return [
        make_encoded(make_tokenized(num_groups=1 + i % 2, seed=i), key=f"k{i}", video_id=f"clip {i}", line=i + 1)
        for i in range(5)
    ]


def test_summary_counts_what_was_committed(store, tmp_path, encoded, make_run):
    rows = (fallen(6), fallen(7), fallen(8, reason="worker_died", stage="tokenize", attempts=3))
    dropped = (FilteredRow(line=9, id="s", uri="s.png", rule="stills_only", message="a still"),)
    make_run(store, tmp_path, encoded, quarantined=rows, filtered=dropped, pause_seconds=100)
    summary = collect_run(store)
    assert (summary.committed, summary.filtered, summary.quarantined, summary.pending) == (5, 1, 3, 0)
    assert summary.manifest_rows == 9
    assert summary.num_tokens == sum(one.record.num_tokens for one in encoded)
    assert summary.num_groups == sum(len(one.record.groups) for one in encoded)
    assert summary.num_images == sum(len(one.record.image_keys) for one in encoded)
    assert summary.video_seconds == pytest.approx(sum(one.record.provenance.duration_seconds for one in encoded))
    assert summary.tar_bytes == sum(store.list_sizes("shards")[f"shard-{i:06d}.tar"] for i in range(3))
    assert summary.cpu_seconds == pytest.approx(10)
    assert summary.wall_seconds == pytest.approx(30)  # three shards of 10 s; the pauses between them do not count
    assert [(entry.name, entry.count) for entry in summary.quarantine] == [("not_media", 2), ("worker_died", 1)]
    assert summary.quarantine[0].detail == "at probe (2)"
    assert summary.quarantine[1].examples[0].message == "why (3 attempts)"
    assert summary.filter_rules[0].examples[0].id == "s"
    for histogram in summary.histograms:
        assert sum(bar.count for bar in histogram.bars) == 5


def test_examples_are_bounded_and_those_of_the_lowest_lines(store, tmp_path, encoded, make_run):
    rows = tuple(fallen(line) for line in range(100, 40, -1))
    make_run(store, tmp_path, encoded, quarantined=rows)
    summary = collect_run(store, num_examples=3)
    assert [one.line for one in summary.quarantine[0].examples] == [41, 42, 43]
    assert summary.quarantine[0].count == 60


def test_plan_is_compared_over_committed_rows_alone(store, tmp_path, encoded, make_run):
    make_run(store, tmp_path, encoded[:4])
    with PlanWriter(store) as writer:
        for i, one in enumerate(encoded):
            writer.add(planned_text(planned(one, 0, cpu_seconds=float(10**i))), i // 2)
        writer.quarantine(fallen(6))
        writer.finish(
            PlanRecord(
                manifest_uri="m.jsonl",
                manifest_digest="0",
                manifest_rows=6,
                config_digest="0",
                num_shards=3,
                num_planned=5,
                num_quarantined=1,
                predicted_tokens=500,
                predicted_bytes=25000,
                predicted_cpu_seconds=11111,
                predicted_video_seconds=20,
            )
        )
    summary = collect_run(store)
    assert (summary.committed, summary.quarantined, summary.pending) == (4, 1, 1)
    assert summary.manifest_rows == 6
    assert (summary.num_shards_committed, summary.num_shards) == (2, 3)
    found = {one.name: (one.predicted, one.actual) for one in summary.predictions}
    assert found["CPU time"] == (1111, 8)
    assert found["Tokens"] == (400, sum(one.record.num_tokens for one in encoded[:4]))


@pytest.mark.parametrize(
    ("num_samples", "lines"), [(0, []), (1, [3]), (2, [2, 4]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])]
)
def test_samples_are_spread_evenly_and_always_the_same(store, tmp_path, encoded, make_run, num_samples, lines):
    make_run(store, tmp_path, encoded)
    for _ in range(2):
        assert [one.sample.line for one in collect_run(store, num_samples=num_samples).shown] == lines


def test_read_sample_gives_the_very_members(store, tmp_path, encoded, make_run):
    make_run(store, tmp_path, encoded)
    for shown, one in zip(collect_run(store).shown, encoded, strict=True):
        stored = read_sample(store, shown)
        assert stored.key == one.key
        assert stored.members == one.members
        assert stored.record == one.record
        assert stored.positions_NP3.dtype == np.int32


def test_collect_refuses_a_folder_that_is_no_run(store):
    with pytest.raises(ValueError, match=r"no run at .*is the path right"):
        collect_run(store)
    with pytest.raises(ValueError, match="num_samples"):
        collect_run(store, num_samples=-1)
