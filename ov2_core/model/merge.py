"""An encoder and a language model become one folder.

Enters: a standalone (or merged) encoder folder and a Qwen3 (or merged) folder. Leaves: a merged folder. Tensors are planned from
headers, checked against the config's names and shapes, and only then read, one output shard at a time.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ov2_core.model.config import LlavaOnevision2Config, OneVisionEncoderConfig
from ov2_core.model.describe import CheckpointReport, describe_checkpoint
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.tensor_files import (
    SHARD_BYTES,
    Shape,
    TensorEntry,
    compare,
    read_entries,
    read_json,
    read_tensors,
    write_shards,
)
from ov2_core.model.weights import (
    LANGUAGE,
    VISUAL,
    encoder_prefix,
    fuse_encoder,
    layout_of,
    read_encoder_config,
    tied_names,
)

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""What comes along from the language model's folder."""


def merge_checkpoints(
    encoder_dir: str | os.PathLike[str],
    llm_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    connector_seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> CheckpointReport:
    """An encoder and a Qwen3 to a merged folder that `from_pretrained` and released tools read.

    Args:
        encoder_dir: standalone or merged. A merged folder's connector comes along if it fits the language model's width.
        llm_dir: Qwen3ForCausalLM, or a merged folder whose language model is taken. Its tokenizer files come along.
        out_dir: a folder without weights.
        connector_seed: a connector that no folder gave is drawn from a normal distribution and must be trained.

    Raises:
        ValueError: weights already in out_dir, a folder of the wrong layout, or tensors that do not fit; all are named.
    """
    out = Path(out_dir)
    if out.exists() and any(out.glob("*.safetensors*")):
        raise ValueError(f"{out} already holds weights; give an empty folder")
    encoder_entries, llm_entries = read_entries(encoder_dir), read_entries(llm_dir)
    if layout_of(encoder_entries) == "llm":
        raise ValueError(f"{encoder_dir} holds a language model alone; no encoder")
    if layout_of(llm_entries) == "encoder":
        raise ValueError(f"{llm_dir} holds an encoder alone; no language model")
    llm_fields = read_json(Path(llm_dir) / "config.json")
    text_fields = llm_fields.get("text_config", llm_fields)
    tied = bool(llm_fields.get("tie_word_embeddings", text_fields.get("tie_word_embeddings", False)))
    width = int(text_fields["hidden_size"])
    vision = read_encoder_config(encoder_dir, out_hidden_size=width)
    text = {k: v for k, v in text_fields.items() if k not in ("auto_map", "architectures", "transformers_version")}
    config = LlavaOnevision2Config(text_config=text, vision_config=vision, tie_word_embeddings=tied, dtype=dtype)
    config.architectures = [LlavaOnevision2ForConditionalGeneration.__name__]
    with torch.device("meta"):
        model = LlavaOnevision2ForConditionalGeneration(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sources = _merge_sources(encoder_entries, llm_entries, wanted, vision, connector_seed)
    for name in tied_names(model):
        del wanted[name]
        sources.pop(name, None)
    differences = compare(wanted, {name: source.shape for name, source in sources.items()})
    if differences:
        raise ValueError(f"{encoder_dir} and {llm_dir} do not make this model:\n" + differences.text())
    out.mkdir(parents=True, exist_ok=True)
    sizes = {name: source.numel() * dtype.itemsize for name, source in sources.items()}
    write_shards(sizes, lambda name: sources[name].read().to(dtype).contiguous(), out, shard_bytes)
    for name in TEXT_FILES:
        if (Path(llm_dir) / name).is_file():
            shutil.copyfile(Path(llm_dir) / name, out / name)
    config.save_pretrained(out)
    return describe_checkpoint(out)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """An output tensor, not read yet."""

    shape: Shape
    read: Callable[[], Tensor]

    def numel(self) -> int:
        return math.prod(self.shape)


def _merge_sources(
    encoder: Mapping[str, TensorEntry],
    llm: Mapping[str, TensorEntry],
    wanted: Mapping[str, Shape],
    vision: OneVisionEncoderConfig,
    seed: int,
) -> dict[str, _Source]:
    """The merged model's tensors by name, none of them read."""
    sources: dict[str, _Source] = {}
    if layout_of(encoder) == "merged":
        for name, entry in encoder.items():
            fits = not name.startswith(VISUAL + "merger.") or wanted.get(name) == entry.shape
            if name.startswith(VISUAL) and fits:
                sources[name] = _from_file(name, entry)
    else:
        sources.update(_fused_sources(encoder))
    llm_layout = layout_of(llm)
    for name, entry in llm.items():
        if llm_layout == "llm" and name.startswith("model."):
            sources[LANGUAGE + name.removeprefix("model.")] = _from_file(name, entry)
        elif not name.startswith(VISUAL):
            sources[name] = _from_file(name, entry)
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(name for name in wanted if name.startswith(VISUAL + "merger.") and name not in sources):
        tensor = _fresh(name, wanted[name], vision.initializer_range, generator)
        sources[name] = _Source(shape=tensor.shape, read=lambda tensor=tensor: tensor)  # type: ignore[misc]
    return sources


def _fused_sources(entries: Mapping[str, TensorEntry]) -> dict[str, _Source]:
    """`fuse_encoder` on headers, with tensors read when asked for."""
    prefix = encoder_prefix(entries)
    shapes = {name.removeprefix(prefix): torch.empty(entry.shape, device="meta") for name, entry in entries.items()}
    sources = {}
    for fused, meta in fuse_encoder(shapes).items():
        if ".qkv." in fused:
            names = [prefix + fused.replace(".qkv.", f".{x}_proj.") for x in "qkv"]
        else:
            names = [prefix + fused.replace(".self_attn.proj.", ".self_attn.out_proj.")]
        parts = [_from_file(name, entries[name]) for name in names]
        sources[VISUAL + fused] = _Source(
            shape=tuple(meta.shape),
            read=lambda parts=parts: torch.cat([part.read() for part in parts]),  # type: ignore[misc]
        )
    return sources


def _from_file(name: str, entry: TensorEntry) -> _Source:
    return _Source(shape=entry.shape, read=lambda: next(read_tensors({name: entry}))[1])


def _fresh(name: str, shape: Shape, std: float, generator: torch.Generator) -> Tensor:
    if ".ln_q." in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) * std if name.endswith("weight") else torch.zeros(shape)
