"""A frozen encoder for features: what it is (config and digest), and batches to stored rows.

Enters: a model folder; batches of pixels on the CPU. Leaves: a FeatureConfig's part that the encoder decides; rows as they are
stored, on the CPU. On a GPU one batch is always in flight: pixels travel as uint8 from pinned memory, are normalised there, and
results come back into pinned memory while the next batch runs. On a CPU a launch computes at once.

Shape letters: P patches, T rows, D values of a row, C patch values.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ov2_core.features.stored_rows import store_rows
from ov2_core.model.config import OneVisionEncoderConfig
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.patches import normalise
from ov2_core.model.processor_config import ProcessorConfig
from ov2_core.model.tensor_files import TensorEntry, read_entries, read_tensors
from ov2_core.model.weights import (
    STANDALONE_ONLY,
    VISUAL,
    encoder_prefix,
    fuse_encoder,
    layout_of,
    load_encoder,
    read_encoder_config,
)
from schemas.features import ComputeDtype, FeatureConfig, FeatureDtype, FeatureStage

Device = Literal["cpu", "cuda"]
_MERGER = "merger."
_DIGEST_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "spatial_merge_size",
    "rope_theta",
    "layer_norm_eps",
    "hidden_act",
)
"""Fields of the vision config that change an encoder's outputs; attention groups are the sample's, not the config's."""
_TYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> Device:
    """auto: the GPU where this machine has one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(device: Device, dtype: FeatureDtype) -> ComputeDtype:
    """bfloat16 on a GPU unless fp32 is to be stored; float32 on a CPU, which is exact and no slower there."""
    return "bfloat16" if device == "cuda" and dtype != "fp32" else "float32"


def describe_encoder(
    folder: str | os.PathLike[str],
    *,
    stage: FeatureStage,
    dtype: FeatureDtype,
    device: Device,
    source_digest: str,
    source_config_digest: str,
    with_digest: bool = True,
) -> FeatureConfig:
    """The identity of a feature run with this folder's encoder.

    with_digest: False leaves the encoder's digest empty and reads no weights; enough to predict sizes.

    Raises:
        ValueError: no encoder there, or no connector for merged features.
    """
    vision = read_encoder_config(folder)
    if stage == "merged" and layout_of(read_entries(folder)) != "merged":
        raise ValueError(
            f"{folder} holds an encoder without a connector; take --unmerged, or a whole model (ov2 model merge)"
        )
    return FeatureConfig(
        encoder_digest=encoder_digest(folder, stage=stage) if with_digest else "0" * 64,
        stage=stage,
        dtype=dtype,
        compute_dtype=compute_dtype(device, dtype),
        width=vision.out_hidden_size if stage == "merged" else vision.hidden_size,
        patch_px=vision.patch_size,
        merge=vision.spatial_merge_size,
        source_digest=source_digest,
        source_config_digest=source_config_digest,
    )


def encoder_digest(folder: str | os.PathLike[str], *, stage: FeatureStage) -> str:
    """sha256 of the vision weights, the config fields that matter and the pixel normalisation.

    The connector counts for merged features alone: unmerged ones stay valid while it is trained. A standalone encoder and a
    merged model with the same weights have one digest.
    """
    vision, pixels = read_encoder_config(folder), ProcessorConfig.from_pretrained(folder)
    fields: dict[str, Any] = {name: getattr(vision, name) for name in _DIGEST_FIELDS}
    if stage == "merged":
        fields["out_hidden_size"] = vision.out_hidden_size
    fields |= {"pixel_mean": pixels.pixel_mean, "pixel_std": pixels.pixel_std}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    state = {name: tensor for name, tensor in read_tensors(_vision_entries(folder, stage=stage))}
    prefix = VISUAL if any(name.startswith(VISUAL) for name in state) else encoder_prefix(state)
    state = fuse_encoder({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    for name, tensor in sorted(state.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelBatch:
    """What a launch takes: parts of samples, one after the other, block order."""

    pixels: Tensor
    """[P, C] float32 normalised, or uint8."""
    positions: Tensor
    """int64 [P, 3]."""
    group_lengths: list[int]


class Launched:
    """A batch on its way."""

    def __init__(self, values_TD: Tensor, scales_T: Tensor | None, done: Any) -> None:
        self._values_TD, self._scales_T, self._done = values_TD, scales_T, done

    def wait(self) -> tuple[Tensor, Tensor | None]:
        """(values [T, D], scales [T] or None) on the CPU."""
        if self._done is not None:
            self._done.synchronize()
        return self._values_TD, self._scales_T


class FeatureEncoder:
    """The frozen encoder of a feature run on one device."""

    def __init__(
        self, encoder: OneVisionEncoder, pixels: ProcessorConfig, config: FeatureConfig, device: Device
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self._encoder, self._pixels = encoder, pixels

    @classmethod
    def load(cls, folder: str | os.PathLike[str], config: FeatureConfig, device: Device) -> "FeatureEncoder":
        """Raises ValueError where the folder's encoder is not the one that the run was begun with."""
        found = encoder_digest(folder, stage=config.stage)
        if found != config.encoder_digest:
            raise ValueError(
                f"{folder} on this machine holds another encoder (digest {found[:12]}) than the run "
                f"({config.encoder_digest[:12]}); every node must read the same folder"
            )
        encoder = load_encoder(folder, dtype=_TYPES[config.compute_dtype], device=device)
        return cls(encoder, ProcessorConfig.from_pretrained(folder), config, device)

    @property
    def pixel_dtype(self) -> torch.dtype:
        """How batches bring their pixels: a GPU normalises them itself and takes a quarter of the bytes."""
        return torch.uint8 if self.device.type == "cuda" else torch.float32

    @property
    def pixel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std)."""
        return self._pixels.pixel_mean, self._pixels.pixel_std

    @torch.inference_mode()
    def launch(self, batch: PixelBatch) -> Launched:
        """Begins a batch; on a CPU, does it.

        Raises:
            MemoryError: the device has not enough memory for it.
        """
        try:
            rows_TD = self._rows(batch)
            values_TD, scales_T = store_rows(rows_TD, self.config.dtype)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise MemoryError(f"{len(batch.pixels)} patches on {self.device}: {error}") from error
        if self.device.type == "cpu":
            return Launched(values_TD, scales_T, None)
        values_TD, scales_T = _to_pinned(values_TD), None if scales_T is None else _to_pinned(scales_T)
        done = torch.cuda.Event()
        done.record()
        return Launched(values_TD, scales_T, done)

    def num_flops(self, group_lengths: Sequence[int]) -> float:
        """What a batch costs."""
        return num_flops(self._encoder.config, group_lengths, merged=self.config.stage == "merged")

    def _rows(self, batch: PixelBatch) -> Tensor:
        pixels = batch.pixels.to(self.device, non_blocking=True)
        positions = batch.positions.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            mean, std = self.pixel_stats
            pixels = normalise(pixels, mean=mean, std=std, dtype=_TYPES[self.config.compute_dtype])
        hidden = self._encoder.encode(pixels, positions, batch.group_lengths)
        return self._encoder.merge(hidden) if self.config.stage == "merged" else hidden


def num_flops(config: OneVisionEncoderConfig, group_lengths: Sequence[int], *, merged: bool) -> float:
    """Multiply-adds x 2: projections, MLP and attention inside groups, and the connector where it is used."""
    width, patches = config.hidden_size, sum(group_lengths)
    dense = 4 * width * width + 2 * width * config.intermediate_size
    pairs = sum(n * n for n in group_lengths)
    flops = config.num_hidden_layers * (2.0 * patches * dense + 4.0 * pairs * width)
    flops += 2.0 * patches * config.patch_values * width
    if merged:
        row = width * config.spatial_merge_size**2
        flops += 2.0 * (patches / config.spatial_merge_size**2) * row * (row + config.out_hidden_size)
    return flops


def flops_per_token(folder: str | os.PathLike[str], *, stage: FeatureStage) -> float:
    """A prediction for groups of four canvases of 28 x 28 patches."""
    config = read_encoder_config(folder)
    group = 4 * 28 * 28
    return num_flops(config, [group], merged=stage == "merged") / (group / config.spatial_merge_size**2)


def set_num_threads(num_threads: int) -> None:
    """Of torch in this process."""
    torch.set_num_threads(num_threads)


def _to_pinned(tensor: Tensor) -> Tensor:
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)


def _vision_entries(folder: str | os.PathLike[str], *, stage: FeatureStage) -> dict[str, TensorEntry]:
    entries = read_entries(folder)
    layout = layout_of(entries)
    if layout == "llm":
        raise ValueError(f"{folder} holds a language model alone; no encoder")
    prefix = VISUAL if layout == "merged" else encoder_prefix(entries)
    return {
        name: entry
        for name, entry in entries.items()
        if name.startswith(prefix)
        and not name.removeprefix(prefix).startswith(STANDALONE_ONLY)
        and not (stage == "unmerged" and name.removeprefix(prefix).startswith(_MERGER))
    }
