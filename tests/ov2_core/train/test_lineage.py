"""Lineage: steps to what they have seen, held against the loader, and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from train_stages import make_train_stage
from typer.testing import CliRunner

from jobs.cli import app
from jobs.train_recipes import training
from ov2_core.config import with_settings
from ov2_core.data.loader import StageLoader
from ov2_core.data.stage import load_stage
from ov2_core.model.create import open_processor
from ov2_core.storage.files import Store
from ov2_core.train.lineage import Lineage
from ov2_core.train.train import TrainOptions, train

NUM_STEPS = 6


@pytest.fixture(scope="module")
def run(train_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of four packs: into the second epoch."""
    out = tmp_path_factory.mktemp("lineage") / "run"
    options = TrainOptions(
        stage=str(train_stage), init="tiny", out=str(out), max_steps=NUM_STEPS, num_workers=0, device="cpu", seed=3
    )
    train(with_settings(training("stage1"), ["global_batch=4", "held_out_packs=2"]), options)
    return out


def test_a_step_lists_what_the_loader_gave_it(train_stage: Path, run: Path) -> None:
    lineage = Lineage(run)
    loader = StageLoader(
        train_stage,
        batch_size=4,
        num_workers=0,
        processor=open_processor("tiny"),
        seed=3,
        held_out=2,
        endless=True,
    )
    with loader:
        for step, batch in zip(range(1, NUM_STEPS + 1), loader, strict=False):
            seen = lineage.step(step)
            assert (seen.step, seen.epoch, seen.applied, seen.skipped_samples) == (step, (step - 1) // 4, True, 0)
            assert tuple(pack.key for pack in seen.packs) == batch.keys
            found = tuple(tuple((sample.source, sample.id) for sample in pack.samples) for pack in seen.packs)
            assert found == batch.sample_ids
            lengths = tuple(tuple(sample.num_tokens for sample in pack.samples) for pack in seen.packs)
            assert lengths == batch.sample_lengths


def media_of(lineage: Lineage) -> dict[tuple[str, str], Any]:
    """(source, key) to medium, of the whole run."""
    return {
        (sample.source, medium.key): medium
        for step in range(1, NUM_STEPS + 1)
        for pack in lineage.step(step).packs
        for sample in pack.samples
        for medium in sample.media
    }


def test_media_are_told_by_the_files_they_were_cut_from(token_run: Path, run: Path) -> None:
    media = media_of(Lineage(run))
    modes = {"spatial": "codec", "captions-10min-768": "uniform"}
    assert {source for source, _ in media} == set(modes)
    assert len(media) >= 6
    for (source, key), medium in media.items():
        still = key == "still"
        assert medium.uri == str(token_run.parent / ("still.png" if still else f"{key}.mp4"))
        assert (medium.kind, medium.mode) == (("image", "still") if still else ("video", modes[source]))
        assert Path(medium.tar).exists()
        assert medium.unreadable is None


def test_the_steps_of_a_sample_are_those_that_list_it(train_stage: Path, run: Path) -> None:
    lineage = Lineage(run)
    steps: dict[tuple[str, str], list[int]] = {}
    by_key: dict[str, list[int]] = {}
    for step in range(1, NUM_STEPS + 1):
        keys = set()
        for sample in (sample for pack in lineage.step(step).packs for sample in pack.samples):
            steps.setdefault((sample.source, sample.id), []).append(step)
            keys |= {medium.key for medium in sample.media}
        for key in keys:
            by_key.setdefault(key, []).append(step)
    assert any(len(found) == 2 for found in steps.values())
    for (source, id), found in steps.items():
        assert lineage.steps_of_sample(source, id) == found
    for key, found in by_key.items():
        assert lineage.steps_of_medium(key) == found
    with StageLoader(
        train_stage, batch_size=1, num_workers=0, processor=open_processor("tiny"), held_out=2, part="held_out"
    ) as held_out:
        for batch in held_out:
            for source, id in batch.sample_ids[0]:
                assert lineage.steps_of_sample(source, id) == []


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    lineage = Lineage(run)
    with pytest.raises(ValueError, match="has made no step 7; its steps are 1 to 6"):
        lineage.step(7)
    with pytest.raises(ValueError, match=r"no source 'nothing'; its sources: .*spatial"):
        lineage.steps_of_sample("nothing", "clip-0")
    with pytest.raises(ValueError, match="no sample 'clip-9' of source 'spatial'"):
        lineage.steps_of_sample("spatial", "clip-9")
    with pytest.raises(ValueError, match="no medium with key 'clip-9'"):
        lineage.steps_of_medium("clip-9")
    with pytest.raises(ValueError, match=r"holds no run\.json"):
        Lineage(tmp_path)


def test_a_moved_stage_and_moved_shards_are_found(
    train_stage: Path, token_run: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(train_stage, tmp_path / "STAGE")
    shutil.copytree(token_run, tmp_path / "run")
    moved = Lineage(run, stage=str(tmp_path / "STAGE"), moved={str(token_run): str(tmp_path / "run")})
    media = media_of(moved)
    assert media["spatial", "clip-3"].tar.startswith(str(tmp_path / "run"))
    assert media["spatial", "clip-3"].uri == media_of(Lineage(run))["spatial", "clip-3"].uri

    shutil.rmtree(tmp_path / "run")
    gone = media_of(moved)
    assert "No such file" in gone["spatial", "clip-3"].unreadable
    assert gone["captions-10min-768", "clip-0"].unreadable is None
    text = "\n".join(line for step in range(1, 7) for line in moved.step(step).lines())
    assert "video clip-3: its file is not known: " in text

    record = json.loads((tmp_path / "STAGE/stage.json").read_text())
    (tmp_path / "STAGE/stage.json").write_text(json.dumps({**record, "digest": "0" * 64}))
    with pytest.raises(ValueError, match=r"is not the stage that .* was trained on"):
        Lineage(run, stage=str(tmp_path / "STAGE"))


def test_a_stage_of_shards_tells_keys(token_run: Path, tmp_path: Path) -> None:
    stage = make_train_stage(tmp_path, token_run, materialize=True)
    record = load_stage(Store(stage))
    assert record.form == "shards"
    (tmp_path / "run").mkdir()
    fields = {"stage": str(stage), "stage_digest": record.digest}
    (tmp_path / "run/run.json").write_text(json.dumps(fields))
    numbers = list(range(record.packing.num_packs))
    line = {"step": 1, "epoch": 0, "packs": numbers, "skipped_samples": 2, "skipped_tars": {"a.tar": 2}}
    (tmp_path / "run/lineage.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps({"step": 1, "applied": False}) + "\n")
    seen = Lineage(tmp_path / "run").step(1)
    keys = [medium.key for pack in seen.packs for sample in pack.samples for medium in sample.media]
    assert sorted(keys) == sorted([f"clip-{i}" for i in range(5)] + [f"clip-{i}" for i in range(3)] + ["still"])
    text = "\n".join(seen.lines())
    assert "NOT APPLIED" in text
    assert "2 samples of a.tar" in text


def test_the_command_lists_and_finds(run: Path) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["lineage", str(run), *arguments])

    text = call("--step", "2").output
    assert text.startswith("step 2, epoch 0: 4 packs, ")
    listed = json.loads(call("--step", "2", "--json").output)
    assert listed == json.loads(json.dumps(Lineage(run).step(2).to_dict()))
    sample = listed["packs"][0]["samples"][0]
    assert json.loads(call("--sample", f"{sample['source']}/{sample['id']}", "--json").output)["steps"][0] == 2
    assert call("--media", "clip-0").output.startswith("steps: ")
    for arguments in ((), ("--step", "1", "--media", "x"), ("--sample", "x"), ("--step", "99")):
        assert call(*arguments).exit_code == 2
