"""Exports: the logits of the model that was trained, the released names, whole folders or none."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors import safe_open
from typer.testing import CliRunner

from jobs.cli import app
from jobs.train_recipes import training
from ov2_core.config import with_settings
from ov2_core.data.loader import StageLoader
from ov2_core.model import LlavaOnevision2ForConditionalGeneration, load
from ov2_core.model.create import open_model, open_processor
from ov2_core.model.describe import describe_checkpoint
from ov2_core.model.weights import load_encoder, load_model
from ov2_core.train import export
from ov2_core.train.checkpoint import Checkpointer, find_checkpoint, find_checkpoints
from ov2_core.train.distributed import joined
from ov2_core.train.export import export_checkpoint
from ov2_core.train.optimizer import make_optimizer
from ov2_core.train.run_files import read_run
from ov2_core.train.train import TrainOptions, train
from ov2_core.train.trainable import make_trainable

SETTINGS = [
    *("global_batch=4", "save_every=1", "keep_last=4", "held_out_packs=1", "eval_every=1"),
    *(f"{part}.learning_rate=0.005" for part in ("visual", "connector", "language")),
]
LORA = "lora.rank=4"


def train_some(stage: Path, out: Path, *settings: str, init: str = "tiny", steps: int = 3) -> Path:
    config = with_settings(training("stage1"), [*SETTINGS, *settings])
    train(config, TrainOptions(stage=str(stage), init=init, out=str(out), max_steps=steps, num_workers=0, device="cpu"))
    return out


@pytest.fixture(scope="module")
def runs(train_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """whole: all weights trained for three steps; lora: low-rank updates of the language model."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "whole": train_some(train_stage, folder / "whole"),
        "lora": train_some(train_stage, folder / "lora", LORA),
    }


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "deep" / "model"
    export_checkpoint(runs["whole"], out, dtype=torch.float32)
    return out


def sample_inputs(stage: Path) -> dict[str, Any]:
    """A pack with pictures."""
    with StageLoader(stage, batch_size=1, num_workers=0, processor=open_processor("tiny")) as loader:
        batch = next(batch for batch in loader if batch.pixel_values is not None)
    inputs: dict[str, Any] = batch.model_inputs()
    return inputs


def trained_logits(run: Path, stage: Path, *settings: str) -> torch.Tensor:
    """Of the module that training restores from its newest checkpoint, adapters and all."""
    config = with_settings(training("stage1"), [*SETTINGS, *settings])
    with joined("cpu") as world:
        model = open_model("tiny", open_processor("tiny"), seed=9)
        trainable = make_trainable(model, config, device=world.device)
        checkpoints = Checkpointer(run, world, keep_last=4)
        checkpoints.restore(find_checkpoint(run), trainable, make_optimizer(trainable, config))
    model.model.language_model.config._attn_implementation = "sdpa"  # in training it takes packs alone
    return logits_of(model, sample_inputs(stage))


