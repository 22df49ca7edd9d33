import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core import plan as plans
from ov2_core.config import recipe
from ov2_core.plan import (
    PlanWriter,
    iter_plan_quarantine,
    iter_plan_rows,
    iter_plan_shards,
    load_plan,
    planned_text,
    remove_plan,
    remove_stray_plan_files,
    stray_plan_files,
)
from ov2_core.prediction import predict, size_in_blocks
from ov2_core.storage.files import Store
from schemas.shard import PlannedRow, PlanRecord, QuarantineRow
from schemas.video import ManifestRow, ProbeRecord, SourceIdentity


def probe(**fields: Any) -> ProbeRecord:
    base: dict[str, Any] = {
        "media": "video",
        "container": "mp4",
        "codec": "h264",
        "pixel_format": "yuv420p",
        "width_px": 1280,
        "height_px": 720,
        "num_frames": 300,
        "duration_seconds": 10.0,
        "fps": 30.0,
        "variable_rate": False,
        "rotation_degrees": 0,
        "size_bytes": 1000,
        "video_bytes": 900,
    }
    return ProbeRecord.model_validate({**base, **fields})


def row(line: int, shard: int) -> PlannedRow:
    return PlannedRow(
        line=line,
        key=f"k{line}",
        id=f"k{line}",
        uri=f"/v/{line}.mp4",
        shard=shard,
        row=ManifestRow(video=f"{line}.mp4"),
        probe=probe(),
        identity=SourceIdentity(size_bytes=1000, stamp="1"),
        predicted_tokens=10,
        predicted_bytes=100,
        predicted_cpu_seconds=1.5,
    )


def write_plan(store: Store, rows: list[PlannedRow]) -> PlanRecord:
    record = PlanRecord(
        manifest_uri="m.jsonl",
        manifest_digest="d",
        manifest_rows=len(rows),
        config_digest="c",
        num_shards=rows[-1].shard + 1 if rows else 0,
        num_planned=len(rows),
        num_quarantined=0,
        predicted_tokens=0,
        predicted_bytes=0,
        predicted_cpu_seconds=0,
        predicted_video_seconds=0,
    )
    with PlanWriter(store) as writer:
        for item in rows:
            writer.add(planned_text(item.model_copy(update={"shard": 0})), item.shard)
        return writer.finish(record)


@pytest.mark.parametrize(
    ("name", "num_frames", "images"),
    [
        ("codec-32", 300, 32),
        ("codec-32", 17, 16),
        ("codec-32", 3, 3),
        ("codec-32", 1, 1),
        ("uniform-32", 300, 32),
        ("uniform-32", 5, 5),
        ("uniform-auto", 300, 16),
    ],
)
def test_predicted_tokens_are_images_times_blocks(name: str, num_frames: int, images: int) -> None:
    tokens = predict(probe(num_frames=num_frames, duration_seconds=num_frames / 30), recipe(name).tokenizer).tokens
    assert tokens == images * 18 * 10


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_size_in_blocks_keeps_within_area_and_source(width_px: int, height_px: int) -> None:
    width, height = size_in_blocks(width_px, height_px, 392 * 392, 28)
    assert width >= 1
    assert height >= 1
    assert width == 1 or width * 28 <= width_px
    assert height == 1 or height * 28 <= height_px
    if width > 1 and height > 1:
        assert width * height * 28 * 28 <= 392 * 392


def test_text_of_a_shard_is_that_of_the_row_with_this_shard() -> None:
    hostile = '"shard":0,'
    item = row(1, 0).model_copy(update={"id": hostile, "row": ManifestRow(video=hostile, conversations=[{"shard": 0}])})
    text = planned_text(item).text_of_shard(12)
    assert PlannedRow.model_validate_json(text) == item.model_copy(update={"shard": 12})


def test_plan_rows_come_back_in_order_and_skipped_shards_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "ROW_GROUP_ROWS", 4)
    store = Store(tmp_path)
    rows = [row(line, shard=(line - 1) // 3) for line in range(1, 41)]
    record = write_plan(store, rows)
    assert load_plan(store) == record
    assert list(iter_plan_rows(store)) == rows
    skip = {0, 1, 2, 5, 13}
    assert list(iter_plan_rows(store, skip_shards=skip)) == [item for item in rows if item.shard not in skip]
    assert [(shard, len(items)) for shard, items in iter_plan_shards(store, skip_shards={1})][:3] == [
        (0, 3),
        (2, 3),
        (3, 3),
    ]


def test_row_groups_end_at_shard_boundaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(plans, "ROW_GROUP_ROWS", 4)
    store = Store(tmp_path)
    record = write_plan(store, [row(line, shard=(line - 1) // 3) for line in range(1, 41)])
    metadata = pq.ParquetFile(store.local(record.rows)).metadata
    column = plans.ROWS_SCHEMA.get_field_index("shard")
    ranges = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    assert len(ranges) > 2
    assert all(before.max < after.min for before, after in itertools.pairwise(ranges))


def test_plan_without_rows_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_plan(store, [])
    assert list(iter_plan_rows(store)) == []


def test_interrupted_plan_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with PlanWriter(store) as writer:
        writer.add(planned_text(row(1, 0)), 0)  # and then leaves without finish, as an exception would
    assert load_plan(store) is None


def test_of_two_plans_the_second_leaves_nothing_and_learns_of_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = write_plan(store, [row(1, 0)])
    before = {rel: store.read_bytes(rel) for rel in ("plan/plan.json", first.rows, first.fallen)}
    for lines in ((1, 2), (1,)):  # of other content, and of the same
        assert write_plan(store, [row(line, 0) for line in lines]) == first
        assert {rel: store.read_bytes(rel) for rel in before} == before
        assert (store.list("plan"), stray_plan_files(store)) == (["plan.json", Path(first.rows).name], [])


def test_files_that_no_plan_names_are_strays_and_go_with_a_plan(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = write_plan(store, [row(1, 0)])
    strays = [f"plan/rows-{'0' * 16}.parquet", "plan/rows.parquet", f"quarantine/plan-{'0' * 16}.jsonl"]
    for rel in (*strays, "plan/mine.parquet", "quarantine/shard-000000.jsonl"):
        store.write_bytes(rel, b"")
    assert stray_plan_files(store) == strays
    remove_stray_plan_files(store)
    assert list(iter_plan_rows(store)) == [row(1, 0)]
    remove_plan(store)
    assert not store.exists(record.rows)
    assert (store.list("plan"), store.list("quarantine")) == (["mine.parquet"], ["shard-000000.jsonl"])


def test_plan_of_an_older_version_is_read_by_its_fixed_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = write_plan(store, [row(1, 0)])
    store.write_bytes("plan/rows.parquet", store.read_bytes(record.rows))
    fallen = QuarantineRow(line=2, id=None, uri=None, reason="malformed_row", stage="manifest", message="no", raw="{")
    store.write_bytes("quarantine/plan.jsonl", fallen.model_dump_json().encode() + b"\n")
    store.write_bytes("plan/plan.json", record.model_dump_json(exclude={"rows", "fallen"}).encode())
    assert list(iter_plan_rows(store)) == [row(1, 0)]
    assert list(iter_plan_quarantine(store)) == [fallen]
    assert stray_plan_files(store) == [record.rows, record.fallen]
