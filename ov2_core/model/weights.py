"""Weights in and out of models, strictly: released folders, the standalone encoder, either way.

Enters: folders with config.json and safetensors. Leaves: models, or folders. Three layouts are known by their names: "merged" (the
released model), "encoder" (the standalone OneVision-Encoder, whose q, k and v lie apart) and "llm" (Qwen3ForCausalLM).
Nothing is silently skipped: each missing, extra or misshapen tensor is named. Nothing in a folder is executed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ov2_core.model.config import LlavaOnevision2Config, OneVisionEncoderConfig
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.tensor_files import (
    SHARD_BYTES,
    TensorEntry,
    compare,
    read_entries,
    read_json,
    read_tensors,
    write_shards,
)

Layout = Literal["merged", "encoder", "llm"]

VISUAL, LANGUAGE = "model.visual.", "model.language_model."
STANDALONE_ONLY = ("layernorm_post.", "head.")
"""Tensors of the standalone encoder that the merged model drops."""


def layout_of(names: Mapping[str, Any]) -> Layout:
    """Which layout the names are of.

    Raises:
        ValueError: none.
    """
    if any(name.startswith(VISUAL) for name in names):
        return "merged"
    if any(name.endswith("embeddings.patch_embedding.weight") for name in names):
        return "encoder"
    if "model.embed_tokens.weight" in names:
        return "llm"
    raise ValueError(
        "tensors are of no known layout (merged: model.visual.*; encoder: embeddings.patch_embedding.weight; llm: "
        f"model.embed_tokens.weight), e.g. {', '.join(sorted(names)[:3])}"
    )


def fuse_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standalone encoder to the names under `model.visual.`: q, k, v concatenated, out_proj renamed, head dropped."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(STANDALONE_ONLY) or ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            apart = [state[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            fused[name.replace(".q_proj.", ".qkv.")] = torch.cat(apart)
        else:
            fused[name.replace(".self_attn.out_proj.", ".self_attn.proj.")] = tensor
    return fused


def split_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: names under `model.visual.` to the standalone layout. The connector is left out, layernorm_post and head were
    dropped by the merged model and cannot come back."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("merger."):
            continue
        if ".self_attn.qkv." in name:
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                apart[name.replace(".qkv.", f".{x}_proj.")] = part.contiguous()
        else:
            apart[name.replace(".self_attn.proj.", ".self_attn.out_proj.")] = tensor
    return apart


def read_config(directory: str | os.PathLike[str]) -> LlavaOnevision2Config:
    """config.json of a merged folder. Nothing it points to (auto_map) is followed.

    Raises:
        ValueError: no config.json, or one of another model.
    """
    fields = read_json(Path(directory) / "config.json")
    if fields.get("model_type") != LlavaOnevision2Config.model_type:
        raise ValueError(
            f"{directory}/config.json has model_type {fields.get('model_type')!r}, must be {LlavaOnevision2Config.model_type!r}"
        )
    fields.pop("auto_map", None)
    return LlavaOnevision2Config(**fields)


def read_encoder_config(directory: str | os.PathLike[str], **overrides: Any) -> OneVisionEncoderConfig:
    """Vision config of a merged or a standalone folder; a standalone one's head is switched off, since it is dropped."""
    fields = read_json(Path(directory) / "config.json")
    fields = fields.get("vision_config", {**fields, "use_head": False})
    for name in ("auto_map", "architectures", "transformers_version"):
        fields.pop(name, None)
    return OneVisionEncoderConfig(**{**fields, **overrides})


