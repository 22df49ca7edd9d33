"""A batch of packs to one row without padding, and the rows that are scored.

Enters: a `PackedBatch` (packs padded to the longest of them). Leaves: `PackInputs`: all sequences end to end in one row of the
language model, the lengths that separate them, and for each scored token its place, its target and its sample.

T tokens of the row, R scored tokens, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ov2_core.data.packed_batch import InputKind, PackedBatch
from ov2_core.model.attention import GroupLayout
from ov2_core.model.chatml import IGNORE_INDEX
from ov2_core.model.patches import PIXEL_MEAN, PIXEL_STD, normalise


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample of a micro-batch."""

    pack: str
    """Its pack's key."""
    source: str
    id: str
    input_kind: InputKind
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PackInputs:
    """What the model takes of one micro-batch."""

    samples: tuple[Sample, ...]
    segments: GroupLayout
    """Tokens of each sequence of the row."""
    input_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T], from 0 in each sequence."""
    rows: Tensor
    """int64 [R]: places of the states that predict a target, the place before it."""
    targets: Tensor
    """int64 [R]."""
    target_samples: Tensor
    """int64 [R]: index into `samples`."""
    pixel_values: Tensor | None
    """[P, D] uint8 or normalised."""
    image_grid_thw: Tensor | None
    patch_positions: Tensor | None
    patch_group_lengths: tuple[int, ...] | None
    visual_features: Tensor | None = None
    """[P, C] of a frozen encoder, in place of pixels."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]

    @property
    def num_targets(self) -> int:
        """R."""
        return len(self.targets)

    @property
    def num_patches(self) -> int:
        """Through the encoder or in its place."""
        if self.visual_features is not None:
            return len(self.visual_features)
        return 0 if self.patch_group_lengths is None else sum(self.patch_group_lengths)

    def to(self, device: torch.device, *, non_blocking: bool = True) -> "PackInputs":
        """On another device; integers that shape the computation stay on the host."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and f.name != "image_grid_thw"
        }
        return replace(self, **moved)

    def pin_memory(self) -> "PackInputs":
        """In page-locked memory."""
        pinned: dict[str, Any] = {
            f.name: v.pin_memory() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)

    def pixels(
        self, dtype: torch.dtype, *, mean: Sequence[float] = PIXEL_MEAN, std: Sequence[float] = PIXEL_STD
    ) -> Tensor | None:
        """Normalised pixel rows in `dtype`."""
        if self.pixel_values is None or self.pixel_values.dtype != torch.uint8:
            return self.pixel_values
        return normalise(self.pixel_values, mean=mean, std=std, dtype=dtype)


def pack_inputs(batch: PackedBatch) -> PackInputs:
    """One row of all samples of a batch, in order; samples without tokens do not exist.

    A batch without any sample (a rank that has no pack left) gives a row of one pad token, which is not scored.
    """
    samples = tuple(
        Sample(pack=key, source=source, id=id, input_kind=kind, num_tokens=length)
        for key, ids, kinds, lengths in zip(
            batch.keys, batch.sample_ids, batch.input_kinds, batch.sample_lengths, strict=True
        )
        for (source, id), kind, length in zip(ids, kinds, lengths, strict=True)
    )
    if not samples:
        return _nothing()
    num_rows = [sum(lengths) for lengths in batch.sample_lengths]
    ids = torch.cat([row[:num] for row, num in zip(batch.input_ids, num_rows, strict=True)])
    labels = torch.cat([row[:num] for row, num in zip(batch.labels, num_rows, strict=True)])
    lengths = torch.tensor([sample.num_tokens for sample in samples])
    starts = lengths.cumsum(0) - lengths
    sample_T = torch.repeat_interleave(torch.arange(len(samples)), lengths)
    scored = labels != IGNORE_INDEX
    scored[starts] = False  # nothing stands before the first token of a sequence
    places = scored.nonzero()[:, 0]
    groups = batch.patch_group_lengths
    return PackInputs(
        samples=samples,
        segments=GroupLayout(lengths.tolist()),
        input_ids=ids[None],
        position_ids=(torch.arange(len(ids)) - starts[sample_T])[None],
        rows=places - 1,
        targets=labels[places],
        target_samples=sample_T[places],
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.image_grid_thw,
        patch_positions=batch.patch_positions,
        patch_group_lengths=None if groups is None else tuple(groups.tolist()),
        visual_features=batch.visual_features,
    )


def _nothing() -> PackInputs:
    none = torch.zeros(0, dtype=torch.int64)
    return PackInputs(
        samples=(),
        segments=GroupLayout([1]),
        input_ids=torch.zeros(1, 1, dtype=torch.int64),
        position_ids=torch.zeros(1, 1, dtype=torch.int64),
        rows=none,
        targets=none,
        target_samples=none,
        pixel_values=None,
        image_grid_thw=None,
        patch_positions=None,
        patch_group_lengths=None,
    )
