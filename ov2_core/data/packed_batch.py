"""Packs to model inputs: sequences side by side in a row, each with positions of its own, so that none sees another.

Enters: loaded packs. Leaves: `PackedBatch`. The block structure is told three times, for whoever reads it: `position_ids` restart
at each sample (what this model's forward needs: no mask beside them), `cu_seqlens` for variable-length attention, and
`patch_group_lengths` for the encoder. Padding at a row's end is a segment of its own, without labels.

Shapes: B packs, L tokens of the longest, S segments (samples and padding), P patches, D values of a patch, R grid rows, G groups.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ov2_core.data.read_pack import BadPackError, LoadedPack, LoadedSample
from ov2_core.features.source import FeatureSource
from ov2_core.model.attention import group_lengths
from ov2_core.model.batch import VisionInputs
from ov2_core.model.chatml import IGNORE_INDEX, TextEncoder, lay_out
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.visual import Visual

OnBad = Literal["raise", "skip"]
InputKind = Literal["text", "image", "frames", "codec", "mixed"]
"""What a sample shows: nothing, stills, whole frames, canvases of blocks from several frames, or more than one of these."""
INPUT_KINDS: tuple[InputKind, ...] = get_args(InputKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPack:
    """One pack as tensors, not padded."""

    number: int
    key: str
    sample_ids: tuple[tuple[str, str], ...]
    """(source, id) of each sample."""
    input_kinds: tuple[InputKind, ...]
    """Of each sample."""
    lengths: tuple[int, ...]
    """Tokens of each sample."""
    input_ids: Tensor
    """int64 [sum of lengths]."""
    labels: Tensor
    """int64, IGNORE_INDEX outside the assistants' tokens."""
    vision: tuple[VisionInputs, ...]
    features: tuple[Tensor, ...]
    """In place of vision: [P, C] of each sample that has media."""
    num_bytes: int
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """One step of one rank. `model(**batch.model_inputs())` takes it."""

    keys: tuple[str, ...]
    """Of the packs, in order."""
    numbers: tuple[int, ...]
    sample_ids: tuple[tuple[tuple[str, str], ...], ...]
    """(source, id) of each sample of each pack."""
    input_kinds: tuple[tuple[InputKind, ...], ...]
    """What each sample of each pack shows."""
    sample_lengths: tuple[tuple[int, ...], ...]
    """Tokens of each sample of each pack."""
    input_ids: Tensor
    """int64 [B, L]."""
    labels: Tensor
    """int64 [B, L]; IGNORE_INDEX outside the assistants' tokens."""
    position_ids: Tensor
    """int64 [B, L]: from 0 in each sample, and in the padding."""
    cu_seqlens: Tensor
    """int32 [S + 1]: where segments begin in the rows laid end to end, and B x L."""
    max_seqlen: int
    """Tokens of the longest segment."""
    pixel_values: Tensor | None
    """[P, D], block order; uint8 where so asked (patches.normalise)."""
    image_grid_thw: Tensor | None
    """int64 [R, 3]."""
    patch_positions: Tensor | None
    """int64 [P, 3]: (t, h, w), block order."""
    patch_group_lengths: Tensor | None
    """int64 [G]: patches of each attention group of the encoder."""
    visual_features: Tensor | None
    """[P, C] outputs of the encoder in place of all of the above, where the loader was given features."""
    windows_are_groups: bool
    """Whether image_grid_thw alone tells the groups."""
    num_tokens: int
    """Without padding."""
    num_bytes: int
    """Read for it."""
    skipped: Counter[str]
    """Samples left out, by tar."""

    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of the model's forward; patch_group_lengths only where the windows are not the groups."""
        names = ["input_ids", "labels", "position_ids", "pixel_values", "image_grid_thw", "patch_positions"]
        names.append("visual_features")
        if not self.windows_are_groups:
            names.append("patch_group_lengths")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """On another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        """In page-locked memory, for copies beside the computation."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Any) -> "PackedBatch":
        return replace(
            self, **{f.name: change(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedBatch:
    """One step of one rank without a processor: conversations, and pictures that are decoded already."""

    keys: tuple[str, ...]
    numbers: tuple[int, ...]
    packs: tuple[LoadedPack, ...]
    num_bytes: int
    skipped: Counter[str]


class PackDecoder:
    """Loaded packs with their pictures decoded. Thread-safe."""

    def encode(self, pack: LoadedPack, *, on_bad: OnBad) -> LoadedPack:
        """Raises BadPackError for a picture that cannot be decoded, unless its sample is to be skipped."""
        decoded = LoadedPack(number=pack.number, key=pack.key, samples=[], skipped=Counter(pack.skipped))
        for sample in pack.samples:
            try:
                decoded.samples.append(replace(sample, media=[_decoded(visual) for visual in sample.media]))
            except ValueError as error:
                _blame(sample, pack, error, decoded.skipped, on_bad)
        return decoded

    def collate(self, packs: Sequence[LoadedPack], *, pad_to: int | None = None) -> LoadedBatch:
        """Packs side by side."""
        return LoadedBatch(
            keys=tuple(pack.key for pack in packs),
            numbers=tuple(pack.number for pack in packs),
            packs=tuple(packs),
            num_bytes=sum(sample.num_bytes for pack in packs for sample in pack.samples),
            skipped=sum((pack.skipped for pack in packs), Counter()),
        )


class PackEncoder:
    """Loaded packs to tensors, by the processor's own layout and patches. Thread-safe."""

    def __init__(
        self,
        processor: LlavaOnevision2Processor,
        *,
        pixel_dtype: torch.dtype = torch.float32,
        exact_lengths: bool = True,
        features: FeatureSource | None = None,
    ) -> None:
        """
        Args:
            features: of the samples' media, read in place of their pictures.
            exact_lengths: samples must be as long as the stage says; else at most so long.
        """
        self.processor = processor
        self._exact_lengths, self._features = exact_lengths, features
        self.pixel_dtype = pixel_dtype
        self._text = TextEncoder(processor.tokenizer)
        self._lock = threading.Lock()  # a fast tokenizer must not be called by two threads at once

    def encode(self, pack: LoadedPack, *, on_bad: OnBad) -> EncodedPack:
        """Decodes and lays out every sample.

        Raises:
            BadPackError: a sample that cannot be decoded, or is not as long as the stage says, unless it is to be skipped.
        """
        ids: list[Tensor] = []
        labels: list[Tensor] = []
        vision: list[VisionInputs] = []
        features: list[Tensor] = []
        kept: list[LoadedSample] = []
        skipped = Counter(pack.skipped)
        for sample in pack.samples:
            try:
                made = self._sample(sample)
                found = None if self._features is None else self._features.of(sample, pack_key=pack.key)
            except BadPackError as error:
                if on_bad == "raise":
                    raise
                skipped[error.tar] += 1
                continue
            except ValueError as error:
                _blame(sample, pack, error, skipped, on_bad)
                continue
            kept.append(sample)
            ids.append(made[0])
            labels.append(made[1])
            if made[2] is not None:
                vision.append(made[2])
            if found is not None:
                features.append(found)
        empty = torch.zeros(0, dtype=torch.int64)
        return EncodedPack(
            number=pack.number,
            key=pack.key,
            sample_ids=tuple((sample.source, sample.id) for sample in kept),
            input_kinds=tuple(input_kind(sample.media) for sample in kept),
            lengths=tuple(len(part) for part in ids),
            input_ids=torch.cat(ids) if ids else empty,
            labels=torch.cat(labels) if ids else empty,
            vision=tuple(vision),
            features=tuple(features),
            num_bytes=sum(sample.num_bytes for sample in kept)
            + sum(part.numel() * part.element_size() for part in features),
            skipped=skipped,
        )

    def _sample(self, sample: LoadedSample) -> tuple[Tensor, Tensor, VisionInputs | None]:
        runs = [visual.runs() for visual in sample.media]
        system = self.processor.config.default_system
        segments = lay_out(sample.messages, runs, default_system=system, for_generation=False)
        with self._lock:
            ids_L, labels_L = self._text.encode(segments)
        said = sample.num_tokens
        if said is not None and (len(ids_L) != said if self._exact_lengths else len(ids_L) > said):
            raise ValueError(
                f"it has {len(ids_L)} tokens here, {said} in the stage; build the stage with this processor"
            )
        vision = None
        if sample.media and self._features is None:
            vision = self.processor.encode_vision(sample.media, pixel_dtype=self.pixel_dtype)
        return torch.from_numpy(ids_L), torch.from_numpy(labels_L), vision

    def collate(self, packs: Sequence[EncodedPack], *, pad_to: int | None = None) -> PackedBatch:
        """Packs to a batch; rows are as long as the longest pack, or `pad_to`.

        Raises:
            ValueError: a pack is longer than pad_to.
        """
        longest = max((len(pack.input_ids) for pack in packs), default=0)
        length = longest if pad_to is None else pad_to
        if longest > length:
            raise ValueError(
                f"a pack has {longest} tokens, pad_to is {length}; raise it to the stage's sequence_length"
            )
        ids = torch.full((len(packs), length), self.processor.pad_token_id)
        labels = torch.full_like(ids, IGNORE_INDEX)
        positions = torch.zeros_like(ids)
        segments: list[int] = []
        for row, pack in enumerate(packs):
            num = len(pack.input_ids)
            ids[row, :num], labels[row, :num] = pack.input_ids, pack.labels
            lengths = [*pack.lengths, *([length - num] if num < length else [])]
            if lengths:
                positions[row] = torch.cat([torch.arange(n) for n in lengths])
            segments += lengths
        vision = [part for pack in packs for part in pack.vision]
        joined: dict[str, Any] = {
            f.name: torch.cat([getattr(part, f.name) for part in vision]) if vision else None
            for f in fields(VisionInputs)
        }
        features = [part for pack in packs for part in pack.features]
        window = self.processor.config.window_images
        grid, groups = joined["image_grid_thw"], joined["patch_group_lengths"]
        return PackedBatch(
            keys=tuple(pack.key for pack in packs),
            numbers=tuple(pack.number for pack in packs),
            sample_ids=tuple(pack.sample_ids for pack in packs),
            input_kinds=tuple(pack.input_kinds for pack in packs),
            sample_lengths=tuple(pack.lengths for pack in packs),
            input_ids=ids,
            labels=labels,
            position_ids=positions,
            cu_seqlens=torch.tensor([0, *segments]).cumsum(0).to(torch.int32),
            max_seqlen=max(segments, default=0),
            visual_features=torch.cat(features) if features else None,
            windows_are_groups=grid is None
            or group_lengths(grid.tolist(), frame_windows_size=window) == groups.tolist(),
            num_tokens=sum(sum(pack.lengths) for pack in packs),
            num_bytes=sum(pack.num_bytes for pack in packs),
            skipped=sum((pack.skipped for pack in packs), Counter()),
            **joined,
        )


def input_kind(media: Sequence[Visual]) -> InputKind:
    """What a sample with these media shows."""
    kinds: set[InputKind] = set()
    for visual in media:
        t_NP = visual.positions_NP3[..., 0]
        kinds.add("image" if visual.kind == "image" else "codec" if (t_NP != t_NP[:, :1]).any() else "frames")
    return "text" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"


def media_tensors(samples: Sequence[LoadedSample]) -> list[tuple[Tensor, Tensor]]:
    """(uint8 [N, H, W, 3] pictures, int32 [N, P, 3] positions in raster order) of each medium; for workers of other loaders."""
    return [
        (torch.from_numpy(np.stack(list(visual.images()))), torch.from_numpy(visual.positions_NP3))
        for sample in samples
        for visual in sample.media
    ]


def _decoded(visual: Visual) -> Visual:
    return replace(visual, image=list(visual.images()).__getitem__)


def _blame(sample: LoadedSample, pack: LoadedPack, error: ValueError, skipped: Counter[str], on_bad: OnBad) -> None:
    """Counts a sample that cannot be decoded, or raises BadPackError."""
    tar = sample.tars[0] if sample.tars else "the stage's own text"
    if on_bad == "raise":
        raise BadPackError(
            f"{tar}: sample {sample.id} ({', '.join(sample.media_keys)}) of pack {pack.key} cannot be read: {error}",
            tar=tar,
        ) from error
    skipped[tar] += 1
