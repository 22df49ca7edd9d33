"""A spatial run: exactly once, resumed, deterministic, broken scenes quarantined, read by the importer."""

import json
import shutil
from pathlib import Path

import pytest
from spatial_scenes import hand_scene

from ov2_core.data.importers.spatial_qa import import_spatial_qa
from ov2_core.spatial.gallery import write_gallery
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.run_files import iter_questions, verify_spatial
from ov2_core.spatial.scene_files import write_scene
from ov2_core.spatial.sources import open_source
from ov2_core.storage.commit import load_commit
from ov2_core.storage.files import Store
from pipelines.generate_spatial_qa import SceneFeed, SpatialJob, TrialPassed, _Totals, generate_spatial_qa
from pipelines.options import RunOptions
from pipelines.progress import Counters
from pipelines.tasks import Verdict

INLINE = RunOptions(workers=0, progress="off")
RECIPE = SpatialRecipe(questions_per_type=3, scenes_per_shard=2)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory) -> Path:
    """Six scenes: good, a copy of it, NaN box, no depth, good, a copy of the first that lies in another shard."""
    root = tmp_path_factory.mktemp("scenes")
    write_scene(make_scene(4, 0), str(root / "a_good"))
    write_scene(make_scene(4, 0), str(root / "b_copy"))
    write_scene(hand_scene(), str(root / "c_nan"))
    write_scene(hand_scene(), str(root / "d_blind"))
    write_scene(make_scene(4, 1), str(root / "e_good"))
    write_scene(make_scene(4, 0), str(root / "f_copy"))
    text = (root / "c_nan" / "scene.json").read_text()
    (root / "c_nan" / "scene.json").write_text(text.replace("0.75", "NaN"))
    shutil.rmtree(root / "d_blind" / "depth")
    return root


def shard_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("shards", "records")
        for path in sorted((root / folder).iterdir())
    }


