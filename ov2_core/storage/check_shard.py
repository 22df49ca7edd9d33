"""One shard held against its commit: sizes, digest, offsets, and what every member says.

Enters: a store and a shard's number, or one sample's members. Leaves: the commit and a list of findings, each naming shard,
key, line and remedy. A function of the shard alone, so that shards can be checked side by side.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ov2_core.features.check import check_features
from ov2_core.storage.commit import load_commit, quarantine_bytes, sidecar_bytes
from ov2_core.storage.files import Store
from ov2_core.storage.layout import quarantine_rel, shard_name, sidecar_rel, tar_rel
from ov2_core.storage.ledger import anew, first_line
from ov2_core.storage.writer import Member, decode_jpeg, decode_npy, decode_record, iter_tar_members, positions_digest
from schemas.features import FeatureConfig
from schemas.shard import CommitRecord, CommittedSample, TarPart
from schemas.tokens import SampleRecord

_READ_BYTES = 1 << 20
_AGAIN = "then run `ov2 tokenize` again, which publishes it from the commit"


def read_or_none(store: Store, rel: str) -> bytes | None:
    """The file, or None where there is none."""
    try:
        return store.read_bytes(rel)
    except FileNotFoundError:
        return None


def check_sample(members: list[Member], *, committed: CommittedSample, config_digest: str) -> Iterator[str]:
    """What is wrong with one sample's content, each finding as a clause ("img_001.jpg: not a readable JPEG")."""
    by_name = dict(members)
    try:
        record = decode_record(by_name)
    except ValueError as error:
        yield f"json: not a SampleRecord: {first_line(error)}"
        return
    yield from _check_record(record, committed, config_digest)
    if len(by_name) != len(members):
        yield "a member stands twice"
    if set(by_name) != {"json", *record.image_keys, *record.patch_positions_keys}:
        yield "its members are not those that its json names"
    for name in record.image_keys:
        if name in by_name:
            yield from _check_image(by_name[name], name, record)
    positions: list[npt.NDArray[np.int32]] = []
    for name in record.patch_positions_keys:
        if name in by_name:
            try:
                positions.append(decode_npy(by_name[name], name=name))
            except ValueError as error:
                yield str(error)
                continue
            yield from _check_positions(positions[-1], name, record)
    if positions_digest(positions) != record.positions_digest:
        yield "positions_digest does not agree with the positions"


