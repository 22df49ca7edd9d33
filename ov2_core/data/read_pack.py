"""A pack to its samples, whichever way the stage is stored: `IndexPacks` (token shards) or `ShardPacks` (stage shards).

Enters: a pack's number. Leaves: `LoadedPack`: the compressed members in memory, text and `Visual`s whose pictures are decoded when
they are asked for. Every read is one range of one tar. What cannot be read raises `BadPackError`, which names the tar, the pack
and the sample. Thread-safe.
"""

import json
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ov2_core.data.keys import key_of
from ov2_core.data.stage import PackIndex, TarTable, pack_key, relocate
from ov2_core.model.visual import Visual, show_sample
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.index import INFO_JSON
from ov2_core.storage.reader import StoredSample, open_index
from ov2_core.storage.writer import Member, decode_jpeg, decode_npy
from schemas.stage import PackedMedium, PackedSamples, StageMedium, StageRecord, StageSample
from schemas.video import Message

_BLOCK = 512
_WINDOW = 4
"""Canvases of a group where a foreign stage shard does not say."""


class BadPackError(ValueError):
    """Something of a pack that cannot be read; `tar` names the file at fault."""

    def __init__(self, message: str, *, tar: str) -> None:
        super().__init__(message)
        self.tar = tar


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedSample:
    """One sample, compressed pictures in memory."""

    source: str
    id: str
    messages: list[Message]
    media: list[Visual]
    media_keys: list[str]
    num_tokens: int | None
    """As the stage says; None where it does not."""
    num_bytes: int
    """Read for it."""
    tars: list[str]
    """Path or URL of the tar of each medium."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedPack:
    """One sequence."""

    number: int
    key: str
    samples: list[LoadedSample]
    skipped: Counter[str] = field(default_factory=Counter)
    """Samples left out (by option), by the tar at fault."""


class Packs(Protocol):
    """Packs by number."""

    block_packs: int

    def __len__(self) -> int: ...

    def load(self, number: int, *, skip_bad: bool) -> LoadedPack:
        """Raises BadPackError, unless told to leave out what is bad."""

    def close(self) -> None: ...


def open_packs(store: Store, record: StageRecord | None, *, moved: dict[str, str], cached_blocks: int = 32) -> Packs:
    """The stage's packs. `record` None: a folder of stage shards with an Energon index that others may have made."""
    if record is not None and record.form == "index":
        return IndexPacks(store, record, moved=moved, cached_blocks=cached_blocks)
    return ShardPacks(store, record)


class IndexPacks:
    """Packs of an index over token shards."""

    def __init__(self, store: Store, record: StageRecord, *, moved: dict[str, str], cached_blocks: int) -> None:
        self.block_packs = record.packs_per_block
        self.index = PackIndex(store, record, cached_blocks=cached_blocks)
        self._names = [source.name for source in record.sources]
        self._tars = TarTable(store)
        self._stores = {run: Store(_absolute(relocate(run, moved), store)) for run in self._tars.runs()}

    def __len__(self) -> int:
        return len(self.index)

    def load(self, number: int, *, skip_bad: bool) -> LoadedPack:
        """One range read a medium."""
        pack = self.index[number]
        loaded = LoadedPack(number=number, key=pack.key, samples=[])
        for sample in pack.samples:
            try:
                loaded.samples.append(self._sample(sample, pack.key))
            except BadPackError as error:
                if not skip_bad:
                    raise
                loaded.skipped[error.tar] += 1
        return loaded

    def close(self) -> None:
        pass

    def _sample(self, sample: StageSample, pack_key: str) -> LoadedSample:
        stored = [self._show(medium, sample, pack_key) for medium in sample.media]
        return LoadedSample(
            source=self._names[sample.source],
            id=sample.id,
            messages=list(sample.messages),
            media=stored,
            media_keys=[medium.key for medium in sample.media],
            num_tokens=sample.num_tokens,
            num_bytes=sum(medium.byte_size for medium in sample.media),
            tars=[self._url(medium.tar) for medium in sample.media],
        )

    def _show(self, medium: StageMedium, sample: StageSample, pack_key: str) -> Visual:
        found = self.read_medium(medium, sample, pack_key)
        try:
            return show_sample(found)
        except (ValueError, KeyError) as error:
            url = self._url(medium.tar)
            raise BadPackError(
                f"{url}: sample {medium.key} of pack {pack_key} cannot be read: {error}", tar=url
            ) from error

    def _url(self, number: int) -> str:
        tar = self._tars[number]
        return self._stores[tar.run].url(tar.name)

    def read_medium(self, medium: StageMedium, sample: StageSample, pack_key: str) -> StoredSample:
        """A medium's sample as it lies in its token shard. Raises BadPackError."""
        tar = self._tars[medium.tar]
        store = self._stores[tar.run]
        where = f"{store.url(tar.name)}: sample {medium.key} of pack {pack_key} ({sample.id})"
        try:
            data = store.read_range(tar.name, medium.byte_offset, medium.byte_offset + medium.byte_size)
            found = StoredSample(key=medium.key, tar_name=tar.name, members=split_slice(data, key=medium.key))
            if key_of(found.record.provenance.id) != medium.key or found.record.media != medium.kind:
                raise ValueError(f"its KEY.json is of a {found.record.media} {found.record.provenance.id!r}")
            return found
        except (OSError, EOFError, ValueError, KeyError, ValidationError) as error:
            if is_transient(error):
                raise
            raise BadPackError(f"{where} cannot be read: {error}", tar=store.url(tar.name)) from error


