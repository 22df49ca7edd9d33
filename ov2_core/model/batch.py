"""What the model's forward takes: samples with and without padding.

Vision is free of padding: patches of all samples stand in one row, image_grid_thw has a row for each still and each video.
Text is padded to one length with an attention mask.

Shapes: B samples, L text tokens, P patches of all images, D values of a patch, R grid rows, G attention groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ov2_core.model.attention import group_lengths
from ov2_core.model.chatml import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionInputs:
    """What the encoder takes."""

    pixel_values: Tensor
    """[P, D], block order."""
    image_grid_thw: Tensor
    """int64 [R, 3]: images, patch rows, patch columns."""
    patch_positions: Tensor
    """int64 [P, 3]: (t, h, w), block order."""
    patch_group_lengths: Tensor
    """int64 [G]: patches of each attention group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSample:
    """One sample, not padded."""

    input_ids: Tensor
    """int64 [L]."""
    labels: Tensor
    """int64 [L]; IGNORE_INDEX outside the assistant's tokens."""
    vision: VisionInputs | None
    """None without media."""

    @property
    def num_tokens(self) -> int:
        """Length of the text, visual tokens included."""
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples collated. `model(**batch)` passes the released forward's arguments, and patch_group_lengths only where the windows
    that a reader makes of image_grid_thw are not the groups (a layout of more than window_images canvases a group)."""

    input_ids: Tensor
    """int64 [B, L]."""
    attention_mask: Tensor
    """int64 [B, L]: 1 for text and visual tokens, 0 for padding."""
    labels: Tensor
    """int64 [B, L]; IGNORE_INDEX outside the assistant's tokens."""
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    patch_positions: Tensor | None
    patch_group_lengths: Tensor | None
    """As in VisionInputs, all samples one after the other."""
    windows_are_groups: bool
    """Whether image_grid_thw alone tells the groups."""

    def keys(self) -> list[str]:
        """Names of the forward's arguments."""
        hidden = {"windows_are_groups"} | ({"patch_group_lengths"} if self.windows_are_groups else set())
        return [f.name for f in fields(self) if f.name not in hidden and getattr(self, f.name) is not None]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.keys():
            raise KeyError(name)
        return cast("Tensor", getattr(self, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def prompt(self) -> dict[str, Tensor]:
        """What `generate` takes: all but the labels."""
        return {name: self[name] for name in self.keys() if name != "labels"}

    def to(
        self, device: torch.device | str, *, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> "Batch":
        """On another device; `dtype` is that of pixel_values."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        if dtype is not None and "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(dtype)
        return replace(self, **moved)


def collate(
    samples: Sequence[EncodedSample],
    *,
    pad_token_id: int,
    window_images: int,
    padding_side: Literal["left", "right"] = "right",
    multiple_of: int = 1,
) -> Batch:
    """Samples to a batch: text padded, vision one after the other.

    Args:
        window_images: the model's frame_windows_size.
        padding_side: "left" for generation.
        multiple_of: L is rounded up to it.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample, got none")
    longest = max(sample.num_tokens for sample in samples)
    length = -(-longest // multiple_of) * multiple_of
    ids = torch.full((len(samples), length), pad_token_id)
    labels = torch.full_like(ids, IGNORE_INDEX)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        here = slice(length - sample.num_tokens, length) if padding_side == "left" else slice(sample.num_tokens)
        ids[row, here], labels[row, here], mask[row, here] = sample.input_ids, sample.labels, 1
    vision = _joined([sample.vision for sample in samples if sample.vision is not None])
    grid, groups = vision["image_grid_thw"], vision["patch_group_lengths"]
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        windows_are_groups=grid is None
        or group_lengths(grid.tolist(), frame_windows_size=window_images) == groups.tolist(),
        **vision,
    )


def _joined(parts: Sequence[VisionInputs]) -> dict[str, Any]:
    """Each field of VisionInputs, one sample after the other; None where no sample has media."""
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(VisionInputs)):
        given = [getattr(part, name) for part in parts]
        joined[name] = None if not given else given[0] if len(given) == 1 else torch.cat(given)
    return joined