def test_scenes_end_in_exactly_one_place(scene_folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    summary = generate_spatial_qa(str(scene_folder), store, RECIPE, INLINE)
    found = verify_spatial(store)
    assert found.ok, found.errors
    assert (found.committed, found.filtered, found.quarantined) == (3, 1, 2)
    assert found.quarantined_by_reason == {"bad_boxes": 1, "missing_depth": 1}
    assert summary.report.num_questions == sum(1 for _ in iter_questions(store)) > 60
    assert summary.report.num_scenes_repeated == 1
    assert found.num_tokens == summary.report.num_questions
    ids = [question.id for question in iter_questions(store)]
    assert len(ids) == len(set(ids))  # f_copy has the id of a_good, and would repeat all of its
    rows = [json.loads(line) for path in (tmp_path / "run/quarantine").iterdir() for line in path.open()]
    assert {row["id"]: row["stage"] for row in rows} == {"c_nan": "spatial", "d_blind": "spatial"}
    assert "book" in str(rows) or "objects.3.box" in str(rows)


def test_a_run_goes_on_where_it_stopped_and_is_the_same_as_one_in_a_piece(scene_folder: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    generate_spatial_qa(str(scene_folder), Store(str(whole)), RECIPE, INLINE)
    generate_spatial_qa(str(scene_folder), Store(str(cut)), RECIPE, INLINE)
    # As if it had been killed: one shard not committed, the records of another not yet written.
    (cut / "commits" / "shard-000002.json").unlink()
    (cut / "shards" / "shard-000002.tar").unlink()
    (cut / "records" / "shard-000000.jsonl").unlink()
    assert not verify_spatial(Store(str(cut))).ok
    summary = generate_spatial_qa(str(scene_folder), Store(str(cut)), RECIPE, INLINE)
    assert (summary.num_shards, summary.num_shards_before, summary.num_scenes) == (3, 2, 2)
    assert shard_bytes(cut) == shard_bytes(whole)
    assert verify_spatial(Store(str(cut))).ok


def test_another_recipe_or_source_is_not_mixed_in(scene_folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    generate_spatial_qa("procedural:1?seed=3", store, RECIPE, INLINE)
    with pytest.raises(ValueError, match="questions_per_type"):
        generate_spatial_qa("procedural:1?seed=3", store, SpatialRecipe(scenes_per_shard=2), INLINE)
    with pytest.raises(ValueError, match="manifest_digest"):
        generate_spatial_qa("procedural:1?seed=4", store, RECIPE, INLINE)


def test_damage_is_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    generate_spatial_qa("procedural:2?seed=3", store, RECIPE, INLINE)
    records = tmp_path / "records" / "shard-000000.jsonl"
    records.write_bytes(records.read_bytes().replace(b'"answer":"A"', b'"answer":"B"', 1))
    found = verify_spatial(store)
    assert not found.ok
    assert "records/shard-000000.jsonl" in found.errors[0]


def test_a_quick_verify_looks_at_sizes_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    summary = generate_spatial_qa("procedural:1?seed=3", store, RECIPE, INLINE)
    tar = tmp_path / "shards" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    assert "digest" in verify_spatial(store).errors[0]
    quick = verify_spatial(store, deep=False)
    assert quick.ok
    assert quick.num_tokens == summary.report.num_questions
    tar.write_bytes(data[:-1])
    assert "bytes" in verify_spatial(store, deep=False).errors[0]
    tar.write_bytes(data)
    (tmp_path / "records" / "shard-000000.jsonl").unlink()
    assert "shard-000000.jsonl is missing" in verify_spatial(store, deep=False).errors[0]


@pytest.mark.parametrize("form", ["stills", "codec"])
def test_the_importer_reads_the_records_and_finds_their_media(tmp_path: Path, form: str) -> None:
    store = Store(str(tmp_path / "run"))
    recipe = SpatialRecipe(questions_per_type=2, input=form)
    generate_spatial_qa("procedural:2?seed=5", store, recipe, INLINE)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run", moved)  # paths in the records are relative to it
    items = list(import_spatial_qa(str(moved / "records")))
    assert len(items) > 60
    records = [item.record for item in items]
    assert None not in records
    for record in records:
        assert all(Path(ref.uri).is_file() for ref in record.media)
        assert {ref.kind for ref in record.media} == ({"image"} if form == "stills" else {"video"})
    assert len({record.id for record in records}) == len(records)


def test_exported_scenes_give_the_same_kinds_of_questions(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    generate_spatial_qa("procedural:2?seed=5", store, RECIPE, INLINE, export_folder=str(tmp_path / "scenes"))
    again = Store(str(tmp_path / "again"))
    summary = generate_spatial_qa(str(tmp_path / "scenes"), again, RECIPE, INLINE)
    assert summary.report.num_scenes == 2
    first, second = ({q.type for q in iter_questions(s)} for s in (store, again))
    assert len(first & second) >= 25


def test_the_gallery_shows_each_type(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    generate_spatial_qa("procedural:2?seed=5", store, RECIPE, INLINE)
    path = write_gallery(store, per_type=1)
    page = Path(path).read_text()
    types = {question.type for question in iter_questions(store)}
    assert all(f"<h2>{kind}</h2>" in page for kind in types)
    assert page.count("<svg") > len(types)
    assert "<script" not in page


def test_a_shard_that_kills_its_worker_is_taken_apart_and_only_the_bad_scene_falls(tmp_path: Path) -> None:
    source = open_source("procedural:5?seed=1")
    feed = SceneFeed(source, RECIPE, [0, 1, 2], Counters("spatial"), _Totals())
    first = feed.pull()
    assert first.payload.shard == 0
    assert first.divisible
    feed.condemned(first, Verdict("worker_died", "signal 11", 2))
    trials = [feed.pull(), feed.pull()]
    assert [trial.payload.number for trial in trials] == [0, 1]
    feed.done(trials[0], TrialPassed(), None)
    feed.condemned(trials[1], Verdict("worker_died", "signal 11", 3))
    last = feed.pull()
    assert not last.blamed
    assert {number: row.reason for number, row in last.payload.fallen.items()} == {1: "worker_died"}
    job = SpatialJob(
        source=source,
        store=Store(str(tmp_path)),
        recipe=RECIPE,
        config_digest="x",
        export_folder=str(tmp_path / "scenes"),
    )
    done, _ = job.run(last.payload)
    assert (done.num_scenes, done.num_made, done.quarantined) == (2, 1, ("worker_died",))
    feed.done(last, done, None)
    assert [feed.pull().payload.shard, feed.pull().payload.shard] == [1, 2]
    assert not feed.finished
    commit = load_commit(Store(str(tmp_path)), 0)
    assert [row.line for row in commit.quarantined] == [2]
    assert commit.quarantined[0].attempts == 3


@pytest.mark.ray
def test_two_workers_give_the_bytes_of_one(local_ray: None, scene_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    generate_spatial_qa(str(scene_folder), Store(str(one)), RECIPE, INLINE)
    generate_spatial_qa(str(scene_folder), Store(str(two)), RECIPE, RunOptions(workers=2, progress="off"))
    assert shard_bytes(one) == shard_bytes(two)
