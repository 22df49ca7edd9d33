"""3D rotary position embedding of OneVision-Encoder: (t, h, w) of each patch to angles, angles to rotated queries and keys.

Enters: int positions, one (t, h, w) a patch. Leaves: float32 tables (cos, sin) and rotated heads in their own dtype.

Three things look like slips and are not; released weights were trained with them, so they are kept exactly:
the exponent is i / n over an axis of n angles (not 2i / d); the half vector [t, h, w] is concatenated with itself, not
duplicated pairwise; and yet the rotation is the interleaved one, (x1, x2, x3, x4) -> (-x2, x1, -x4, x3). So the two lanes of a
pair turn by different angles: attention is not a function of relative position alone, and absolute t matters.

Inverse frequencies are computed from the config at every call and never stored as a buffer: a buffer left out of the
checkpoint is garbage after loading on the meta device.

N patches, H heads, D head_dim.
"""

from typing import Any

import torch
from torch import Tensor

ROWS_IN_CACHE = 512
"""Rows rotated at a time on a CPU: 512 x 2 x 1024 float32 stay near the core (3,136 rows: 24 ms at once, 6 ms so)."""


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Angles of the axes t, h and w: half a head in the ratio 4:6:6 (head_dim 64: 8, 12, 12).

    Raises:
        ValueError: head_dim is no positive multiple of 32.
    """
    if head_dim <= 0 or head_dim % 32:
        raise ValueError(
            f"3D RoPE splits half a head 4:6:6 and so needs head_dim in multiples of 32, got {head_dim}; "
            "choose hidden_size / num_attention_heads accordingly"
        )
    unit = head_dim // 32
    return 4 * unit, 6 * unit, 6 * unit


def rope_angles(positions_N3: Tensor, *, head_dim: int, theta: float) -> Tensor:
    """Angles in radians, float32 `[N, D]`, on the device of the positions.

    Args:
        positions_N3: (t, h, w) in the order of the patches, any integer dtype; t in frames, h and w in patches.
        head_dim: D.
        theta: base of the geometric series, 1e4 in released models.

    Raises:
        ValueError: wrong shape, or a head_dim that cannot be split.
    """
    if positions_N3.ndim != 2 or positions_N3.shape[1] != 3:
        raise ValueError(f"positions must be [N, 3] = (t, h, w), got {tuple(positions_N3.shape)}")
    axes = []
    for axis, n in enumerate(axis_sizes(head_dim)):
        exponents = torch.arange(n, dtype=torch.float32, device=positions_N3.device) / n
        inverse = 1.0 / (theta**exponents)
        axes.append(positions_N3[:, axis].float().outer(inverse))
    half = torch.cat(axes, dim=-1)
    return torch.cat((half, half), dim=-1)


def rope_table(positions_N3: Tensor, *, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(cos, signed sin), float32 `[N, D]` each; the sine of even lanes is negated, which is what `apply_rope` expects."""
    angles = rope_angles(positions_N3, head_dim=head_dim, theta=theta)
    sin = angles.sin()
    sin[:, 0::2].neg_()
    return angles.cos(), sin


def apply_rope(heads: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates `[N, ..., D]` by a table for N positions: in float32, returned in the dtype of the heads. Differentiable."""
    cos, sin = (_between(part, heads.ndim) for part in table)
    x = heads.float()
    return torch.addcmul(x * cos, _swap_pairs(x), sin).to(heads.dtype)


def rotate_qk_(qkv_N3HD: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the queries and keys of a fused projection in place; differentiable, and nothing but the table is kept for it.

    Rotating out of place would keep the whole projection alive beside the rotated copy, since the values are a view of it:
    an eighth more activations in training.
    """
    if torch.is_grad_enabled() and qkv_N3HD.requires_grad:
        rotated: Tensor = _RotateQK.apply(qkv_N3HD, *table)  # type: ignore[no-untyped-call]
        return rotated
    apply_rope_(qkv_N3HD[:, :2], table)
    return qkv_N3HD


class _RotateQK(torch.autograd.Function):
    """x -> c x + s swap(x), whose adjoint is g -> c g + swap(s g)."""

    @staticmethod
    def forward(ctx: Any, qkv_N3HD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
        ctx.mark_dirty(qkv_N3HD)
        ctx.save_for_backward(cos_ND, sin_ND)
        apply_rope_(qkv_N3HD[:, :2], (cos_ND, sin_ND))
        return qkv_N3HD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_ND, sin_ND = ctx.saved_tensors
        (grad_N3HD,) = grads
        # swap(s g) = s' swap(g) with s' the pairs of s swapped: the same kernel, another table.
        turned = grad_N3HD.clone(memory_format=torch.contiguous_format)
        apply_rope_(turned[:, :2], (cos_ND, _swap_pairs(sin_ND)))
        return turned, None, None


def apply_rope_(heads: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """`apply_rope` in place, a cacheful of rows at a time; not differentiable."""
    cos, sin = (_between(part, heads.ndim) for part in table)
    step = ROWS_IN_CACHE if heads.device.type == "cpu" else len(heads)
    for start in range(0, len(heads), step):
        rows = slice(start, start + step)
        x, c, s = heads[rows], cos[rows], sin[rows]
        if x.dtype == torch.float32:
            swapped = _swap_pairs(x)
            x.mul_(c).addcmul_(swapped, s)
        else:
            wide = x.float()
            x.copy_(torch.addcmul(wide * c, _swap_pairs(wide), s))
    return heads


def _swap_pairs(x: Tensor) -> Tensor:
    """(x1, x2, x3, x4) -> (x2, x1, x4, x3)."""
    swapped: Tensor = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return swapped


def _between(table_ND: Tensor, ndim: int) -> Tensor:
    """`[N, D]` to `[N, 1, ..., 1, D]`."""
    return table_ND.view(len(table_ND), *(1,) * (ndim - 2), table_ND.shape[-1])
