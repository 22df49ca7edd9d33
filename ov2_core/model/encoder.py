"""OneVision-Encoder: pixel rows and their places to visual tokens.

Enters: pixel rows in block order, a (t, h, w) of each, the lengths of the groups that attend to each other. Leaves: encoder outputs
`[N, C]`, or tokens behind the connector `[K, E]`. Pure torch; transformers only for the config.

Stills, frames and canvases of any sizes lie in one packed row; nothing is padded. Since groups never see each other, inference
takes a few groups at a time through all layers: activations stay near the cache of a CPU and memory does not grow with the video.
Without gradients activations are worked on in place; with gradients the same modules run out of place, and
`gradient_checkpointing` recomputes a layer in the backward pass.

N patches, C width, H heads, D head_dim, F width of the MLP, K tokens, E width of the language model.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ov2_core.model.attention import AttentionBackend, GroupLayout, grouped_attention
from ov2_core.model.config import OneVisionEncoderConfig
from ov2_core.model.connector import PatchMerger
from ov2_core.model.rope3d import rope_table, rotate_qk_

CHUNK_PATCHES = {"cpu": 3_072, "cuda": 65_536}
"""Inference: fewest patches of a chunk of groups; other devices as cuda. On a CPU 4 canvases at 392 x 392 are a chunk."""
MLP_ROWS = 1024
"""Inference on a CPU: rows that pass through the MLP at a time, so that `[rows, F]` is reused and not paged in anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerContext:
    """What all layers of a pass share."""

    rope: tuple[Tensor, Tensor]
    """rope3d.rope_table of the patches."""
    groups: GroupLayout
    backend: AttentionBackend
    in_place: bool
    """No gradient will be asked for: activations may be overwritten. Not read from autograd's mode, which a reentrant checkpoint
    switches off while its input must live on."""


class PatchEmbeddings(nn.Module):
    """The released name of the projection, `embeddings.patch_embedding.weight` `[C, 3, 14, 14]`: a convolution whose stride is its
    kernel, so a product with the flattened weight."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, side, stride=side, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[N, 3 * 14 * 14]` to `[N, C]`, in the dtype of the weight."""
        weight = self.patch_embedding.weight
        return F.linear(pixel_values.to(weight.dtype), weight.flatten(1))


