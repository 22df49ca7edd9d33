"""A checkpoint to a folder in the Hub's layout, that transformers, vLLM's naming, `ov2 generate` and the next stage read.

Enters: CKPT, which holds all that is needed: weights in its checkpoints, the model's config, tokenizer and processor in CKPT/model
since the run's start. Leaves: config.json, generation_config.json, safetensors under the released names, tokenizer and processor
files, and training.json, which says where the weights come from. The folder appears whole or not at all.

One process, no GPU; memory is that of the weights in the type they are written in, with low-rank updates (they are added in
float32) that of float32 weights.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ov2_core.model.describe import describe_checkpoint
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.tensor_files import SHARD_BYTES, compare, write_shards
from ov2_core.model.weights import read_config, tied_names
from ov2_core.train.checkpoint import Found, find_checkpoint
from ov2_core.train.checkpoint_reader import fill, tensor_shapes
from ov2_core.train.config import LoraConfig
from ov2_core.train.run_files import read_run, write_json
from ov2_core.train.trainable import add_lora, merge_lora

MODEL = "model"
"""Folder of a run: everything of the model but its weights."""
TRAINING_JSON = "training.json"


def write_model_files(run: Path, model: LlavaOnevision2ForConditionalGeneration, processor: Any) -> None:
    """CKPT/model, whole or not at all; one that stands is left as it is."""
    folder = run / MODEL
    if folder.exists():
        return
    part = _begin(folder)
    config = type(model.config)(**model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.save_pretrained(part)
    model.generation_config.save_pretrained(part)
    processor.save_pretrained(part)
    part.rename(folder)


def export_checkpoint(
    run: Path,
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    best: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> Found:
    """Writes the folder of one checkpoint.

    Args:
        run: CKPT.
        out: a new or empty folder.
        step: of the checkpoint; None: the newest, or with `best` that of the lowest validation loss.
        dtype: of the weights.

    Returns:
        The checkpoint that it was.

    Raises:
        ValueError: out is not empty, there is no such checkpoint, or its tensors are not those of the model; all are named.
    """
    if "://" in str(out):
        raise ValueError(f"--out must be a local folder, got {out}; export to one and copy it")
    out = Path(out)
    if step is not None and best:
        raise ValueError("give a step or ask for the best, not both")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; name a new or empty folder")
    fields = read_run(run)
    found = find_checkpoint(run, step=step, best=best)
    model = read_trained(run, found, dtype=dtype)
    part = _begin(out)
    model.config.dtype = dtype
    model.config.save_pretrained(part)
    for file in (run / MODEL).iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, part / file.name)
    state: dict[str, Tensor] = model.state_dict()
    for name in tied_names(model):
        state.pop(name, None)
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()}
    write_shards(sizes, lambda name: state[name].to(dtype), part, shard_bytes)
    write_json(part / TRAINING_JSON, _origin(fields, found))
    report = describe_checkpoint(part)
    if not report.ok:
        raise RuntimeError(f"{part} is not what was to be written:\n" + "\n".join(report.lines()))
    os.replace(part, out)
    return found


def read_trained(run: Path, found: Found, *, dtype: torch.dtype) -> LlavaOnevision2ForConditionalGeneration:
    """The whole model of a checkpoint in eval mode, low-rank updates added.

    Raises:
        ValueError: its tensors are not those of the model that the run says it trains.
    """
    lora = LoraConfig(**read_run(run)["config"]["lora"])
    if not (run / MODEL / "config.json").exists():
        raise ValueError(f"{run} holds no {MODEL}/config.json; `ov2 train` writes it when a run begins")
    with torch.device("meta"):
        model = LlavaOnevision2ForConditionalGeneration(read_config(run / MODEL))
        if lora.rank:
            add_lora(model, lora)
    model.to(torch.float32 if lora.rank else dtype)  # type: ignore[arg-type]
    model.to_empty(device="cpu")
    model.tie_weights()
    wanted = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    there = {name: shape for name, shape in tensor_shapes(found.path).items() if name.startswith("weights.")}
    differences = compare({name: tuple(tensor.shape) for name, tensor in wanted.items()}, there)
    if differences:
        raise ValueError(f"{found.path} does not hold the tensors of this run's model:\n" + differences.text())
    fill(wanted, found.path, alone=True)
    if lora.rank:
        merge_lora(model)
    rotary = model.model.language_model.rotary_emb
    model.model.language_model.rotary_emb = type(rotary)(model.config.text_config)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _begin(folder: Path) -> Path:
    """An empty folder beside it, to be renamed; what a kill left of the last one is removed."""
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    return part


def _origin(fields: dict[str, Any], found: Found) -> dict[str, Any]:
    names = ("recipe", "recipe_version", "stage", "stage_digest", "init", "init_digest", "features", "seed", "config")
    return {
        "step": found.step,
        "validation_loss": found.state.get("validation_loss"),
        **{name: fields.get(name) for name in names},
    }
