"""A run that meets a pack whose loss is not finite: what it leaves out, writes, and goes on with."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from ov2_core.train import feed
from ov2_core.train.checkpoint import find_checkpoint
from ov2_core.train.checkpoint_reader import fill, tensor_shapes
from ov2_core.train.config import GuardConfig, TrainConfig
from ov2_core.train.metrics import BAD_STEPS, METRICS, read_lines
from ov2_core.train.step import BadStepError
from ov2_core.train.train import TrainOptions, train

CONFIG = TrainConfig(name="test", version=1, global_batch=4, save_every=1, keep_last=10, activation_checkpointing=False)


@pytest.fixture
def poisoned(monkeypatch):
    """{key: id} of the first pack with pictures after the first step, and its first sample that shows any: one of its pixels is NaN
    in every reading."""
    plain, found, seen = feed.pack_inputs, {}, []

    def pack_inputs(batch):
        inputs = plain(batch)
        seen.append(batch.keys)
        if inputs.pixel_values is None or len(seen) <= CONFIG.global_batch or (found and batch.keys[0] not in found):
            return inputs
        found[batch.keys[0]] = next(one.id for one in inputs.samples if one.input_kind != "text")
        pixels = inputs.pixels(torch.float32)
        pixels[0, 0] = torch.nan
        return replace(inputs, pixel_values=pixels)

    monkeypatch.setattr(feed, "pack_inputs", pack_inputs)
    return found


def options(stage: Path, out: Path, **fields) -> TrainOptions:
    return TrainOptions(
        **{
            "stage": str(stage),
            "init": "tiny",
            "out": str(out),
            "max_steps": 4,
            "num_workers": 0,
            "device": "cpu",
            **fields,
        }
    )


def tensors_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and moments of a checkpoint."""
    path = find_checkpoint(out, step=step).path
    names = {name: shape for name, shape in tensor_shapes(path).items() if not name.startswith("random.")}
    made = {name: torch.zeros(shape) for name, shape in names.items()}
    fill(made, path, alone=True)
    return made


def test_a_bad_pack_is_left_out_and_named(train_stage, tmp_path, poisoned, caplog):
    with caplog.at_level(logging.WARNING, "ov2_core.train"):
        train(CONFIG, options(train_stage, tmp_path / "run"))
    ((key, sample),) = poisoned.items()
    (bad,) = read_lines(tmp_path / "run" / BAD_STEPS)
    assert bad["reason"] == "the loss is nan"
    assert {name: bad["samples"][0][name] for name in ("pack", "id", "loss")} == {
        "pack": key,
        "id": sample,
        "loss": "nan",
    }
    assert [one["pack"] for one in bad["samples"] if isinstance(one["loss"], str)] == [key]
    assert len({one["pack"] for one in bad["samples"]}) == 4
    (said,) = [record.getMessage() for record in caplog.records if "was not applied" in record.getMessage()]
    assert f"step {bad['step']} was not applied: the loss is nan; packs {key}; " in said
    assert repr(sample) in said
    steps = list(read_lines(tmp_path / "run" / METRICS))
    assert [step["applied"] for step in steps] == [step["step"] != bad["step"] for step in steps]
    assert [step["loss"] is None for step in steps] == [step["step"] == bad["step"] for step in steps]
    before, after = (tensors_of(tmp_path / "run", step) for step in (bad["step"] - 1, bad["step"]))
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in before} >= {"weights", "optimizer"}
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_a_run_that_stops_has_written_why_and_goes_on_when_told_to_skip(train_stage, tmp_path, poisoned):
    stop = replace(CONFIG, guard=GuardConfig(on_not_finite="stop"))
    with pytest.raises(BadStepError, match=r"guard\.on_not_finite=skip"):
        train(stop, options(train_stage, tmp_path / "run"))
    ((key, sample),) = poisoned.items()
    (bad,) = read_lines(tmp_path / "run" / BAD_STEPS)
    assert (bad["samples"][0]["pack"], bad["samples"][0]["id"]) == (key, sample)
    assert len(list(read_lines(tmp_path / "run" / METRICS))) == bad["step"] - 1
    done = train(replace(stop, guard=GuardConfig()), options(train_stage, tmp_path / "run", resume=True))
    assert done.step == 4
    assert [line["step"] for line in read_lines(tmp_path / "run" / BAD_STEPS)] == [bad["step"]]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["guard"]["on_not_finite"] == "skip"
