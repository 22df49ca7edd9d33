"""What a checkpoint folder holds: layout, sizes by part, and every tensor that its config does not expect.

Enters: a folder. Leaves: a report; config.json and headers are read, no tensor is.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from ov2_core.model.config import OneVisionEncoderConfig
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.tensor_files import Differences, Shape, compare, read_entries, read_json
from ov2_core.model.weights import (
    STANDALONE_ONLY,
    VISUAL,
    Layout,
    encoder_prefix,
    layout_of,
    read_config,
    read_encoder_config,
    split_encoder,
)

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSize:
    """Tensors of one part of a model."""

    num_tensors: int
    num_parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointReport:
    """What a folder holds, and how it differs from what its config asks for."""

    directory: str
    layout: Layout
    facts: tuple[tuple[str, str], ...]
    """Name and value, for people."""
    parts: dict[str, PartSize]
    dtypes: tuple[str, ...]
    num_files: int
    num_bytes: int
    differences: Differences

    @property
    def ok(self) -> bool:
        return not self.differences

    def lines(self) -> list[str]:
        """The report as text."""
        total = sum(part.num_parameters for part in self.parts.values())
        return [
            f"{self.directory}: {self.layout}, {total / 1e6:,.1f} M parameters in {', '.join(self.dtypes)}, "
            f"{self.num_bytes / 1e9:.2f} GB in {self.num_files} safetensors",
            *(
                f"  {name}: {part.num_parameters / 1e6:,.1f} M in {part.num_tensors} tensors"
                for name, part in self.parts.items()
            ),
            *(f"  {name}: {value}" for name, value in self.facts),
            "  every tensor is there and fits" if self.ok else self.differences.text(),
        ]


def describe_checkpoint(directory: str | os.PathLike[str]) -> CheckpointReport:
    """Reads config.json and headers; no tensor is loaded. Differences are reported, not raised.

    Raises:
        ValueError: no folder of a known layout.
    """
    entries = read_entries(directory)
    layout = layout_of(entries)
    found = {name: entry.shape for name, entry in entries.items()}
    wanted, facts = _wanted(directory, layout)
    if layout == "encoder":
        prefix = encoder_prefix(entries)
        found = {
            name.removeprefix(prefix): shape
            for name, shape in found.items()
            if not name.removeprefix(prefix).startswith(STANDALONE_ONLY)
        }
    elif "lm_head.weight" not in found and dict(facts).get("tied embeddings") == "yes":
        wanted.pop("lm_head.weight", None)
    parts: dict[str, PartSize] = {}
    for name, entry in entries.items():
        part = _part_of(name, layout)
        before = parts.get(part, PartSize(num_tensors=0, num_parameters=0))
        parts[part] = PartSize(
            num_tensors=before.num_tensors + 1, num_parameters=before.num_parameters + entry.num_parameters
        )
    files = {entry.file for entry in entries.values()}
    return CheckpointReport(
        directory=str(directory),
        layout=layout,
        facts=tuple(facts),
        parts=parts,
        dtypes=tuple(sorted({_DTYPES.get(entry.dtype, entry.dtype) for entry in entries.values()})),
        num_files=len(files),
        num_bytes=sum(file.stat().st_size for file in files),
        differences=compare(wanted, found),
    )


def _wanted(directory: str | os.PathLike[str], layout: Layout) -> tuple[dict[str, Shape], list[tuple[str, str]]]:
    """Shapes that the config asks for, and facts for people."""
    facts: list[tuple[str, str]] = []
    with torch.device("meta"):
        if layout == "encoder":
            config = read_encoder_config(directory)
            state = split_encoder(OneVisionEncoder(config, with_merger=False).state_dict())
            facts += _vision_facts(config)
        elif layout == "merged":
            full = read_config(directory)
            state = LlavaOnevision2ForConditionalGeneration(full).state_dict()
            facts += [*_vision_facts(full.vision_config), *_text_facts(full.text_config, full.tie_word_embeddings)]
        else:
            text = Qwen3Config(**read_json(Path(directory) / "config.json"))
            state = Qwen3ForCausalLM(text).state_dict()
            facts += _text_facts(text, bool(text.tie_word_embeddings))
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, facts


def _vision_facts(config: OneVisionEncoderConfig) -> list[tuple[str, str]]:
    return [
        (
            "encoder",
            f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads of "
            f"{config.head_dim}, patch {config.patch_size} px, merge {config.spatial_merge_size}, windows of "
            f"{config.frame_windows_size} canvases, RoPE theta {config.rope_theta:g}",
        )
    ]


def _text_facts(config: Any, tied: bool) -> list[tuple[str, str]]:
    return [
        (
            "language model",
            f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} / "
            f"{config.num_key_value_heads} heads of {config.head_dim}, vocabulary {config.vocab_size}",
        ),
        ("tied embeddings", "yes" if tied else "no"),
    ]


def _part_of(name: str, layout: Layout) -> str:
    if layout == "encoder":
        return (
            "encoder (dropped in a merged model)" if any(f".{x}" in f".{name}" for x in STANDALONE_ONLY) else "encoder"
        )
    if name.startswith(VISUAL + "merger."):
        return "connector"
    return "encoder" if name.startswith(VISUAL) else "language model"
