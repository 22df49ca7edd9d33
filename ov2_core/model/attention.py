"""Grouped attention: full inside a group of patches, blind outside it.

Enters: queries, keys and values of all patches in one packed row, and the lengths of its groups. Leaves: attended values in the
same order. Three backends compute the same function; no padding exists in any of them:

- "varlen": flash attention over cumulative lengths (torch.nn.attention.varlen); CUDA, bf16 or fp16.
- "grouped": one SDPA call for each run of consecutive groups of one length, on views of the packed row. Any device and dtype;
  what a CPU uses. A video is one run or two, a batch of stills of one size is one.
- "masked": one SDPA call with a boolean block-diagonal mask. N x N memory: the reference that tests hold the others against.

Shapes: N patches of all groups, H heads, D head_dim, G groups, L patches of a group.
"""

import functools
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionBackend = Literal["auto", "varlen", "grouped", "masked"]
BACKENDS: tuple[AttentionBackend, ...] = ("auto", "varlen", "grouped", "masked")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRun:
    """Consecutive groups of one length."""

    start: int
    """First patch."""
    num_groups: int
    length: int
    """Patches of a group."""

    @property
    def stop(self) -> int:
        return self.start + self.num_groups * self.length


class GroupLayout:
    """Lengths of the groups of a packed row, in patches, and what the backends derive from them once a forward pass.

    Raises:
        ValueError: no group, or a length below 1.
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        self.lengths = tuple(int(length) for length in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"group lengths must be one or more integers >= 1, got {list(self.lengths)[:16]}")
        self.num_patches = sum(self.lengths)
        self.max_length = max(self.lengths)
        self._cumulative: dict[torch.device, Tensor] = {}

    @functools.cached_property
    def runs(self) -> tuple[GroupRun, ...]:
        """Maximal runs of equal lengths, in order."""
        found, start = [], 0
        for length, same in groupby(self.lengths):
            run = GroupRun(start=start, num_groups=len(list(same)), length=length)
            found.append(run)
            start = run.stop
        return tuple(found)

    def cumulative(self, device: torch.device) -> Tensor:
        """int32 `[G + 1]`: offsets of the groups and the end."""
        if device not in self._cumulative:
            offsets = [0, *accumulate(self.lengths)]
            self._cumulative[device] = torch.tensor(offsets, dtype=torch.int32, device=device)
        return self._cumulative[device]

    def mask(self, device: torch.device) -> Tensor:
        """bool `[N, N]`, True where a query may look."""
        lengths = torch.tensor(self.lengths, device=device)
        group_N = torch.repeat_interleave(torch.arange(len(self.lengths), device=device), lengths)
        return group_N[:, None] == group_N[None, :]

    def num_pairs(self) -> int:
        """Query-key pairs that the function needs."""
        return sum(length * length for length in self.lengths)

    def num_pairs_computed(self, backend: AttentionBackend) -> int:
        """Query-key pairs that a backend computes: the same for "varlen" and "grouped", N x N for "masked"."""
        return self.num_patches**2 if backend == "masked" else self.num_pairs()

    def chunks(self, min_patches: int) -> list[tuple[int, "GroupLayout"]]:
        """Cuts between groups: (first patch, layout) of parts of at least min_patches each, but for the last."""
        parts, start, lengths = [], 0, list[int]()
        for length in self.lengths:
            lengths.append(length)
            if sum(lengths) >= min_patches:
                parts.append((start, GroupLayout(lengths)))
                start, lengths = start + parts[-1][1].num_patches, []
        if lengths:
            parts.append((start, GroupLayout(lengths)))
        return parts


def group_lengths(grid_thw: Sequence[Sequence[int]], *, frame_windows_size: int = 4) -> list[int]:
    """Patches of each group: a row (t, h, w) is cut along t into windows of `frame_windows_size` canvases, the last one shorter.

    A still is a row with t = 1 and so a group of its own. A size of 0 or less cuts nothing: a row is a group.

    Args:
        grid_thw: canvases, patch rows and patch columns of each still or video.

    Raises:
        ValueError: a row that is not three integers >= 1; the row is named.
    """
    lengths = []
    for i, row in enumerate(grid_thw):
        if len(row) != 3 or min(row) < 1:
            raise ValueError(f"image_grid_thw row {i} must be (t, h, w), each >= 1, got {list(row)}")
        t, h, w = (int(n) for n in row)
        window = min(t, frame_windows_size) if frame_windows_size > 0 else t
        lengths += [window * h * w] * (t // window)
        if t % window:
            lengths.append(t % window * h * w)
    return lengths


def choose_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """ "varlen" where flash attention runs (CUDA of capability >= 8.0, bf16 or fp16, torch with varlen_attn), else "grouped"."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and _has_varlen(device.index):
        return "varlen"
    return "grouped"


def grouped_attention(
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHD: Tensor,
    groups: GroupLayout,
    *,
    backend: AttentionBackend = "auto",
    causal: bool = False,
) -> Tensor:
    """Softmax attention with scale 1 / sqrt(D), inside each group.

    Args:
        q_NHD: queries; with keys and values of one dtype and device. Views of a fused projection are fine. Keys and values may
            have fewer heads, each for as many consecutive query heads.
        groups: their lengths sum to N.
        backend: "auto" chooses by device and dtype.
        causal: a row sees itself and those before it in its group.

    Returns:
        `[N, H, D]`, dtype of the queries.

    Raises:
        ValueError: lengths that do not sum to N, or an unknown backend.
    """
    if groups.num_patches != len(q_NHD):
        raise ValueError(f"group lengths sum to {groups.num_patches} patches, but there are {len(q_NHD)}")
    if q_NHD.shape[1] != k_NHD.shape[1]:
        each = q_NHD.shape[1] // k_NHD.shape[1]
        k_NHD, v_NHD = k_NHD.repeat_interleave(each, 1), v_NHD.repeat_interleave(each, 1)
    if backend == "auto":
        backend = choose_backend(q_NHD.device, q_NHD.dtype)
    if backend == "varlen":
        return _varlen(q_NHD, k_NHD, v_NHD, groups, causal)
    if backend == "grouped":
        return _grouped(q_NHD, k_NHD, v_NHD, groups, causal)
    if backend == "masked":
        return _masked(q_NHD, k_NHD, v_NHD, groups, causal)
    raise ValueError(f"attention backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def _grouped(q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, groups: GroupLayout, causal: bool) -> Tensor:
    parts = []
    for run in groups.runs:
        # [G L, H, D] -> [G, H, L, D]: views, and so is the way back.
        q, k, v = (
            x[run.start : run.stop].unflatten(0, (run.num_groups, run.length)).transpose(1, 2)
            for x in (q_NHD, k_NHD, v_NHD)
        )
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _masked(q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, groups: GroupLayout, causal: bool) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_NHD, k_NHD, v_NHD))
    mask = groups.mask(q_NHD.device)
    if causal:
        mask = mask.tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def _varlen(q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, groups: GroupLayout, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets = groups.cumulative(q_NHD.device)
    looks: dict[str, Any] = {}
    if causal:  # torch 2.10 named it otherwise
        newer = "window_size" in inspect.signature(varlen_attn).parameters
        looks = {"window_size": (-1, 0)} if newer else {"is_causal": True}
    longest = groups.max_length
    attended = varlen_attn(q_NHD, k_NHD, v_NHD, offsets, offsets, longest, longest, **looks)
    assert isinstance(attended, Tensor)  # a tuple only where auxiliary outputs are asked for
    return attended


@functools.cache
def _has_varlen(device_index: int | None) -> bool:
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device_index) >= (8, 0)
