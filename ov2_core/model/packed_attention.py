"""Causal attention of packed sequences for the language model: none sees another, and no mask is built.

`use_packed_attention(language_model)` sets it; every forward then takes `segments` (a GroupLayout: lengths of the sequences that
lie end to end in the one row of the batch) as a keyword, which transformers hands down to each layer. transformers' own sdpa path
derives a [L, L] mask from position_ids that restart, and computes every pair of the row; here only pairs inside a sequence are.

Shapes: H query heads, K key heads, L tokens of the row, D head_dim.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from ov2_core.model.attention import AttentionBackend, GroupLayout, grouped_attention

PACKED = "ov2_packed"


def use_packed_attention(language_model: nn.Module) -> None:
    """Lets every layer of a Qwen3Model attend by `segments`."""
    language_model.set_attn_implementation(PACKED)  # type: ignore[operator]


def packed_attention(
    module: nn.Module,
    query_1HLD: Tensor,
    key_1KLD: Tensor,
    value_1KLD: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: GroupLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    backend: AttentionBackend = "auto",
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `[1, L, H, D]`, and no weights.

    Raises:
        ValueError: no segments, more rows than one, a mask, dropout, or another scale than 1 / sqrt(D).
    """
    if segments is None or len(query_1HLD) != 1:
        raise ValueError(f"packed attention takes one row and `segments`, got {len(query_1HLD)} rows and {segments!r}")
    if attention_mask is not None or dropout:
        raise ValueError("packed attention takes no mask and no dropout; the segments say who sees whom")
    if scaling is not None and abs(scaling * query_1HLD.shape[-1] ** 0.5 - 1) > 1e-6:
        raise ValueError(f"packed attention scales by 1 / sqrt(D), the model asks for {scaling}")
    q, k, v = (x[0].transpose(0, 1) for x in (query_1HLD, key_1KLD, value_1KLD))
    return grouped_attention(q, k, v, segments, backend=backend, causal=True)[None], None


AttentionInterface.register(PACKED, packed_attention)
