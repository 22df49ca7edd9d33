"""The least memory that a training step can do with, by arithmetic; what a measured peak is held against.

Enters: a config, what is trained, ranks, and the tokens, patches and targets of a micro-batch. Leaves: bytes of one rank, by what
they are for. Nothing of it is measured. docs/training.md writes it as a formula.

    resident = 4 W / n + 4 G / n + 8 G / n         float32 weights, gradients and AdamW's two moments
    gathered = b (root + layer) + b (their gradients)   where sharded: what is not in a layer stays whole through a pass
    kept     = b (T H Lt + P C Lv + ...)           with checkpointing, inputs of the layers; without, all that backward needs
    working  = max(a chunk of logits, one layer of the language model, one layer of the encoder)

W weights, G trained ones, n ranks, b bytes of the computation's dtype, T tokens, P patches, H and C widths of language model and
encoder, Lt and Lv their layers.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.train import cross_entropy
from ov2_core.train.config import TrainConfig
from ov2_core.train.optimizer import freeze, part_of


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFloor:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """Whole weights and gradients of what computes, in its dtype; 0 where nothing is sharded."""
    kept: int
    """Activations from the forward to the backward pass."""
    working: int
    """The most that one place of the pass needs beside them."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


def memory_floor(
    config: LlavaOnevision2Config,
    train: TrainConfig,
    *,
    world_size: int,
    tokens: int,
    patches: int,
    targets: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> MemoryFloor:
    """Least memory of a step.

    Args:
        world_size: ranks that weights, gradients and moments are shared between.
        tokens, patches: of a micro-batch.
        targets: scored tokens of it; None: all.
        compute_dtype: float32 on one rank is not sharded; anything else is.
    """
    sizes = _Sizes(config, train)
    itemsize = compute_dtype.itemsize
    sharded = world_size > 1 or compute_dtype != torch.float32
    whole = sizes.root + sizes.layer + sizes.root_trained + sizes.layer_trained
    seen = train.visual.train and patches > 0
    through = train.language.train or seen or (train.connector.train and patches > 0)
    text_layer, eye_layer = (itemsize * size for size in (_text_layer(config, tokens), _eye_layer(config, patches)))
    text_input, eye_input = (itemsize * size for size in _inputs(config, tokens, patches))
    again = train.activation_checkpointing
    kept = 2 * text_input  # embeddings before and after the visual tokens
    if through:
        kept += config.text_config.num_hidden_layers * (text_input if again else text_input + text_layer)
    if seen:
        kept += config.vision_config.num_hidden_layers * (eye_input if again else eye_input + eye_layer)
    if patches:
        kept += itemsize * _connector(config, patches, trained=seen or train.connector.train)
    working = max(
        _logits(config, train, tokens if targets is None else targets, itemsize, gathers=sharded),
        text_layer if again and through else 0,
        eye_layer if again and seen else 0,
    )
    return MemoryFloor(
        weights=-(-4 * sizes.all // world_size),
        gradients=-(-4 * sizes.trained // world_size),
        optimizer=-(-8 * sizes.trained // world_size),
        gathered=itemsize * whole if sharded else 0,
        kept=kept,
        working=working,
    )


class _Sizes:
    """Numbers of weights, counted on a model without storage."""

    def __init__(self, config: LlavaOnevision2Config, train: TrainConfig) -> None:
        with torch.device("meta"):
            model: Any = LlavaOnevision2ForConditionalGeneration(config)
        freeze(model, train)
        layers = [*model.visual.encoder.layers, *model.model.language_model.layers]
        self.all, self.trained = _count(model)
        if train.lora.rank:
            low = train.lora.rank * sum(
                module.in_features + module.out_features
                for layer in model.model.language_model.layers
                for module in layer.modules()
                if isinstance(module, nn.Linear)
            )
            others = sum(
                p.numel() for name, p in model.named_parameters() if part_of(name) != "language" and p.requires_grad
            )
            self.all, self.trained = self.all + low, others + low
        self.layer, self.layer_trained = max(_count(layer) for layer in layers)
        in_layers = [_count(layer) for layer in layers]
        self.root = self.all - sum(num for num, _ in in_layers)
        self.root_trained = max(0, self.trained - sum(num for _, num in in_layers))


def _count(module: nn.Module) -> tuple[int, int]:
    """(weights, trained ones)."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _inputs(config: LlavaOnevision2Config, tokens: int, patches: int) -> tuple[int, int]:
    return tokens * config.text_config.hidden_size, patches * config.vision_config.hidden_size


def _text_layer(config: LlavaOnevision2Config, tokens: int) -> int:
    """Two norms' outputs, the residual between, q, k, v, attended rows, gate, up and their product."""
    text: Any = config.text_config
    head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
    queries, keys = (
        text.num_attention_heads * head_dim,
        (text.num_key_value_heads or text.num_attention_heads) * head_dim,
    )
    return int(tokens * (3 * text.hidden_size + 2 * queries + 2 * keys + 3 * text.intermediate_size))


def _eye_layer(config: LlavaOnevision2Config, patches: int) -> int:
    """Two norms' outputs, the residual between, q, k, v, attended rows, both sides of the GELU."""
    return patches * (7 * config.vision_config.hidden_size + 2 * config.vision_config.intermediate_size)


def _connector(config: LlavaOnevision2Config, patches: int, *, trained: bool) -> int:
    """The encoder's output; trained: the norm's output, both sides of the GELU; visual tokens."""
    vision = config.vision_config
    tokens = patches // vision.spatial_merge_size**2 * vision.out_hidden_size
    return patches * vision.hidden_size * (4 if trained else 1) + tokens


def _logits(config: LlavaOnevision2Config, train: TrainConfig, targets: int, itemsize: int, *, gathers: bool) -> int:
    """A chunk in float32 and in the computation's dtype, and the float32 sum of the output layer's gradient, which without shards
    is that gradient itself."""
    text: Any = config.text_config
    rows = min(targets, max(1, cross_entropy.CHUNK_BYTES // (4 * text.vocab_size)))
    chunk = rows * text.vocab_size * (4 + (itemsize if itemsize < 4 else 0))
    trained = train.language.train and not train.lora.rank
    return int(chunk + (4 * text.vocab_size * text.hidden_size if trained and gathers else 0))
