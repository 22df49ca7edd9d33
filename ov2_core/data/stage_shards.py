"""Packs of an index as samples of upstream's packed format (PackedCaptioningSample), compressed pictures copied as they are.

Enters: a pack's number. Leaves: KEY.img{i}_{j}.jpg, KEY.img{i}_{j}.npy and KEY.json, i = sample, j = image. Upstream's fields hold
user turns as `prompts` and answers as `captions`; `samples` beside them holds what those cannot say (system turns, several media,
groups), so our reader gets back exactly what the index names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from ov2_core.data.read_pack import IndexPacks
from ov2_core.data.stage import PackIndex
from ov2_core.storage.files import Store
from ov2_core.storage.writer import Member, TarSample, canonical_json
from schemas.shard import CommittedSample
from schemas.stage import PackedMedium, PackedSample, PackedSamples, StageRecord


@dataclass(slots=True)
class Packed:
    """One pack as a sample of a tar."""

    number: int
    key: str
    num_images: int
    num_tokens: int
    num_samples: int
    num_groups: int
    _members: list[Member] = field(repr=False)

    def take_members(self) -> list[Member]:
        """The members, which are let go here."""
        members, self._members = self._members, []
        return members


class PackedPack:
    """Reads packs of an index in the packed format."""

    def __init__(self, packs: IndexPacks) -> None:
        self._packs = packs

    @classmethod
    def open(cls, store: Store, record: StageRecord) -> Self:
        return cls(IndexPacks(store, record, moved={}, cached_blocks=4))

    def read(self, number: int) -> Packed:
        """Raises BadPackError where a source tar is not what it was."""
        pack = self._packs.index[number]
        names = [source.name for source in self._packs.index.record.sources]
        members: list[Member] = []
        images: list[list[str]] = []
        positions: list[list[str]] = []
        samples: list[PackedSample] = []
        for i, sample in enumerate(pack.samples):
            stored = [self._packs.read_medium(medium, sample, pack.key) for medium in sample.media]
            images.append([])
            positions.append([])
            media: list[PackedMedium] = []
            for found in stored:
                record = found.record
                for image_key, positions_key in zip(record.image_keys, record.patch_positions_keys, strict=True):
                    stem = f"img{i}_{len(images[i])}"
                    images[i].append(f"{stem}.jpg")
                    positions[i].append(f"{stem}.npy")
                    members.append((f"{stem}.jpg", found.member(image_key)))
                    members.append((f"{stem}.npy", found.member(positions_key)))
                media.append(
                    PackedMedium(
                        key=found.key,
                        kind=record.media,
                        group_images=[group.num_images for group in record.groups],
                        rows=record.image_height_px // record.patch_px,
                        columns=record.image_width_px // record.patch_px,
                        fps=record.fps,
                        timestamp_decimal=record.timestamp_decimal,
                        patch_px=record.patch_px,
                        merge=record.merge,
                    )
                )
            samples.append(
                PackedSample(
                    source=names[sample.source],
                    id=sample.id,
                    messages=sample.messages,
                    media=media,
                    num_tokens=sample.num_tokens,
                )
            )
        packed = PackedSamples(
            images=images,
            prompts=[[turn.content for turn in sample.messages if turn.role == "user"] for sample in samples],
            captions=[[turn.content for turn in sample.messages if turn.role == "assistant"] for sample in samples],
            sample_count=len(samples),
            patch_positions=positions,
            fps=[next((medium.fps for medium in s.media if medium.fps is not None), None) for s in samples],
            timestamp_decimal=[max((medium.timestamp_decimal for medium in s.media), default=1) for s in samples],
            samples=samples,
        )
        members.append(("json", canonical_json(packed)))
        return Packed(
            number=number,
            key=pack.key,
            num_images=sum(map(len, images)),
            num_tokens=pack.num_tokens,
            num_samples=len(samples),
            num_groups=sum(len(medium.group_images) for sample in samples for medium in sample.media),
            _members=members,
        )


def shard_spans(index: PackIndex, *, shard_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bytes) of consecutive packs that make a shard of about so many bytes; at least one pack each."""
    start, held = 0, 0
    for pack in index:
        num_bytes = sum(medium.byte_size for sample in pack.samples for medium in sample.media) + 4 * pack.num_tokens
        if held and held + num_bytes > shard_bytes:
            yield start, pack.number, held
            start, held = pack.number, 0
        held += num_bytes
    if held:
        yield start, len(index), held


def committed_pack(packed: Packed, placed: TarSample, *, cpu_seconds: float, peak_rss_bytes: int) -> CommittedSample:
    """The commit's line for one pack."""
    return CommittedSample(
        line=packed.number + 1,
        key=packed.key,
        id=packed.key,
        byte_offset=placed.byte_offset,
        byte_size=placed.byte_size,
        parts=placed.parts,
        num_images=packed.num_images,
        num_tokens=packed.num_tokens,
        num_groups=packed.num_groups,
        duration_seconds=0.0,
        codec="pack",
        mode="pack",
        flags=[],
        cpu_seconds=cpu_seconds,
        peak_rss_bytes=peak_rss_bytes,
    )
