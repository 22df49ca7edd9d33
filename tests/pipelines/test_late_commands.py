"""A command that was held up before any of its operations, while the same command finished the run, ends well, changing nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from spatial_scenes import hand_scene
from steered_commands import Command, late_at_every_operation, pausing

from jobs.bench_resume import stage_record
from ov2_core.config import recipe
from ov2_core.data.stage import pack_key, write_packs
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.run_files import verify_spatial
from ov2_core.spatial.scene_files import write_scene
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run
from pipelines.generate_spatial_qa import generate_spatial_qa
from pipelines.materialize_stage import materialize
from pipelines.options import RunOptions
from pipelines.run_rounds import append_rows
from pipelines.tokenize_videos import tokenize_videos
from schemas.stage import StagePack, StageSample
from schemas.video import Message

INLINE = RunOptions(workers=0, progress="off")
CONFIG = recipe("codec-8")


def published(run: str, *folders: str) -> dict[str, str]:
    """{path: digest} of what a reader of the run sees."""
    files = [path for folder in folders for path in (Path(run) / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A still, and a file that is not there."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)).save(tmp_path / "still.png")
    rows = [{"image": str(tmp_path / name), "id": name, "caption": "Noise."} for name in ("still.png", "nowhere.png")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "manifest.jsonl"


def test_late_scene_generator_changes_nothing(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    write_scene(hand_scene(), str(scenes / "good"))
    write_scene(hand_scene(), str(scenes / "no_depth"))
    shutil.rmtree(scenes / "no_depth" / "depth")
    asked = SpatialRecipe(questions_per_type=1, scenes_per_shard=1)
    undisturbed = str(tmp_path / "undisturbed")

    def command(run: str) -> object:
        return generate_spatial_qa(str(scenes), Store(run), asked, INLINE)

    def judge(run: str) -> None:
        assert verify_spatial(Store(run)).errors == []
        assert published(run, "shards", "records", "attempts") == expected

    command(undisturbed)
    expected = published(undisturbed, "shards", "records", "attempts")
    assert late_at_every_operation(command, judge, str(tmp_path)) > 40


def test_late_tokenizer_changes_nothing(manifest: Path, tmp_path: Path) -> None:
    def command(run: str) -> object:
        return tokenize_videos(str(manifest), Store(run), CONFIG, INLINE)

    _check_late(command, str(tmp_path))


def test_late_encoder_changes_nothing(manifest: Path, tiny_model: Path, tmp_path: Path) -> None:
    from pipelines.extract_features import EncodeOptions, extract_features

    source = Store(tmp_path / "source")
    tokenize_videos(str(manifest), source, CONFIG, INLINE)

    def command(run: str) -> object:
        return extract_features(source, Store(run), EncodeOptions(model=str(tiny_model)), INLINE)

    _check_late(command, str(tmp_path))


def test_late_encoder_does_not_follow_a_source_that_has_grown(manifest: Path, tiny_model: Path, tmp_path: Path) -> None:
    from pipelines.extract_features import EncodeOptions, extract_features

    source, run = Store(tmp_path / "source"), Store(tmp_path / "run")
    tokenize_videos(str(manifest), source, CONFIG, INLINE)
    with pausing():
        late = Command(lambda: extract_features(source, run, EncodeOptions(model=str(tiny_model)), INLINE))
        late.advance(10**6, "create_bytes")  # it has looked at its source, and claims the run
        extract_features(source, run, EncodeOptions(model=str(tiny_model)), INLINE)
        row = json.loads(manifest.read_text().splitlines()[0])
        manifest.write_text(json.dumps(row | {"id": "later"}) + "\n")
        assert append_rows(str(manifest), source, INLINE).tokenized.num_made == 1
        late.advance(10**6)
    assert late.error is None
    found = verify_run(run)
    assert (found.errors, found.committed) == ([], 1)


def test_late_materializer_changes_nothing(tmp_path: Path) -> None:
    turns = [Message(role="user", content="Which?"), Message(role="assistant", content="This.")]
    sample = StageSample(
        source=0, id="a", messages=turns, media=[], num_tokens=9, num_visual_tokens=0, num_supervised_tokens=3
    )
    packs = [StagePack(number=i, key=pack_key(i), num_tokens=9, samples=[sample]) for i in range(2)]
    index = Store(tmp_path / "index")
    written = write_packs(index, packs, list, packs_per_block=2, packs_per_part=2)
    record = stage_record(2, 1, digest=written.digest, packs_per_block=2, packs_per_part=2)

    def command(run: str) -> object:
        return materialize(Store(run), record, shard_bytes=36, run_options=INLINE)

    def judge(run: str) -> None:
        assert published(run, "shards", ".nv-meta", "attempts") == expected

    def begin(run: str) -> None:
        shutil.copytree(tmp_path / "index", run)

    undisturbed = str(tmp_path / "undisturbed")
    begin(undisturbed)
    command(undisturbed)
    expected = published(undisturbed, "shards", ".nv-meta", "attempts")
    assert late_at_every_operation(command, judge, str(tmp_path), begin=begin) > 40


def _check_late(command: Callable[[str], object], folder: str) -> None:
    def judge(run: str) -> None:
        assert verify_run(Store(run)).errors == []
        assert published(run, "shards", ".nv-meta", "attempts") == expected

    undisturbed = f"{folder}/undisturbed"
    command(undisturbed)
    expected = published(undisturbed, "shards", ".nv-meta", "attempts")
    assert late_at_every_operation(command, judge, folder) > 40