def _check_record(record: SampleRecord, committed: CommittedSample, config_digest: str) -> Iterator[str]:
    if len(record.image_keys) != len(record.patch_positions_keys):
        yield f"{len(record.image_keys)} images, but {len(record.patch_positions_keys)} positions"
    side = record.patch_px * record.merge
    if record.image_width_px % side or record.image_height_px % side:
        yield f"image size {record.image_width_px} x {record.image_height_px} is no multiple of {side} px"
    tokens = len(record.image_keys) * (record.image_width_px // side) * (record.image_height_px // side)
    if record.num_tokens != tokens:
        yield f"num_tokens is {record.num_tokens}, but its images hold {tokens}"
    next_image = 0
    for group in record.groups:
        if group.first_image != next_image:
            break
        next_image += group.num_images
    if next_image != len(record.image_keys):
        yield "its groups do not cover its images in order"
    pairs = {
        "line": (record.provenance.manifest_line, committed.line),
        "id": (record.provenance.id, committed.id),
        "config_digest": (record.provenance.config_digest, config_digest),
        "num_images": (len(record.image_keys), committed.num_images),
        "num_tokens": (record.num_tokens, committed.num_tokens),
        "num_groups": (len(record.groups), committed.num_groups),
    }
    for name, (said, commit_says) in pairs.items():
        if said != commit_says:
            yield f"its json says {name} {said!r}, its commit {commit_says!r}"


def _check_image(data: bytes, name: str, record: SampleRecord) -> Iterator[str]:
    try:
        height, width, _ = decode_jpeg(data, name=name).shape
    except ValueError as error:
        yield str(error)
        return
    if (width, height) != (record.image_width_px, record.image_height_px):
        yield f"{name}: {width} x {height} px, stated {record.image_width_px} x {record.image_height_px}"


def _check_positions(positions_P3: npt.NDArray[np.int32], name: str, record: SampleRecord) -> Iterator[str]:
    m = record.merge
    rows, columns = record.image_height_px // record.patch_px, record.image_width_px // record.patch_px
    if positions_P3.shape[0] != rows * columns:
        yield f"{name}: {positions_P3.shape[0]} positions for {rows * columns} patches"
        return
    if positions_P3.min() < 0:
        yield f"{name}: a position is negative (padding)"
    if (positions_P3[:, 1:] >= (rows, columns)).any():
        yield f"{name}: a position lies outside its frame of {rows} x {columns} patches"
    if rows % m == 0 and columns % m == 0:
        t_RmCm = positions_P3[:, 0].reshape(rows // m, m, columns // m, m)
        if (t_RmCm != t_RmCm[:, :1, :, :1]).any():
            yield f"{name}: a {m} x {m} block mixes times"


def check_shard(
    store: Store, shard: int, *, deep: bool, tars: dict[str, int], features: FeatureConfig | None = None
) -> tuple[CommitRecord | None, list[str]]:
    """The commit of one shard, and what is wrong with what it promises. None for a commit that cannot be read.

    features: of a feature run, what its run.json says; None for token shards.
    """
    try:
        record = load_commit(store, shard)
    except ValueError as error:
        return None, [first_line(error)]
    errors: list[str] = []
    rows = quarantine_bytes(record)
    if rows and read_or_none(store, quarantine_rel(shard)) != rows:
        errors.append(f"shard {shard}: {quarantine_rel(shard)} is not what the commit says; remove it, {_AGAIN}")
    if record.tar_name is None:
        return record, errors
    if read_or_none(store, sidecar_rel(shard)) != sidecar_bytes(record):
        errors.append(f"shard {shard}: {sidecar_rel(shard)} is missing or wrong; remove it, {_AGAIN}")
    size = tars.get(f"{shard_name(shard)}.tar")
    if size is None:
        errors.append(f"shard {shard}: committed, but {tar_rel(shard)} is missing; {_AGAIN}")
    elif size != record.tar_bytes:
        errors.append(f"shard {shard}: {tar_rel(shard)} has {size} bytes, committed {record.tar_bytes}; {anew(shard)}")
    if deep and size is not None:
        with store.open_read(tar_rel(shard)) as file:
            errors += _check_tar(file, record, features)
    return record, errors


def _check_tar(file: BinaryIO, record: CommitRecord, features: FeatureConfig | None) -> list[str]:
    errors: list[str] = []
    hashing = _HashingReader(file)
    expected = {sample.key: sample for sample in record.samples}
    key: str | None = None
    members: list[Member] = []
    parts: list[TarPart] = []

    def close_sample() -> None:
        if key is None:
            return
        committed = expected.pop(key, None)
        if committed is None:
            errors.append(f"shard {record.shard}, key {key}: in {record.tar_name}, but its commit does not name it")
            return
        if parts != committed.parts:
            errors.append(f"shard {record.shard}, key {key}: its members do not lie where the commit says")
        as_written = committed.model_copy(update={"line": committed.line - record.line_offset})
        if features is not None:
            findings = check_features(members, committed=as_written, config=features)
        else:
            findings = check_sample(members, committed=as_written, config_digest=record.config_digest)
        for finding in findings:
            errors.append(f"shard {record.shard}, key {key}, line {committed.line}: {finding}")

    try:
        for member_key, part, data in iter_tar_members(cast(BinaryIO, hashing)):
            if member_key != key:
                close_sample()
                key, members, parts = member_key, [], []
            members.append((part.name, data))
            parts.append(part)
        close_sample()
        errors.extend(f"shard {record.shard}, key {lost}: committed, but not in {record.tar_name}" for lost in expected)
    except ValueError as error:
        errors.append(f"shard {record.shard}: {record.tar_name}, after key {key}: {error}")
    hashing.drain()
    if hashing.digest.hexdigest() != record.tar_digest:
        errors.append(f"shard {record.shard}: sha256 of {record.tar_name} is not the committed one")
    return [f"{error}; {anew(record.shard)}" for error in errors]


class _HashingReader:
    """A read-only stream that hashes what passes; `drain` reads the rest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data

    def drain(self) -> None:
        while self.read(_READ_BYTES):
            pass