class EncoderAttention(nn.Module):
    """Fused projection, 3D RoPE on queries and keys, attention inside groups."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_NC: Tensor, context: LayerContext) -> Tensor:
        qkv = self.qkv(x_NC).view(-1, 3, self.num_heads, self.head_dim)
        q, k, v = rotate_qk_(qkv, context.rope).unbind(1)
        attended = grouped_attention(q, k, v, context.groups, backend=context.backend)
        projected: Tensor = self.proj(attended.flatten(1))
        return projected


class EncoderMLP(nn.Module):
    """Two layers with the exact (erf) GELU between them."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_NC: Tensor, context: LayerContext) -> Tensor:
        if not context.in_place:
            out: Tensor = self.fc2(F.gelu(self.fc1(x_NC)))
            return out
        rows = MLP_ROWS if x_NC.device.type == "cpu" else len(x_NC)
        parts = [self.fc2(torch.ops.aten.gelu_(self.fc1(part))) for part in x_NC.split(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class EncoderLayer(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = EncoderAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EncoderMLP(config)

    def forward(self, x_NC: Tensor, context: LayerContext) -> Tensor:
        attended = self.self_attn(self.layer_norm1(x_NC), context)
        x_NC = x_NC.add_(attended) if context.in_place else x_NC + attended
        update = self.mlp(self.layer_norm2(x_NC), context)
        return x_NC.add_(update) if context.in_place else x_NC + update


class EncoderLayers(nn.Module):
    """All layers; the last one's output is the encoder's."""

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        # transformers sets both attributes in `gradient_checkpointing_enable`.
        self._gradient_checkpointing_func: Callable[..., Any] = functools.partial(checkpoint, use_reentrant=False)

    def forward(self, x_NC: Tensor, context: LayerContext) -> Tensor:
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and not context.in_place:
                x_NC = self._gradient_checkpointing_func(layer.__call__, x_NC, context)
            else:
                x_NC = layer(x_NC, context)
        return x_NC


class OneVisionEncoder(nn.Module):
    """Encoder and connector: `model.visual` of the full model, with the names of its state dict."""

    def __init__(self, config: OneVisionEncoderConfig, *, with_merger: bool = True) -> None:
        """
        Args:
            with_merger: False for the standalone encoder, which has `encode` alone.
        """
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        self.layernorm_pre = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = EncoderLayers(config)
        self.merger = PatchMerger(config) if with_merger else None
        self.attention_backend: AttentionBackend = "auto"
        self.chunk_patches: int | None = None
        """Fewest patches of a chunk in inference; None: by device. Results do not depend on it beyond rounding."""

    def forward(self, pixel_values: Tensor, patch_positions: Tensor, group_lengths: Iterable[int]) -> Tensor:
        """Tokens behind the connector, `[K, E]` in the order of the blocks. Arguments and errors as `encode`."""
        return self.merge(self.encode(pixel_values, patch_positions, group_lengths))

    def merge(self, hidden_NC: Tensor) -> Tensor:
        """Outputs of `encode` through the connector, `[K, E]`.

        Raises:
            ValueError: the encoder has no connector.
        """
        if self.merger is None:
            raise ValueError("this is a standalone encoder without a connector; take `encode`, or load a merged model")
        tokens: Tensor = self.merger(hidden_NC.to(self.merger.ln_q.weight.dtype))
        return tokens

    def encode(self, pixel_values: Tensor, patch_positions: Tensor, group_lengths: Iterable[int]) -> Tensor:
        """Encoder outputs before the connector.

        Args:
            pixel_values: `[N, 3 * 14 * 14]` normalised, block order; any float dtype, computed in the dtype of the weights.
            patch_positions: `[N, 3]` int (t, h, w) in the same order.
            group_lengths: patches of each group (attention.group_lengths makes them from grids); they sum to N.

        Returns:
            `[N, C]` in the dtype of the weights.

        Raises:
            ValueError: shapes that do not fit; both numbers are told.
        """
        groups = group_lengths if isinstance(group_lengths, GroupLayout) else GroupLayout(group_lengths)
        self._check(pixel_values, patch_positions, groups)
        if torch.is_grad_enabled() and (pixel_values.requires_grad or any(p.requires_grad for p in self.parameters())):
            return self._encode(pixel_values, patch_positions, groups, in_place=False)
        with torch.no_grad():
            return self._encode_chunks(pixel_values, patch_positions, groups)

    def _encode_chunks(self, pixel_values: Tensor, patch_positions: Tensor, groups: GroupLayout) -> Tensor:
        least = self.chunk_patches or CHUNK_PATCHES.get(pixel_values.device.type, CHUNK_PATCHES["cuda"])
        chunks = groups.chunks(least)
        if len(chunks) == 1:
            return self._encode(pixel_values, patch_positions, groups, in_place=True)
        out = pixel_values.new_empty(len(pixel_values), self.config.hidden_size, dtype=self.layernorm_pre.weight.dtype)
        for start, part in chunks:
            rows = slice(start, start + part.num_patches)
            out[rows] = self._encode(pixel_values[rows], patch_positions[rows], part, in_place=True)
        return out

    def _encode(self, pixel_values: Tensor, patch_positions: Tensor, groups: GroupLayout, *, in_place: bool) -> Tensor:
        context = LayerContext(
            rope=rope_table(patch_positions, head_dim=self.config.head_dim, theta=self.config.rope_theta),
            groups=groups,
            backend=self.attention_backend,
            in_place=in_place,
        )
        encoded: Tensor = self.encoder(self.layernorm_pre(self.embeddings(pixel_values)), context)
        return encoded

    def _check(self, pixel_values: Tensor, patch_positions: Tensor, groups: GroupLayout) -> None:
        if pixel_values.ndim != 2 or pixel_values.shape[1] != self.config.patch_values:
            raise ValueError(
                f"pixel_values must be [N, {self.config.patch_values}] = {self.config.num_channels} x "
                f"{self.config.patch_size} x {self.config.patch_size}, got {tuple(pixel_values.shape)}"
            )
        num_patches = len(pixel_values)
        if tuple(patch_positions.shape) != (num_patches, 3):
            raise ValueError(f"patch_positions must be [{num_patches}, 3], got {tuple(patch_positions.shape)}")
        if groups.num_patches != num_patches:
            raise ValueError(f"groups hold {groups.num_patches} patches, pixel_values {num_patches}")