def load_model(
    directory: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LlavaOnevision2ForConditionalGeneration:
    """A merged folder as a model in eval mode, strictly.

    Args:
        dtype: of all weights; None keeps the file's.

    Raises:
        ValueError: a missing, extra or misshapen tensor; all are named.
    """
    with torch.device("meta"):
        model = LlavaOnevision2ForConditionalGeneration(read_config(directory))
    load_weights(model, directory, dtype=dtype, device=device)
    generation = Path(directory) / "generation_config.json"
    if generation.exists():
        model.generation_config = type(model.generation_config).from_dict(read_json(generation))
    model.model.language_model.rotary_emb = type(model.model.language_model.rotary_emb)(model.config.text_config).to(
        device
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def load_encoder(
    directory: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> OneVisionEncoder:
    """The encoder of a merged or standalone folder in eval mode, without gradients; no tensor of the language model is read.

    From a standalone folder it has no connector (`merger` is None): `encode` works, calling it does not.

    Raises:
        ValueError: a missing, extra or misshapen tensor of the encoder; all are named.
    """
    entries = read_entries(directory)
    layout = layout_of(entries)
    if layout == "llm":
        raise ValueError(f"{directory} holds a language model alone; no encoder")
    with torch.device("meta"):
        encoder = OneVisionEncoder(read_encoder_config(directory), with_merger=layout == "merged")
    prefix = VISUAL if layout == "merged" else encoder_prefix(entries)
    if layout == "merged":
        entries = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
    _check_encoder(encoder, {name.removeprefix(prefix): entry for name, entry in entries.items()}, layout, directory)
    state = {name.removeprefix(prefix): tensor.to(dtype=dtype) for name, tensor in read_tensors(entries)}
    if layout == "encoder":
        state = fuse_encoder(state)
    encoder.load_state_dict({name: tensor.to(device) for name, tensor in state.items()}, strict=True, assign=True)
    encoder.eval().requires_grad_(False)
    return encoder


def load_weights(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """A folder's tensors into a model that has the same names, strictly; a model on the meta device is filled.

    Args:
        dtype, device: None keeps the file's dtype and the model's device ("cpu" for meta).

    Raises:
        ValueError: a missing, extra or misshapen tensor; all are named, and the model is untouched.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    entries = read_entries(directory)
    tied = tied_names(model)
    for name in tied - set(entries):
        del wanted[name]
    differences = compare(wanted, {name: entry.shape for name, entry in entries.items()})
    if differences:
        raise ValueError(f"{directory} does not hold the tensors of this model:\n" + differences.text())
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    target = torch.device(device) if device is not None else (torch.device("cpu") if on_meta else None)
    state = {name: tensor.to(device=target, dtype=dtype) for name, tensor in read_tensors(entries)}
    model.load_state_dict(state, strict=False, assign=on_meta)
    if tied:
        model.tie_weights()  # type: ignore[operator]


def save_weights(
    state: Mapping[str, Tensor] | nn.Module, directory: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Tensors to a folder in the Hub's layout: one file, or shards of at most `shard_bytes` and an index.

    Each file is put in place whole, the index last. A module's tied names are left out, as the Hub does.

    Returns:
        The files written, the index among them.
    """
    if isinstance(state, nn.Module):
        tied = tied_names(state)
        state = {name: tensor for name, tensor in state.state_dict().items() if name not in tied}
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    return write_shards(sizes, lambda name: state[name], Path(directory), shard_bytes)


def tied_names(model: nn.Module) -> set[str]:
    """Names that share a tensor with another one by the config."""
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return set(getattr(model, "_tied_weights_keys", None) or ()) if tied else set()


def encoder_prefix(names: Mapping[str, Any]) -> str:
    anchor = "embeddings.patch_embedding.weight"
    return next(name for name in names if name.endswith(anchor)).removesuffix(anchor)


def _check_encoder(
    encoder: OneVisionEncoder, entries: Mapping[str, TensorEntry], layout: Layout, directory: str | os.PathLike[str]
) -> None:
    state = {name: tensor.to("meta") for name, tensor in encoder.state_dict().items()}
    if layout == "encoder":
        state = split_encoder(state)
    found = {name: entry.shape for name, entry in entries.items() if not name.startswith(STANDALONE_ONLY)}
    differences = compare({name: tuple(tensor.shape) for name, tensor in state.items()}, found)
    if differences:
        raise ValueError(f"{directory} does not hold the tensors of its encoder:\n" + differences.text())
