"""verify_run: silent on a whole run, and every kind of damage is found and named."""

import io
import json
import re
import sqlite3
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import commit_lines, finished_run, make_quarantined, make_sample, run_job, write_plan

from ov2_core.rounds import Rounds
from ov2_core.storage import ledger as ledger_module
from ov2_core.storage.check_shard import check_sample
from ov2_core.storage.commit import load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.ledger import Errors, Ledger
from ov2_core.storage.verify import verify_run
from ov2_core.storage.writer import TarSample, canonical_json, committed_sample
from schemas.shard import CommitRecord, FilteredRow, PlanRecord

SHARD = "shards/shard-000000.tar"


def test_a_whole_run_is_proved(store: Store, tmp_path: Path) -> None:
    finished_run(store, tmp_path)
    report = verify_run(store)
    assert report.errors == []
    assert report.ok
    assert (report.manifest_rows, report.committed, report.filtered, report.quarantined) == (8, 4, 1, 3)
    assert report.quarantined_by_reason == {"no_decodable_frame": 3}
    assert (report.shards, report.num_images, report.num_tokens) == (3, 16, 64)
    assert report.tar_bytes == sum(n for name, n in store.list_sizes("shards").items() if name.endswith(".tar"))
    assert verify_run(store, deep=False) == verify_run(store, num_threads=1) == report


