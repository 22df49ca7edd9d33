"""Rounds on tiny clips without Ray: replay and append, interrupted at every point, refused where they must be."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.features.plan import open_source
from ov2_core.make_sample import SampleOutcome, make_sample, quarantine_planned
from ov2_core.report.collect import collect_run
from ov2_core.rounds import list_rounds, load_rounds, stray_round_files
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from pipelines.options import RunOptions
from pipelines.run_rounds import append_rows, replay_rows
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import PlannedRow

INLINE = RunOptions(workers=0, progress="off")
CONFIG = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2", "area_px": "12544"})


def published(run: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "shards").iterdir()}


def make_but_two(row: PlannedRow, config: RunConfig) -> SampleOutcome:
    """As if the workers of v1 and v4 had died."""
    if row.key in ("v1", "v4"):
        fallen = quarantine_planned(row, reason="worker_died", message="the worker process died")
        return SampleOutcome(line=row.line, key=row.key, quarantined=fallen)
    return make_sample(row, config)


@pytest.fixture
def run(clip_manifest: Path, tmp_path: Path) -> Path:
    """Six clips, two of which fell with their worker, and a missing one."""
    folder = tmp_path / "run"
    tokenize_videos(str(clip_manifest), Store(folder), CONFIG, INLINE, make=make_but_two)
    return folder


def members(run: Path) -> dict[str, str]:
    """{key: digest of the sample's members}."""
    with ShardReader(str(run)) as reader:
        return {s.key: hashlib.sha256(b"".join(data for _, data in s.members)).hexdigest() for s in reader}


def test_replay_makes_the_samples_that_the_run_would_have_made(run: Path, clip_manifest: Path, tmp_path: Path) -> None:
    before = published(run)
    summary = replay_rows(Store(run), INLINE, reasons=frozenset({"worker_died"}))
    assert summary.record is not None
    assert (summary.record.num_rows, summary.record.first_shard, summary.record.num_shards) == (2, 3, 1)
    found = verify_run(Store(run))
    assert found.errors == []
    assert (found.manifest_rows, found.committed, found.quarantined_by_reason) == (7, 6, {"source_missing": 1})
    after = published(run)
    assert {name: after[name] for name in before} == before
    tokenize_videos(str(clip_manifest), Store(tmp_path / "whole"), CONFIG, INLINE)
    assert members(run) == members(tmp_path / "whole")
    page = collect_run(Store(run))
    assert (page.manifest_rows, page.committed, page.quarantined, page.pending) == (7, 6, 1, 0)
    assert open_source(Store(run)).num_shards == 4


def test_replay_is_deterministic_and_a_second_finds_nothing_more(
    run: Path, clip_manifest: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tokenize_videos(str(clip_manifest), Store(other), CONFIG, INLINE, make=make_but_two)
    for folder in (run, other):
        replay_rows(Store(folder), INLINE, reasons=frozenset({"worker_died"}))
    assert published(run) == published(other)
    again = replay_rows(Store(run), INLINE, reasons=frozenset({"worker_died"}))
    assert again.record is None
    assert again.tokenized.num_made == 0
    assert published(run) == published(other)
    assert len(list_rounds(Store(run))) == 1


def test_row_that_falls_again_is_counted_once_and_can_be_replayed_again(run: Path) -> None:
    store = Store(run)
    replay_rows(store, INLINE, make=make_but_two)
    found = verify_run(store)
    assert found.errors == []
    assert (found.manifest_rows, found.committed) == (7, 4)
    assert found.quarantined_by_reason == {"source_missing": 1, "worker_died": 2}
    replay_rows(store, INLINE)
    found = verify_run(store)
    assert found.errors == []
    assert found.quarantined_by_reason == {"source_missing": 1}
    rounds = load_rounds(store)
    assert rounds is not None
    assert [row.id for row in rounds.iter_quarantined()] == ["gone"]


def test_source_that_came_back_is_committed(run: Path, clip_folder: Path, clip_manifest: Path, tmp_path: Path) -> None:
    gone = clip_folder / "nowhere.mp4"
    gone.write_bytes((clip_folder / "clip_0.mp4").read_bytes())
    try:
        replay_rows(Store(run), INLINE, reasons=frozenset({"source_missing"}))
    finally:
        gone.unlink()
    assert verify_run(Store(run)).committed == 5
    with ShardReader(str(run)) as reader:
        assert reader.read("gone").record.provenance.manifest_line == 4


def test_malformed_rows_and_repeated_ids_are_not_replayed(tmp_path: Path, clip_folder: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    row = json.dumps({"video": str(clip_folder / "clip_0.mp4"), "id": "a"})
    manifest.write_text(f"{row}\nno json\n{row}\n")
    store = Store(tmp_path / "run")
    tokenize_videos(str(manifest), store, CONFIG, INLINE)
    summary = replay_rows(store, INLINE)
    assert summary.record is None
    assert summary.num_not_replayable == 2


def test_append_takes_a_grown_manifest_and_only_what_is_new(
    run: Path, clip_manifest: Path, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "new.mp4", seed=9)
    before = published(run)
    grown = tmp_path / "grown.jsonl"
    new = [{"video": str(clip), "id": "new"}, {"video": str(clip), "id": "new"}, {"video": "absent.mp4"}]
    text = clip_manifest.read_text() + "".join(json.dumps(row) + "\n" for row in new) + "no json\n"
    grown.write_text(text)
    summary = append_rows(str(grown), Store(run), INLINE)
    assert summary.record is not None
    assert (summary.record.num_rows, summary.record.num_left_out, summary.record.line_offset) == (4, 7, 7)
    found = verify_run(Store(run))
    assert found.errors == []
    assert (found.manifest_rows, found.committed) == (11, 5)
    assert found.quarantined_by_reason == {
        "worker_died": 2, "source_missing": 2, "duplicate_id": 1, "malformed_row": 1,
    }  # fmt: skip
    after = published(run)
    assert {name: after[name] for name in before} == before
    again = append_rows(str(grown), Store(run), INLINE)
    assert again.record is None
    assert published(run) == after
    replay_rows(Store(run), INLINE, reasons=frozenset({"worker_died"}))
    found = verify_run(Store(run))
    assert found.errors == []
    assert (found.manifest_rows, found.committed) == (11, 7)


def test_tokenize_goes_on_with_a_round_that_was_cut_off(run: Path, clip_manifest: Path) -> None:
    store = Store(run)
    replay_rows(store, INLINE, reasons=frozenset({"worker_died"}))
    whole = published(run)
    (run / "commits/shard-000003.json").unlink()
    (run / "shards/shard-000003.tar").unlink()
    assert "shard 3: not committed yet" in "\n".join(verify_run(store).errors)
    summary = tokenize_videos(str(clip_manifest), store, CONFIG, INLINE)
    assert (summary.num_shards, summary.num_shards_before, summary.num_made) == (4, 3, 2)
    assert published(run) == whole
    assert verify_run(store).ok


def test_round_of_a_run_that_is_not_finished_or_not_ours_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.run_identity.code_version", lambda: "0.0.0+other")
        with pytest.raises(ValueError, match="code_version"):
            replay_rows(Store(run), INLINE)
    (run / "commits/shard-000001.json").unlink()
    with pytest.raises(ValueError, match="1 of 3 shards to make; finish it first: ov2 tokenize"):
        replay_rows(Store(run), INLINE)
    with pytest.raises(ValueError, match="holds no run"):
        replay_rows(Store(run / "elsewhere"), INLINE)


def test_second_planner_of_a_round_is_refused_and_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(run)
    create = Store.create_bytes

    def other_first(self: Store, rel: str, data: bytes) -> bool:
        if rel == "plan/round-0001.json":
            monkeypatch.undo()
            replay_rows(Store(run), INLINE, reasons=frozenset({"worker_died"}))
        return create(self, rel, data)

    monkeypatch.setattr(Store, "create_bytes", other_first)
    with pytest.raises(ValueError, match="another process has created round 1"):
        replay_rows(store, INLINE)
    assert stray_round_files(store) == []
    assert verify_run(store).ok


def test_verify_finds_a_round_that_took_what_had_not_fallen(run: Path) -> None:
    store = Store(run)
    replay_rows(store, INLINE, reasons=frozenset({"worker_died"}))
    record = list_rounds(store)[0]
    ledger = run / record.fallen
    fallen = json.loads((run / "quarantine/shard-000000.jsonl").read_text().splitlines()[0])
    ledger.write_text(json.dumps(fallen | {"line": 1, "id": "v0"}) + "\n")  # v0 was committed by shard 0
    errors = "\n".join(verify_run(store).errors)
    assert "shard 0, line 1: a later round took it although it was committed" in errors


@pytest.mark.parametrize(
    "point", ["before_round", "after_round", "before_upload", "before_commit", "after_commit", "mid_index"]
)
def test_replay_killed_anywhere_ends_like_one_in_a_piece(run: Path, tmp_path: Path, point: str) -> None:
    child = (
        "import sys; from ov2_core.storage.files import Store; from pipelines.options import RunOptions;"
        "from pipelines.run_rounds import replay_rows;"
        "replay_rows(Store(sys.argv[1]), RunOptions(workers=0, progress='off'), reasons=frozenset({'worker_died'}))"
    )
    environment = os.environ | {"OV2_FAILPOINT": point}
    done = subprocess.run([sys.executable, "-c", child, str(run)], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr.decode()
    store = Store(run)
    replay_rows(store, INLINE, reasons=frozenset({"worker_died"}))
    found = verify_run(store)
    assert found.errors == []
    assert (found.committed, found.quarantined) == (6, 1)
    assert len(list_rounds(store)) == 1
    assert sorted(published(run)) == [f"shard-00000{n}.tar{end}" for n in range(4) for end in ("", ".idx")]
