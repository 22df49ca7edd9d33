"""Filters through plan, run, verify, report and refilter, on tiny clips without Ray."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.plan import iter_plan_rows, load_plan
from ov2_core.report.collect import collect_run
from ov2_core.rounds import list_rounds, load_rounds
from ov2_core.run_status import read_status
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from pipelines.options import RunOptions
from pipelines.plan_videos import plan_videos
from pipelines.refilter import count_refiltered, refilter_plan, refilter_run
from pipelines.run_rounds import append_rows, replay_rows
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import FilteredRow

INLINE = RunOptions(workers=0, progress="off")
CONFIG = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2", "area_px": "12544"})


def filtering(**thresholds: float | str) -> RunConfig:
    return with_overrides(CONFIG, {f"filter.{name}": f"{value}" for name, value in thresholds.items()})


STRICT = filtering(min_duration_seconds=1.3)
"""Clips last 1.0, 1.2 .. 2.0 s: v0 and v1 are too short."""


@pytest.fixture
def run(clip_manifest: Path, tmp_path: Path) -> Store:
    store = Store(tmp_path / "run")
    tokenize_videos(str(clip_manifest), store, STRICT, INLINE)
    return store


def members(store: Store) -> dict[str, str]:
    """{key: digest of the sample's members but its json, which names the run's config}."""
    with ShardReader(store.root) as reader:
        return {
            s.key: hashlib.sha256(b"".join(data for name, data in s.members if name != "json")).hexdigest()
            for s in reader
        }


def test_filtered_rows_cost_nothing_and_every_row_is_accounted_for(run: Store) -> None:
    plan = load_plan(run)
    assert plan is not None
    rows = {row.id: row for row in iter_plan_rows(run)}
    assert plan.filtered_by_rule == {"min_duration_seconds": 2}
    assert (plan.num_planned, plan.num_quarantined) == (6, 1)
    assert plan.predicted_tokens == sum(row.predicted_tokens for row in rows.values())
    assert rows["v0"].predicted_bytes == 0
    found = verify_run(run)
    assert found.errors == []
    assert (found.manifest_rows, found.committed, found.quarantined) == (7, 4, 1)
    assert found.filtered_by_rule == {"min_duration_seconds": 2}
    assert read_status(run).filtered == {"min_duration_seconds": 2}
    assert read_status(run).left == 0
    page = collect_run(run)
    assert [(rule.name, rule.count) for rule in page.filter_rules] == [("min_duration_seconds", 2)]
    row = next(row for commit in iter_commits(run) for row in commit.filtered if row.id == "v1")
    assert (row.rule, row.threshold) == ("min_duration_seconds", 1.3)
    assert row.value == pytest.approx(1.2)
    assert row.message == "1.2 s long, at least 1.3 are asked"


def test_manifest_of_filtered_rows_alone_makes_a_run_without_tars(clip_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    summary = tokenize_videos(str(clip_manifest), store, filtering(min_duration_seconds=60), INLINE)
    found = verify_run(store)
    assert (found.errors, found.committed, found.filtered, summary.num_made) == ([], 0, 6, 0)


def test_refilter_takes_in_what_looser_thresholds_let_pass(run: Store, clip_manifest: Path, tmp_path: Path) -> None:
    before = members(run)
    dry = count_refiltered(run, ["filter.min_duration_seconds=1.1"])
    assert (dry.kept, dict(dry.filtered), dict(dry.published_against)) == (1, {"min_duration_seconds": 1}, {})
    assert list_rounds(run) == []
    summary, counts = refilter_run(run, ["filter.min_duration_seconds=1.1"], INLINE)
    assert (counts.kept, summary.tokenized.num_made) == (1, 1)
    record = summary.record
    assert record is not None
    assert (record.kind, record.num_rows, record.num_planned) == ("refilter", 1, 1)
    assert record.filter is not None
    assert record.filter["min_duration_seconds"] == 1.1
    found = verify_run(run)
    assert found.errors == []
    assert (found.committed, found.filtered, found.quarantined) == (5, 1, 1)
    assert collect_run(run).filtered == 1
    assert read_status(run).left == 0
    whole = Store(tmp_path / "whole")
    tokenize_videos(str(clip_manifest), whole, filtering(min_duration_seconds=1.1), INLINE)
    assert members(run) == members(whole)
    assert members(run).items() > before.items()


def test_refilter_twice_and_to_nothing(run: Store) -> None:
    again, counts = refilter_run(run, ["min_duration_seconds=1.25"], INLINE)
    assert (again.record, counts.kept, counts.filtered.total()) == (None, 0, 2)
    refilter_run(run, ["min_duration_seconds=1.1"], INLINE)
    summary, _ = refilter_run(run, ["min_duration_seconds=none"], INLINE)
    assert summary.record is not None
    assert summary.record.number == 2
    found = verify_run(run)
    assert (found.errors, found.committed, found.filtered) == ([], 6, 0)


def test_stricter_thresholds_leave_what_is_published(run: Store) -> None:
    dry = count_refiltered(run, ["min_duration_seconds=1.5"])
    assert dict(dry.published_against) == {"min_duration_seconds": 1}
    summary, _ = refilter_run(run, ["min_duration_seconds=1.5"], INLINE)
    assert summary.record is None
    assert verify_run(run).committed == 4


def test_later_rounds_go_by_the_new_thresholds(
    run: Store, make_clip: Callable[..., Path], clip_folder: Path, tmp_path: Path
) -> None:
    refilter_run(run, ["min_duration_seconds=1.1"], INLINE)
    make_clip(tmp_path / "new.mp4", num_frames=12, seed=9)
    make_clip(tmp_path / "short.mp4", num_frames=5, seed=10)
    more = tmp_path / "more.jsonl"
    rows = [{"video": str(tmp_path / f"{name}.mp4"), "id": name} for name in ("new", "short")]
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))
    append_rows(str(more), run, INLINE)
    found = verify_run(run)
    assert found.errors == []
    assert (found.manifest_rows, found.committed, found.filtered) == (9, 6, 2)
    gone = clip_folder / "nowhere.mp4"
    gone.write_bytes((clip_folder / "clip_1.mp4").read_bytes())
    try:
        replay_rows(run, INLINE)
    finally:
        gone.unlink()
    assert verify_run(run).committed == 7
    rounds = load_rounds(run)
    assert rounds is not None
    assert sorted(row.id for row in rounds.iter_filtered()) == ["short", "v0"]
    refilter_run(run, ["min_duration_seconds=0"], INLINE)
    found = verify_run(run)
    assert (found.errors, found.committed, found.filtered) == ([], 9, 0)


def test_plan_is_rewritten_as_if_it_had_been_planned_so(clip_manifest: Path, tmp_path: Path) -> None:
    first, other = Store(tmp_path / "first"), Store(tmp_path / "other")
    plan_videos(str(clip_manifest), first, filtering(measure_pixels="true", max_duration_seconds=1.3), INLINE)
    refilter_plan(first, ["filter.max_duration_seconds=none", "min_duration_seconds=1.3"])
    wanted = filtering(measure_pixels="true", min_duration_seconds=1.3)
    plan_videos(str(clip_manifest), other, wanted, INLINE)
    assert list(iter_plan_rows(first)) == list(iter_plan_rows(other))
    assert load_plan(first) == load_plan(other)
    tokenize_videos(str(clip_manifest), first, wanted, INLINE)
    assert verify_run(first).committed == 4
    with pytest.raises(ValueError, match="holds a run already"):
        refilter_plan(first, ["min_duration_seconds=1"])


def test_other_thresholds_are_another_run(run: Store, clip_manifest: Path) -> None:
    with pytest.raises(ValueError, match="min_duration_seconds"):
        tokenize_videos(str(clip_manifest), run, filtering(min_duration_seconds=1.0), INLINE)


def test_thresholds_on_what_was_not_measured_are_refused(run: Store) -> None:
    with pytest.raises(ValueError, match="its pixels were not looked at"):
        refilter_run(run, ["max_black_share=0.5", "min_duration_seconds=none"], INLINE)
    with pytest.raises(ValueError, match="at least one threshold"):
        refilter_run(run, [], INLINE)
    assert verify_run(run).ok


def test_repeated_clip_is_left_out_and_names_the_first(clip_folder: Path, tmp_path: Path) -> None:
    names = ["clip_0", "clip_1", "clip_0", "clip_2", "clip_1"]
    manifest = tmp_path / "m.jsonl"
    rows = [{"video": str(clip_folder / f"{name}.mp4"), "id": f"r{i}"} for i, name in enumerate(names)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "run")
    tokenize_videos(str(manifest), store, filtering(max_duplicate_bits=2), INLINE)
    found = verify_run(store)
    assert (found.errors, found.committed, found.filtered_by_rule) == ([], 3, {"near_duplicate": 2})
    messages = {row.id: row.message for commit in iter_commits(store) for row in commit.filtered}
    assert messages == {
        "r2": "looks like line 1 (r0): 0 of 64 bits a frame differ",
        "r4": "looks like line 2 (r1): 0 of 64 bits a frame differ",
    }
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"video": str(clip_folder / "clip_2.mp4"), "id": "again"}) + "\n")
    append_rows(str(more), store, INLINE)
    assert verify_run(store).filtered_by_rule == {"near_duplicate": 3}
    refilter_run(store, ["max_duplicate_bits=none"], INLINE)
    found = verify_run(store)
    assert (found.errors, found.committed, found.filtered) == ([], 6, 0)


def test_rows_of_a_list_are_left_out_with_its_reason_and_come_back(clip_manifest: Path, tmp_path: Path) -> None:
    alike = FilteredRow(
        line=1, id="v2", uri="/x", rule="near_duplicate_features", message="like v1", value=0.99, threshold=0.9
    )
    listed = tmp_path / "alike.jsonl"
    listed.write_text(alike.model_dump_json() + "\n")
    store = Store(tmp_path / "run")
    tokenize_videos(str(clip_manifest), store, filtering(leave_out=str(listed)), INLINE)
    found = verify_run(store)
    assert (found.errors, found.committed, found.filtered_by_rule) == ([], 5, {"near_duplicate_features": 1})
    (row,) = (row for commit in iter_commits(store) for row in commit.filtered)
    assert (row.id, row.line, row.message, row.value, row.threshold) == ("v2", 3, "like v1", 0.99, 0.9)
    refilter_run(store, ["leave_out=none"], INLINE)
    assert verify_run(store).committed == 6