def rewrite_tar(run: Path, edit: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    """Shard 0 with its members edited, in a tar that is otherwise well formed."""
    with tarfile.open(run / SHARD) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(run / SHARD, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in edit(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def flip_byte(run: Path, rel: str, at: int) -> None:
    data = bytearray((run / rel).read_bytes())
    data[at] ^= 0x40
    (run / rel).write_bytes(data)


def edit_json(run: Path, rel: str, edit: Callable[[dict], None]) -> None:
    value = json.loads((run / rel).read_bytes())
    edit(value)
    (run / rel).write_text(json.dumps(value))


def sql(run: Path, statement: str) -> None:
    with sqlite3.connect(run / ".nv-meta/index.sqlite") as db:
        db.execute(statement)
    db.close()


def swap(members: list[tuple[str, bytes]], name: str, data: bytes) -> list[tuple[str, bytes]]:
    assert any(member == name for member, _ in members)
    return [(member, data if member == name else old) for member, old in members]


def other_size_jpeg() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (84, 56)).save(out, "JPEG")
    return out.getvalue()


def drop_plan_row(run: Path) -> None:
    table = pq.read_table(run / "plan/rows.parquet")
    pq.write_table(table.slice(1), run / "plan/rows.parquet")


def add_plan_row(run: Path) -> None:
    table = pq.read_table(run / "plan/rows.parquet")
    row = table.slice(0, 1).set_column(0, "line", pa.array([99], pa.int64()))
    row = row.set_column(1, "key", pa.array(["clip-0099"]))
    pq.write_table(pa.concat_tables([table, row]), run / "plan/rows.parquet")


def second_image_off(samples: dict) -> None:
    samples["samples"][0]["parts"][1]["content_byte_offset"] += 512


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "tar: a flipped pixel byte": (lambda run: flip_byte(run, SHARD, 1500), r"shard 0: sha256"),
    "tar: a flipped byte of the end": (lambda run: flip_byte(run, SHARD, -1), r"shard 0: sha256"),
    "tar: a damaged header": (lambda run: flip_byte(run, SHARD, 150), r"shard 0: .*(not a readable tar|sha256)"),
    "tar: truncated": (
        lambda run: (run / SHARD).write_bytes((run / SHARD).read_bytes()[:9000]),
        r"shard 0: .* has 9000 bytes, committed \d+; remove commits/shard-000000\.json",
    ),
    "tar: truncated between samples": (
        lambda run: (run / SHARD).write_bytes(
            (run / SHARD).read_bytes()[: load_commit(Store(run), 0).samples[1].byte_offset]
        ),
        r"cut short",
    ),
    "tar: emptied": (lambda run: (run / SHARD).write_bytes(b""), r"shard 0: .* has 0 bytes"),
    "tar: missing": (
        lambda run: (run / SHARD).unlink(),
        r"shard 0: committed, but shards/shard-000000\.tar is missing",
    ),
    "tar: not committed": (
        lambda run: (run / "shards/shard-000009.tar").write_bytes((run / SHARD).read_bytes()),
        r"shards/shard-000009\.tar: no commit answers for it; remove it",
    ),
    "tar: a member dropped": (
        lambda run: rewrite_tar(run, lambda members: members[1:]),
        r"key clip-0001, line 1: its members are not those that its json names",
    ),
    "tar: a sample dropped": (
        lambda run: rewrite_tar(run, lambda members: [m for m in members if "0002" not in m[0]]),
        r"key clip-0002: committed, but not in shard-000000\.tar",
    ),
    "tar: a sample added": (
        lambda run: rewrite_tar(run, lambda members: [*members, ("clip-0077.json", b"{}")]),
        r"key clip-0077: in shard-000000\.tar, but its commit does not name it",
    ),
    "tar: a member without key": (
        lambda run: rewrite_tar(run, lambda members: [*members, ("readme", b"")]),
        r"member 'readme' is not a file named KEY\.part",
    ),
    "tar: a member doubled": (
        lambda run: rewrite_tar(run, lambda members: [members[0], *members]),
        r"key clip-0001, line 1: a member stands twice",
    ),
    "tar: another image": (
        lambda run: rewrite_tar(run, lambda members: swap(members, "clip-0002.img_001.jpg", other_size_jpeg())),
        r"key clip-0002, line 2: img_001\.jpg: 84 x 56 px, stated 56 x 56",
    ),
    "tar: json of another sample": (
        lambda run: rewrite_tar(run, lambda members: swap(members, "clip-0002.json", dict(members)["clip-0001.json"])),
        r"key clip-0002, line 2: its json says line 1, its commit 2",
    ),
    "idx: a flipped byte": (lambda run: flip_byte(run, SHARD + ".idx", 9), r"tar\.idx is missing or wrong"),
    "idx: missing": (lambda run: (run / (SHARD + ".idx")).unlink(), r"tar\.idx is missing or wrong"),
    "idx: of no tar": (
        lambda run: (run / "shards/shard-000002.tar.idx").write_bytes(struct.pack("<Q", 0)),
        r"shard-000002\.tar\.idx: no commit answers for it",
    ),
    "commit: not JSON": (
        lambda run: flip_byte(run, "commits/shard-000000.json", 0),
        r"shard-000000\.json cannot be read; remove it and run again to make shard 0 anew",
    ),
    "commit: missing": (
        lambda run: (run / "commits/shard-000001.json").unlink(),
        r"shard 1: not committed yet \(2 rows: lines 5, 6\); run `ov2 tokenize` again",
    ),
    "commit: of another shard": (
        lambda run: edit_json(run, "commits/shard-000001.json", lambda commit: commit.update(shard=0)),
        r"it says shard 0",
    ),
    "commit: an unknown field": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda commit: commit.update(extra=0)),
        r"shard-000000\.json cannot be read",
    ),
    "commit: a row left out": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda commit: commit["filtered"].clear()),
        r"shard 0: its commit leaves out 1 rows \(lines 4\)",
    ),
    "commit: a row twice": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda c: c["filtered"].append(c["filtered"][0])),
        r"shard 0, line 4: accounted for twice",
    ),
    "commit: a row of another shard": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda c: c["filtered"][0].update(line=5)),
        r"shard 0, line 5: planned for shard 1",
    ),
    "commit: a row of the plan's ledger": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda c: c["filtered"][0].update(line=3)),
        r"shard 0, line 3: committed, but not in the plan",
    ),
    "commit: another key": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda c: c["samples"][0].update(key="clip-0002")),
        r"shard 0, line 1: key clip-0002 is not the planned one",
    ),
    "commit: an offset": (
        lambda run: edit_json(run, "commits/shard-000000.json", second_image_off),
        r"key clip-0001: its members do not lie where the commit says",
    ),
    "commit: another config": (
        lambda run: edit_json(run, "commits/shard-000000.json", lambda c: c.update(config_digest="bad")),
        r"its json says config_digest 'c0ffee', its commit 'bad'",
    ),
    "ledger: missing": (
        lambda run: (run / "quarantine/shard-000002.jsonl").unlink(),
        r"shard 2: quarantine/shard-000002\.jsonl is not what the commit says",
    ),
    "ledger: altered": (
        lambda run: (run / "quarantine/shard-000002.jsonl").write_bytes(b"{}\n"),
        r"quarantine/shard-000002\.jsonl is not what the commit says",
    ),
    "ledger: of no shard": (
        lambda run: (run / "quarantine/shard-000000.jsonl").write_bytes(b"{}\n"),
        r"shard-000000\.jsonl: no commit answers for it; remove it",
    ),
    "plan: missing": (lambda run: (run / "plan/plan.json").unlink(), r"plan\.json is missing.*run `ov2 plan`"),
    "plan: damaged": (lambda run: (run / "plan/plan.json").write_bytes(b"{"), r"plan/plan\.json cannot be read"),
    "plan: rows missing": (lambda run: (run / "plan/rows.parquet").unlink(), r"rows\.parquet cannot be read"),
    "plan: rows damaged": (
        lambda run: (run / "plan/rows.parquet").write_bytes(b"PAR1"),
        r"rows\.parquet cannot be read",
    ),
    "plan: a row dropped": (drop_plan_row, r"shard 0, line 1: committed, but not in the plan"),
    "plan: a row added": (add_plan_row, r"shard 0: its commit leaves out 1 rows \(lines 99\)"),
    "plan: another sum": (
        lambda run: edit_json(run, "plan/plan.json", lambda plan: plan.update(manifest_rows=9)),
        r"manifest has 9 rows, but the plan accounts for 8",
    ),
    "plan: fewer shards": (
        lambda run: edit_json(run, "plan/plan.json", lambda plan: plan.update(num_shards=2)),
        r"shard 2: committed, but the plan has 2 shards",
    ),
    "plan ledger: missing": (
        lambda run: (run / "quarantine/plan.jsonl").unlink(),
        r"manifest has 8 rows, but the plan accounts for 6",
    ),
    "plan ledger: a damaged line": (
        lambda run: (run / "quarantine/plan.jsonl").open("ab").write(b"{}\n"),
        r"quarantine/plan\.jsonl:3: ",
    ),
    "plan ledger: a planned line": (
        lambda run: (run / "quarantine/plan.jsonl").open("ab").write(canonical_json(make_quarantined(1)) + b"\n"),
        r"line 1: both planned and quarantined",
    ),
    "index: missing": (
        lambda run: (run / ".nv-meta/.info.json").unlink(),
        r"the index in \.nv-meta is missing or unfinished; run `ov2 tokenize` again",
    ),
    "index: sqlite missing": (lambda run: (run / ".nv-meta/index.sqlite").unlink(), r"index in \.nv-meta is missing"),
    "index: sqlite not a database": (
        lambda run: (run / ".nv-meta/index.sqlite").write_bytes(b"text" * 300),
        r"index\.sqlite cannot be read",
    ),
    "index: sqlite offset": (
        lambda run: sql(run, "UPDATE samples SET byte_offset = 512 WHERE sample_key = 'clip-0005'"),
        r"shard 1: \.nv-meta/index\.sqlite is not what the commit says",
    ),
    "index: sqlite part": (
        lambda run: sql(run, "DELETE FROM sample_parts WHERE tar_file_id = 0 AND part_name = 'json'"),
        r"shard 0: \.nv-meta/index\.sqlite is not what the commit says",
    ),
    "index: sqlite row too many": (
        lambda run: sql(run, "INSERT INTO samples VALUES (7, 'x', 0, 0, 0)"),
        r"index\.sqlite holds samples of no committed shard",
    ),
    "index: split": (lambda run: flip_byte(run, ".nv-meta/split.yaml", 3), r"split\.yaml is missing or not what"),
    "index: uuid": (lambda run: (run / ".nv-meta/index.uuid").unlink(), r"index\.uuid is missing or not what"),
    "index: dataset": (lambda run: (run / ".nv-meta/dataset.yaml").unlink(), r"dataset\.yaml is missing or not what"),
    "index: counts": (lambda run: flip_byte(run, ".nv-meta/.info.json", 3), r"\.info\.json is missing or not what"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(name: str, tmp_path: Path) -> None:
    damage, expected = DAMAGES[name]
    run = tmp_path / "run"
    finished_run(Store(run), tmp_path)
    damage(run)
    report = verify_run(Store(run))
    assert not report.ok
    assert any(re.search(expected, error) for error in report.errors), report.errors
    for error in report.errors:
        assert "; " in error, f"no remedy: {error}"


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_a_tar_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp = tmp_path_factory.mktemp("flip")
    store = Store(tmp / "run")
    finished_run(store, tmp)
    content = bytearray(store.read_bytes(SHARD))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    store.write_bytes(SHARD, bytes(content))
    report = verify_run(store)
    assert any(error.startswith("shard 0") for error in report.errors)


def test_what_a_second_planner_left_is_nobodys_error(tmp_path: Path) -> None:
    store = finished_run(Store(tmp_path / "run"), tmp_path)
    for rel in (f"plan/rows-{'0' * 16}.parquet", f"quarantine/plan-{'0' * 16}.jsonl"):
        store.write_bytes(rel, b"left")
    assert verify_run(store).errors == []


def test_what_follows_from_the_commits_is_mended_by_running_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    store = finished_run(Store(run), tmp_path)
    (run / (SHARD + ".idx")).unlink()
    (run / "quarantine/shard-000002.jsonl").unlink()
    (run / ".nv-meta/split.yaml").unlink()
    (run / "commits/shard-000001.json").unlink()
    assert len(verify_run(store).errors) > 3
    run_job(store, tmp_path / "again")
    assert verify_run(store).errors == []


def test_samples_that_contradict_themselves_are_named() -> None:
    sample = make_sample(1)
    by_name = dict(sample.members)
    positions = np.load(io.BytesIO(by_name["patch_positions_001.npy"]))

    def npy(array: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.save(out, array)
        return out.getvalue()

    negative, outside, mixed = positions.copy(), positions.copy(), positions.copy()
    negative[5, 0], outside[5, 2], mixed[0, 0] = -1, 4, mixed[0, 0] + 1
    plain = json.loads(by_name["json"])

    def with_json(**changes: object) -> dict[str, bytes]:
        return {"json": json.dumps(plain | changes).encode()}

    cases: list[tuple[dict[str, bytes], str]] = [
        ({"patch_positions_001.npy": npy(negative)}, "patch_positions_001.npy: a position is negative"),
        ({"patch_positions_001.npy": npy(outside)}, "lies outside its frame of 4 x 4 patches"),
        ({"patch_positions_001.npy": npy(mixed)}, "a 2 x 2 block mixes times"),
        ({"patch_positions_001.npy": npy(positions[:8])}, "8 positions for 16 patches"),
        ({"patch_positions_001.npy": npy(positions.astype(np.int64))}, "expected int32 [P, 3], got int64"),
        ({"patch_positions_001.npy": b"text"}, "not a readable .npy"),
        ({"patch_positions_001.npy": npy(positions + 1)}, "positions_digest does not agree"),
        ({"img_001.jpg": by_name["img_001.jpg"][:300]}, "img_001.jpg: not a readable JPEG"),
        ({"json": b"{}"}, "json: not a SampleRecord"),
        (with_json(num_tokens=15), "num_tokens is 15, but its images hold 16"),
        (with_json(groups=[]), "its groups do not cover its images"),
        (with_json(image_width_px=57), "is no multiple of 28 px"),
        (with_json(patch_positions_keys=plain["patch_positions_keys"][:3]), "4 images, but 3 positions"),
        (with_json(surprise=1), "json: not a SampleRecord"),
    ]
    placed = TarSample(key=sample.key, byte_offset=0, byte_size=512, parts=[])
    committed = committed_sample(sample.record, placed, cpu_seconds=0, peak_rss_bytes=0)
    assert list(check_sample(sample.members, committed=committed, config_digest="c0ffee")) == []
    for changes, expected in cases:
        members = list((by_name | changes).items())
        findings = list(check_sample(members, committed=committed, config_digest="c0ffee"))
        assert any(expected in finding for finding in findings), (expected, findings)


LINES = st.integers(1, 12)


@settings(max_examples=200, deadline=None)
@given(
    planned=st.lists(st.tuples(LINES, st.integers(0, 2)), max_size=8),
    fallen=st.lists(LINES, max_size=4),
    ends=st.lists(st.tuples(LINES, st.integers(0, 2)), max_size=8),
    honest=st.booleans(),
    manifest_rows=st.integers(0, 12),
)
def test_the_books_agree_with_a_naive_count(
    planned: list[tuple[int, int]],
    fallen: list[int],
    ends: list[tuple[int, int]],
    honest: bool,
    manifest_rows: int,
) -> None:
    """Whole iff planned lines and fallen lines are distinct, sum to the manifest, and each planned one ended once."""
    if honest:  # else a right answer would hardly ever be drawn
        planned = [(line, shard) for i, (line, shard) in enumerate(planned) if line not in [n for n, _ in planned[:i]]]
        fallen = sorted(set(fallen) - {line for line, _ in planned})
        ends, manifest_rows = planned, len(planned) + len(fallen)
    errors = Errors()
    books = Ledger(
        np.array([line for line, _ in planned], np.int64),
        np.array([shard for _, shard in planned], np.int32),
        np.arange(len(planned), dtype=np.uint64),
        errors,
    )
    for line in fallen:
        books.add_fallen(line, errors)
    for shard in range(3):
        books.add_commit(_filtered(shard, [line for line, end in ends if end == shard]), errors)
    books.check_sum(Rounds(Store("unused"), _plan(manifest_rows), []), {0, 1, 2}, errors)
    lines = [line for line, _ in planned]
    whole = len(set(lines + fallen)) == len(lines + fallen) == manifest_rows and sorted(ends) == sorted(planned)
    assert (not errors.messages) == whole


def _filtered(shard: int, lines: list[int]) -> CommitRecord:
    return CommitRecord(
        shard=shard,
        tar_name=None,
        attempt=None,
        tar_digest=None,
        tar_bytes=0,
        samples=[],
        filtered=[FilteredRow(line=line, id="x", uri="x", rule="r", message="m") for line in lines],
        quarantined=[],
        config_digest="",
        code_version="",
        started_unix_seconds=0,
        finished_unix_seconds=0,
    )


def _plan(manifest_rows: int) -> PlanRecord:
    return PlanRecord(
        manifest_uri="",
        manifest_digest="",
        manifest_rows=manifest_rows,
        config_digest="",
        num_shards=3,
        num_planned=0,
        num_quarantined=0,
        predicted_tokens=0,
        predicted_bytes=0,
        predicted_cpu_seconds=0,
        predicted_video_seconds=0,
    )


def test_errors_are_bounded_and_the_rest_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_ERRORS", 3)
    store = Store(tmp_path / "run")
    write_plan(store, tmp_path, {shard: [shard + 1] for shard in range(7)})
    commit_lines(store, tmp_path, shard=0, lines=[1])
    errors = verify_run(store).errors
    assert len(errors) == 4
    assert errors[-1] == "and 4 more; mend these and verify again"
