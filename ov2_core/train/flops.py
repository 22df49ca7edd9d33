"""Floating-point operations that a step needs, for MFU: what the mathematics asks, not what an implementation spends.

Enters: a config, what is trained, and the lengths of sequences and groups. Leaves: operations (2 a multiply-add) of matrix products
and attention; norms, activations and rotation count as nothing, recomputation of checkpointed layers is not counted. Backward is
twice the forward for a trained layer, once for a frozen one that gradients pass through (twice for attention, which has no
weights), nothing before the first trained one. Low-rank updates themselves, a percent of a layer, count as nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.model.measure import encoder_flops
from ov2_core.train.config import TrainConfig
from ov2_core.train.pack_inputs import PackInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """Operations of one micro-batch, forward and backward."""

    visual: int
    connector: int
    language: int
    head: int

    @property
    def total(self) -> int:
        return self.visual + self.connector + self.language + self.head


def micro_batch_flops(config: LlavaOnevision2Config, train: TrainConfig, inputs: PackInputs) -> StepFlops:
    """Operations of the forward and backward pass of a micro-batch."""
    groups = () if inputs.visual_features is not None else inputs.patch_group_lengths or ()
    below = train.visual.train and bool(groups)
    products, attention = language_flops(config, inputs.segments.lengths)
    head = 2 * inputs.num_targets * config.text_config.hidden_size * config.text_config.vocab_size
    all_weights = train.language.train and not train.lora.rank
    connected = below or (train.connector.train and inputs.num_patches > 0)
    through = train.language.train or connected
    return StepFlops(
        visual=_visual_flops(config, groups) * (3 if below else 1) - (_embedding_flops(config, groups) if below else 0),
        # its norm stands before its products, so that gradients pass all of them
        connector=connector_flops(config, inputs.num_patches) * _passes(train.connector.train, connected),
        language=products * _passes(all_weights, through) + attention * (3 if through else 1),
        head=head * _passes(all_weights, through),
    )


def _visual_flops(config: LlavaOnevision2Config, groups: Sequence[int]) -> int:
    return encoder_flops(config.vision_config, groups, merged=False) if groups else 0


def _embedding_flops(config: LlavaOnevision2Config, groups: Sequence[int]) -> int:
    """Of the patches' projection, below which nothing asks for a gradient."""
    return 2 * sum(groups) * config.vision_config.patch_values * config.vision_config.hidden_size


def language_flops(config: LlavaOnevision2Config, lengths: Iterable[int]) -> tuple[int, int]:
    """(products with weights, attention) forward through the layers of the language model, of sequences of these lengths; causal
    attention counts its half."""
    text = config.text_config
    head_dim: int = text.head_dim or text.hidden_size // text.num_attention_heads
    heads, keys = text.num_attention_heads * head_dim, (text.num_key_value_heads or text.num_attention_heads) * head_dim
    a_token = 2 * text.hidden_size * (2 * heads + 2 * keys + 3 * text.intermediate_size)
    lengths = list(lengths)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    return text.num_hidden_layers * sum(lengths) * a_token, text.num_hidden_layers * 4 * heads * pairs


def connector_flops(config: LlavaOnevision2Config, num_patches: int) -> int:
    """Forward through the connector."""
    merged = config.vision_config.spatial_merge_size**2
    width = config.vision_config.hidden_size * merged
    return 2 * (num_patches // merged) * width * (width + config.vision_config.out_hidden_size)


def _passes(trained: bool, gradient_below: bool) -> int:
    """Forward passes that forward and backward are worth."""
    return 1 + trained + gradient_below