def logits_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_logits_are_those_of_the_trained_module(
    train_stage: Path, runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    export_checkpoint(runs[name], tmp_path / "out", dtype=torch.float32)
    wanted = trained_logits(runs[name], train_stage, *([LORA] if name == "lora" else []))
    inputs = sample_inputs(train_stage)
    found = logits_of(load_model(tmp_path / "out"), inputs)
    untrained = logits_of(open_model("tiny", open_processor("tiny")), inputs)
    assert (found - wanted).abs().max() <= (0 if name == "whole" else 1e-4)
    assert (untrained - wanted).abs().max() > 0.01


def test_names_are_the_released_ones(exported: Path) -> None:
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    whole = open_model("tiny", open_processor("tiny"))
    assert names == set(whole.state_dict())
    assert {name.split(".")[0] for name in names} == {"model", "lm_head"}
    assert {".".join(name.split(".")[:2]) for name in names - {"lm_head.weight"}} == {
        "model.visual",
        "model.language_model",
    }
    assert "model.visual.encoder.layers.0.self_attn.qkv.weight" in names
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in names
    assert describe_checkpoint(exported).ok
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlavaOnevision2ForConditionalGeneration"]
    assert config["model_type"] == "llava_onevision2"


def test_transformers_load_it_by_its_auto_classes(train_stage: Path, exported: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, info = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert isinstance(model, LlavaOnevision2ForConditionalGeneration)
    assert not any(info.values()), info
    assert model.generation_config.eos_token_id == open_processor("tiny").tokenizer.eos_token_id
    inputs = sample_inputs(train_stage)
    assert torch.equal(logits_of(model, inputs), logits_of(load_model(exported), inputs))
    processor = AutoProcessor.from_pretrained(exported)
    assert processor.tokenizer.get_vocab() == open_processor("tiny").tokenizer.get_vocab()


def test_generate_encode_and_the_next_stage_start_from_it(
    train_stage: Path, runs: dict[str, Path], exported: Path, tmp_path: Path
) -> None:
    assert isinstance(load(exported, device="cpu").model, LlavaOnevision2ForConditionalGeneration)
    assert load_encoder(exported).merger is not None
    chained = train_some(train_stage, tmp_path / "next", init=str(exported), steps=1)
    fields = read_run(chained)
    assert fields["init"] == str(exported)
    assert fields["init_digest"] is not None
    first = json.loads((chained / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    from_scratch = json.loads((runs["whole"] / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first < from_scratch - 0.05


def test_bfloat16_is_the_float32_rounded(runs: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    export_checkpoint(runs["whole"], tmp_path / "half")
    exact, rounded = load_model(exported).state_dict(), load_model(tmp_path / "half").state_dict()
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor.to(torch.bfloat16), rounded[name]) for name, tensor in exact.items())
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"


def test_a_step_or_the_best_can_be_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    validation = [json.loads(line) for line in (runs["whole"] / "validation.jsonl").read_text().splitlines()]
    best = min(validation, key=lambda line: line["loss"])
    assert export_checkpoint(runs["whole"], tmp_path / "best", best=True).step == best["step"]
    assert export_checkpoint(runs["whole"], tmp_path / "first", step=1).step == 1
    origin = json.loads((tmp_path / "first/training.json").read_text())
    assert origin["step"] == 1
    assert origin["validation_loss"] == validation[0]["loss"]
    assert origin["stage_digest"] == read_run(runs["whole"])["stage_digest"]
    assert origin["recipe"] == "stage1"


def test_large_models_are_written_in_shards(runs: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    export_checkpoint(runs["whole"], tmp_path / "shards", dtype=torch.float32, shard_bytes=1_000_000)
    assert len(list((tmp_path / "shards").glob("model-0000*.safetensors"))) > 2
    whole, sharded = load_model(exported).state_dict(), load_model(tmp_path / "shards").state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


def test_a_kill_leaves_no_folder_and_the_next_export_is_whole(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(runs["whole"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.part/model.safetensors").exists()
    monkeypatch.undo()
    (tmp_path / "out.part/left-over.safetensors").write_bytes(b"")
    (tmp_path / "out").mkdir()
    export_checkpoint(runs["whole"], tmp_path / "out")
    assert describe_checkpoint(tmp_path / "out").ok
    assert not (tmp_path / "out/left-over.safetensors").exists()
    assert not (tmp_path / "out.part").exists()


def test_what_cannot_be_exported_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["whole"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    for arguments, message in (
        ((run, tmp_path / "full"), "is there already; name a new or empty folder"),
        ((run, "s3://bucket/model"), "--out must be a local folder, got s3://bucket/model"),
        ((tmp_path / "full", tmp_path / "out"), r"holds no run\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            export_checkpoint(*arguments)
    with pytest.raises(ValueError, match=r"no checkpoint of step 7; steps there: 1, 2, 3"):
        export_checkpoint(run, tmp_path / "out", step=7)
    with pytest.raises(ValueError, match="a step or ask for the best, not both"):
        export_checkpoint(run, tmp_path / "out", step=1, best=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_tensors_of_another_model_are_named(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "checkpoints"):
        (tmp_path / "run" / name).symlink_to(runs["whole"] / name)
    with pytest.raises(ValueError, match=r"holds no model/config\.json"):
        export_checkpoint(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run/model").mkdir()
    config = json.loads((runs["whole"] / "model/config.json").read_text())
    config["text_config"]["vocab_size"] = 600
    (tmp_path / "run/model/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lm_head\.weight is \[512, \d+\], must be \[600, \d+\]"):
        export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports(runs: dict[str, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(runs["whole"]), "--out", str(tmp_path / "out"), "--step", "2"])
    assert result.exit_code == 0, result.output
    assert "step 2 of" in result.output
    assert describe_checkpoint(tmp_path / "out").dtypes == ("bfloat16",)
    result = CliRunner().invoke(app, ["export", str(runs["whole"]), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert len(find_checkpoints(runs["whole"])) == 3