class ShardPacks:
    """Packs of stage shards, in the order of their tars.

    Places come from the offsets beside each tar (X.tar.idx, 8 bytes a pack), read when a pack of it is first asked for, so that
    opening a stage on an object store costs one small file; the index.sqlite, gigabytes for a large stage, is not needed. Only
    where a tar has no such file is it opened.
    """

    block_packs = 64

    def __init__(self, store: Store, record: StageRecord | None) -> None:
        """Raises ValueError where the folder has no Energon index."""
        try:
            counts: dict[str, int] = json.loads(store.read_bytes(INFO_JSON))["shard_counts"]
        except FileNotFoundError:
            raise ValueError(
                f"{store.root} holds neither stage.json nor an Energon index (.nv-meta); give the folder of a stage"
            ) from None
        self._ours = record is not None
        if record is not None:
            self.block_packs = record.packs_per_block
        self._store = store
        self._lock = threading.Lock()
        self._offsets: dict[int, npt.NDArray[np.uint64]] = {}
        self._db: sqlite3.Connection | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tars = list(counts)
        self._starts = np.cumsum([0, *counts.values()])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def load(self, number: int, *, skip_bad: bool) -> LoadedPack:
        """One range read, and one more for the first pack of a tar."""
        tar = int(np.searchsorted(self._starts, number, side="right")) - 1
        name = self._tars[tar]
        at = pack_key(number) if self._ours else f"number {number}"
        try:
            start, stop = self._place(tar, number - int(self._starts[tar]))
            data = self._store.read_range(name, start, stop)
            key = at if self._ours else _first_stem(data)
            members = dict(split_slice(data, key=key))
            return LoadedPack(number=number, key=key, samples=show_packed(members, tar=self._store.url(name)))
        except (OSError, EOFError, ValueError, KeyError) as error:
            if is_transient(error):
                raise
            tar_url = self._store.url(name)
            if skip_bad:
                return LoadedPack(number=number, key=at, samples=[], skipped=Counter([tar_url]))
            raise BadPackError(f"{tar_url}: pack {at} cannot be read: {error}", tar=tar_url) from error

    def _place(self, tar: int, place: int) -> tuple[int, int]:
        """Bytes [start, stop) of a pack in its tar."""
        offsets = self._offsets.get(tar)
        if offsets is None:
            num_packs = int(self._starts[tar + 1] - self._starts[tar])
            try:
                offsets = np.frombuffer(self._store.read_bytes(f"{self._tars[tar]}.idx"), "<u8")
            except FileNotFoundError:
                offsets = self._offsets_of_index(tar)
            if len(offsets) != num_packs + 1:
                raise ValueError(
                    f"its offsets are of {len(offsets) - 1} packs, the index says {num_packs}; write it anew"
                )
            self._offsets[tar] = offsets
        start, stop = int(offsets[place]), int(offsets[place + 1])
        if start >= stop:
            raise ValueError("its offsets do not ascend; write the index anew")
        return start, stop

    def _offsets_of_index(self, tar: int) -> npt.NDArray[np.uint64]:
        with self._lock:
            if self._db is None:
                self._db, self._folder = open_index(self._store)
            rows = self._db.execute(
                "SELECT byte_offset, byte_size FROM samples WHERE tar_file_id = ? ORDER BY sample_index", (tar,)
            ).fetchall()
        return np.array([offset for offset, _ in rows] + ([sum(rows[-1])] if rows else []), np.uint64)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        if self._folder is not None:
            self._folder.cleanup()


def split_slice(data: bytes, *, key: str) -> list[Member]:
    """Members of one sample from its slice of a tar.

    Raises:
        ValueError: not whole ustar members named KEY.part: the tar is not the one that the index was made of.
    """
    members: list[Member] = []
    at = 0
    while at < len(data):
        header = data[at : at + _BLOCK]
        if len(header) < _BLOCK or header[257:262] != b"ustar" or _checksum(header) != int(header[148:154], 8):
            raise ValueError("no tar header where the index says; the tar was changed since")
        name = header[:100].rstrip(b"\0").decode()
        size = int(header[124:135], 8)
        stem, _, part = name.partition(".")
        if stem != key:
            raise ValueError(f"member {name!r} where {key!r} should be; the tar was changed since")
        at += _BLOCK
        if at + size > len(data):
            raise ValueError(f"member {name!r} is cut short")
        members.append((part, data[at : at + size]))
        at += -(-size // _BLOCK) * _BLOCK
    return members


def _first_stem(data: bytes) -> str:
    """The key that a slice opens with."""
    return data[:100].rstrip(b"\0").decode().partition(".")[0]


def show_packed(members: dict[str, bytes], *, tar: str) -> list[LoadedSample]:
    """Samples of one pack of a stage shard.

    Raises:
        ValueError, KeyError: a member is missing or cannot be read.
    """
    packed = PackedSamples.model_validate_json(members["json"])
    if not packed.sample_count == len(packed.images) == len(packed.prompts) == len(packed.captions):
        raise ValueError(f"sample_count is {packed.sample_count}, its lists have other lengths")
    samples = []
    for i in range(packed.sample_count):
        names, positions = packed.images[i], packed.patch_positions[i]
        given = packed.samples[i] if packed.samples is not None else None
        media = given.media if given is not None else _guess_media(packed, i, members)
        visuals, start = [], 0
        for medium in media:
            stop = start + sum(medium.group_images)
            visuals.append(_show(medium, names[start:stop], positions[start:stop], members))
            start = stop
        if start != len(names):
            raise ValueError(f"sample {i} has {len(names)} images, its media {start}")
        samples.append(
            LoadedSample(
                source=given.source if given is not None else "",
                id=given.id if given is not None else str(i),
                messages=given.messages if given is not None else _alternate(packed.prompts[i], packed.captions[i]),
                media=visuals,
                media_keys=[medium.key for medium in media],
                num_tokens=given.num_tokens if given is not None else None,
                num_bytes=sum(len(members[name]) for name in [*names, *filter(None, positions)]),
                tars=[tar] * len(media),
            )
        )
    return samples


def _show(medium: PackedMedium, names: list[str], positions: list[str], members: dict[str, bytes]) -> Visual:
    loaded = [decode_npy(members[name], name=name) for name in positions]
    stack: npt.NDArray[np.int32] = np.stack(loaded)
    rows, columns = medium.rows, medium.columns
    return Visual(
        kind=medium.kind,
        image=_decoder(names, members),
        positions_NP3=stack,
        rows=rows,
        columns=columns,
        fps=medium.fps,
        timestamp_decimal=medium.timestamp_decimal,
        group_images=tuple(medium.group_images),
        patch_px=medium.patch_px,
        merge=medium.merge,
    )


def _decoder(names: list[str], members: dict[str, bytes]) -> Callable[[int], npt.NDArray[np.uint8]]:
    return lambda index: decode_jpeg(members[names[index]], name=names[index])


def _guess_media(packed: PackedSamples, i: int, members: dict[str, bytes]) -> list[PackedMedium]:
    """Media of a sample that others wrote: one video where it has an fps, else stills; groups are windows of four canvases."""
    names = packed.images[i]
    sizes = [decode_jpeg(members[name], name=name).shape for name in names]
    fps = packed.fps[i]
    if any(not name for name in packed.patch_positions[i]):
        raise ValueError(f"sample {i} has images without patch positions, which this reader needs")
    video = fps is not None
    spans = [range(len(names))] if video and names else [range(j, j + 1) for j in range(len(names))]
    return [
        PackedMedium(
            key="",
            kind="video" if video else "image",
            group_images=[min(_WINDOW, len(span) - first) for first in range(0, len(span), _WINDOW)],
            rows=sizes[span[0]][0] // 14,
            columns=sizes[span[0]][1] // 14,
            fps=fps,
            timestamp_decimal=packed.timestamp_decimal[i],
            patch_px=14,
            merge=2,
        )
        for span in spans
    ]


def _alternate(prompts: list[str], captions: list[str]) -> list[Message]:
    messages: list[Message] = []
    for prompt, caption in zip(prompts, captions, strict=True):
        messages += [Message(role="user", content=prompt), Message(role="assistant", content=caption)]
    return messages


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[148:156]) + 8 * 32


def _absolute(run: str, store: Store) -> str:
    """Runs of the stage itself stand below it and are named "."."""
    return store.root if run == "." else run
