"""TokenizedVideo to the members of a token shard, members to a tar, and back.

Layout as in upstream's MultiMixQASample: KEY.img_000.jpg .., KEY.patch_positions_000.npy .., KEY.json. The bytes
depend on the arguments alone: no clock, host, user or dictionary order enters, so shards are reproducible.

The tar is written by tarfile, in plain ustar: webdataset.TarWriter reorders the members of a sample by name, does not
tell where it put them, and its package imports torch where that is installed, which a tokenization worker does
without.

Shape letters: N images, H x W pixels, P patches of an image in raster order.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.config import TokenizerConfig
from ov2_core.errors import BadItemError
from ov2_core.images import encode_jpeg
from ov2_core.storage.failpoint import failpoint
from ov2_core.tokenized import TokenizedVideo
from schemas.record import Record
from schemas.shard import CommittedSample, TarPart
from schemas.tokens import GroupRecord, Provenance, SampleRecord
from schemas.video import Message

Member = tuple[str, bytes]
"""(part name, content): a tar member's name without "KEY."."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,72}")
"""72: with ".patch_positions_00000.npy" a name fits the 100 bytes of a ustar header."""
_PART_PATTERN = re.compile(r"[a-z0-9_]+(\.[a-z0-9]+)?")

_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<i4', 'fortran_order': False, 'shape': \((\d{1,9}), 3\), \} *\n", re.DOTALL
)
_NPY_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSample:
    """One sample, ready for a tar."""

    key: str
    members: list[Member]
    record: SampleRecord

    @property
    def num_bytes(self) -> int:
        """Content bytes, without tar headers."""
        return sum(len(data) for _, data in self.members)


@dataclass(frozen=True, kw_only=True, slots=True)
class TarSample:
    """Where one sample lies in a tar."""

    key: str
    byte_offset: int
    byte_size: int
    """From the sample's first header to the end of its last member's padding."""
    parts: list[TarPart]


@dataclass(frozen=True, kw_only=True, slots=True)
class TarWritten:
    """A finished tar on the local disk."""

    path: str
    digest: str
    """sha256 of the whole file, hex."""
    num_bytes: int
    samples: list[TarSample]


def canonical_json(record: Record) -> bytes:
    """UTF-8 JSON of a record, keys sorted, no spaces: equal records give equal bytes.

    `schema_version` stands at the top only: nested records are of the same version, and `messages` stay {role, content}.
    Raises ValueError for text that is not Unicode.
    """
    plain = {"schema_version": record.schema_version, **_plain(record)}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def positions_digest(positions: Iterable[npt.NDArray[np.int32]]) -> str:
    """sha256 of all positions, int32 little-endian, in image order."""
    digest = hashlib.sha256()
    for positions_P3 in positions:
        digest.update(positions_P3.astype("<i4").tobytes())
    return digest.hexdigest()


def check_tokenized(tokenized: TokenizedVideo) -> None:
    """Assert the invariants of a TokenizedVideo: nothing that breaks one may reach a shard."""
    images, positions = tokenized.images_NHW3, tokenized.positions_NP3
    patch, m = tokenized.patch_px, tokenized.merge
    assert images.dtype == np.uint8, images.dtype
    assert images.ndim == 4, images.shape
    num_images, height, width, num_channels = images.shape
    if tokenized.jpegs_N is not None:
        assert num_images == 0, "pixels or files, not both"
        num_images = len(tokenized.jpegs_N)
    assert num_channels == 3, images.shape
    assert min(num_images, height, width) > 0, images.shape
    assert height % (patch * m) == width % (patch * m) == 0, images.shape
    rows, columns = height // patch, width // patch
    assert positions.dtype == np.int32, positions.dtype
    assert positions.shape == (num_images, rows * columns, 3), positions.shape
    assert (positions >= 0).all(), "a position is negative: padding never ships"
    assert (positions[..., 1:] < (rows, columns)).all(), "a position lies outside its frame"
    t_NRmCm = positions[..., 0].reshape(num_images, rows // m, m, columns // m, m)
    assert (t_NRmCm == t_NRmCm[:, :, :1, :, :1]).all(), f"a {m} x {m} block mixes times"
    next_image = 0
    for group in tokenized.groups:
        assert group.first_image == next_image, "groups must cover the images in order"
        assert group.num_images > 0, group
        next_image += group.num_images
    assert next_image == num_images, f"groups cover {next_image} of {num_images} images"
    assert (tokenized.fps is None) == (tokenized.mode == "still"), (tokenized.fps, tokenized.mode)


def encode_sample(
    tokenized: TokenizedVideo,
    *,
    key: str,
    provenance: Provenance,
    messages: Sequence[Message],
    config: TokenizerConfig,
) -> EncodedSample:
    """Members and record of one sample.

    JPEG at config.jpeg_quality and config.jpeg_subsampling (`jpegs_N`, where they are there, were made by the same config),
    positions as .npy version 1.0 int32 [P, 3], canonical JSON.

    Raises:
        ValueError: a key that a shard cannot hold.
        BadItemError: invalid_text, where a message cannot be written as UTF-8.
    """
    _check_key(key)
    check_tokenized(tokenized)
    num_images = tokenized.num_images
    _, height, width, _ = tokenized.images_NHW3.shape
    image_keys = [f"img_{i:03d}.jpg" for i in range(num_images)]
    positions_keys = [f"patch_positions_{i:03d}.npy" for i in range(num_images)]
    still = tokenized.mode == "still"
    media: Literal["image", "video"] = "image" if still else "video"
    record = SampleRecord(
        messages=list(messages),
        image_keys=image_keys,
        patch_positions_keys=positions_keys,
        fps=tokenized.fps,
        timestamp_decimal=config.timestamp_decimal,
        media=media,
        mode=tokenized.mode,
        policy=tokenized.policy,
        image_width_px=width,
        image_height_px=height,
        patch_px=tokenized.patch_px,
        merge=tokenized.merge,
        num_tokens=tokenized.num_tokens,
        token_budget=config.still_area_px // config.block_px**2 if still else config.token_budget,
        groups=[
            GroupRecord(
                first_image=group.first_image,
                num_images=group.num_images,
                t_start=group.t_start,
                t_end=group.t_end,
                num_frames=group.num_frames,
                bit_cost=round(float(group.bit_cost), 8),
            )
            for group in tokenized.groups
        ],
        frame_bit_cost=[round(float(cost), 8) for cost in tokenized.frame_bit_cost],
        flags=list(tokenized.flags),
        positions_digest=positions_digest(tokenized.positions_NP3),
        provenance=provenance,
    )
    try:
        text = canonical_json(record)
    except ValueError as error:
        raise BadItemError(
            "invalid_text", f"{key}: its text cannot be written as UTF-8 ({error}); mend the row's text", stage="write"
        ) from error
    images = tokenized.jpegs_N
    if images is None:
        images = tuple(encode_jpeg(image_HW3, config) for image_HW3 in tokenized.images_NHW3)
    members = [
        *zip(image_keys, images, strict=True),
        *zip(positions_keys, (_encode_npy(positions_P3) for positions_P3 in tokenized.positions_NP3), strict=True),
        ("json", text),
    ]
    return EncodedSample(key=key, members=members, record=record)


def decode_sample(
    members: Sequence[Member],
) -> tuple[SampleRecord, list[npt.NDArray[np.uint8]], list[npt.NDArray[np.int32]]]:
    """The record, the images [H, W, 3] RGB and the positions int32 [P, 3] of one sample, in image order.

    Raises:
        ValueError: a member is missing or cannot be read; the message names it.
    """
    by_name = dict(members)
    record = decode_record(by_name)
    images = [decode_jpeg(_member(by_name, name), name=name) for name in record.image_keys]
    positions = [decode_npy(_member(by_name, name), name=name) for name in record.patch_positions_keys]
    return record, images, positions


def decode_record(by_name: dict[str, bytes]) -> SampleRecord:
    """The SampleRecord in the member "json". Raises ValueError (pydantic's ValidationError is one)."""
    return SampleRecord.model_validate_json(_member(by_name, "json"))


def decode_jpeg(data: bytes, *, name: str = "image") -> npt.NDArray[np.uint8]:
    """RGB [H, W, 3]. Raises ValueError naming `name`."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable JPEG: {error}") from error


def decode_npy(data: bytes, *, name: str = "positions") -> npt.NDArray[np.int32]:
    """int32 [P, 3]. Raises ValueError naming `name`.

    The header that numpy writes is read here: numpy parses it with `ast`, which in Python below 3.11.5 fails now and then where
    threads parse at once (SystemError, "AST constructor recursion depth mismatch"). Other headers go to numpy, one at a time.
    """
    plain = _NPY_HEADER.match(data)
    if plain is not None and len(data) - plain.end() == 12 * int(plain[1]):
        return np.frombuffer(data, np.dtype("<i4"), offset=plain.end()).reshape(-1, 3).astype(np.int32)
    try:
        with _NPY_LOCK:
            positions_P3 = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{name}: not a readable .npy: {error}") from error
    if positions_P3.dtype != np.int32 or positions_P3.ndim != 2 or positions_P3.shape[1] != 3:
        raise ValueError(f"{name}: expected int32 [P, 3], got {positions_P3.dtype} {list(positions_P3.shape)}")
    return np.asarray(positions_P3, dtype=np.int32)


def write_tar(path: str | os.PathLike[str], samples: Iterable[tuple[str, Sequence[Member]]]) -> TarWritten:
    """Write (key, members) pairs, in the order given, as one tar at a local path, replacing what is there.

    One sample at a time is held. Nothing but names and contents enters the bytes. The file is synced to disk.

    Raises:
        ValueError: a bad or repeated key, an empty sample, a repeated member, or no sample at all.
    """
    failpoint("before_tar")
    path = os.fspath(path)
    placed: list[TarSample] = []
    seen: set[str] = set()
    with open(path, "wb") as file:
        hashing = _HashingWriter(file)
        with tarfile.open(fileobj=cast(Any, hashing), mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                _check_key(key)
                if key in seen:
                    raise ValueError(f"{path}: key {key!r} is given twice; keys are unique in a run")
                seen.add(key)
                placed.append(_add_sample(tar, key, members))
                failpoint("mid_tar")
        if not placed:
            raise ValueError(f"{path}: a tar needs at least one sample; commit an empty shard without a tar")
        file.flush()
        os.fsync(file.fileno())
    failpoint("after_tar")
    return TarWritten(path=path, digest=hashing.digest.hexdigest(), num_bytes=hashing.num_bytes, samples=placed)


def committed_sample(
    record: SampleRecord, placed: TarSample, *, cpu_seconds: float, peak_rss_bytes: int
) -> CommittedSample:
    """The commit's line for one sample: what its record says and where it lies."""
    return CommittedSample(
        line=record.provenance.manifest_line,
        key=placed.key,
        id=record.provenance.id,
        byte_offset=placed.byte_offset,
        byte_size=placed.byte_size,
        parts=placed.parts,
        num_images=len(record.image_keys),
        num_tokens=record.num_tokens,
        num_groups=len(record.groups),
        duration_seconds=record.provenance.duration_seconds,
        codec=record.provenance.codec,
        mode=record.mode,
        flags=record.flags,
        cpu_seconds=cpu_seconds,
        peak_rss_bytes=peak_rss_bytes,
    )


def iter_tar_members(file: BinaryIO) -> Iterator[tuple[str, TarPart, bytes]]:
    """(key, part, content) of every member of a tar read as a stream, to the last byte of the file.

    Raises:
        ValueError: not a tar, cut short (tarfile alone takes a cut between two members for the end), or a member that is
            no plain file named KEY.part: a link, a folder, a name with a path in it, a sparse file (whose stated size is
            made up of zeros as it is read).
    """
    counting = _CountingReader(file)
    try:
        with tarfile.open(fileobj=cast(Any, counting), mode="r|") as tar:
            for info in tar:
                key, _, name = info.name.partition(".")
                if (
                    not info.isreg()
                    or info.issparse()
                    or not KEY_PATTERN.fullmatch(key)
                    or not _PART_PATTERN.fullmatch(name)
                ):
                    raise ValueError(f"member {info.name[:200]!r} is not a file named KEY.part")
                extracted = tar.extractfile(info)
                assert extracted is not None
                data = extracted.read()
                if len(data) != info.size:
                    raise ValueError(f"member {info.name!r} is cut short: {len(data)} of {info.size} bytes")
                yield key, TarPart(name=name, content_byte_offset=info.offset_data, content_byte_size=info.size), data
            end = tar.offset + 2 * tarfile.BLOCKSIZE  # two blocks of zeros close a tar
        while counting.read(tarfile.RECORDSIZE):
            pass
        if counting.num_bytes < end:
            raise ValueError(f"the tar is cut short: {counting.num_bytes} of at least {end} bytes")
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"not a readable tar: {error}") from error


def _add_sample(tar: tarfile.TarFile, key: str, members: Sequence[Member]) -> TarSample:
    if not members:
        raise ValueError(f"sample {key!r} has no member")
    start = tar.offset
    parts: list[TarPart] = []
    for name, data in members:
        if not _PART_PATTERN.fullmatch(name):
            raise ValueError(f"sample {key!r}: bad member name {name!r}")
        info = tarfile.TarInfo(f"{key}.{name}")  # its defaults: mtime 0, uid and gid 0, no names
        info.size = len(data)
        info.mode = 0o644
        header_offset = tar.offset
        tar.addfile(info, io.BytesIO(data))
        parts.append(
            TarPart(name=name, content_byte_offset=header_offset + tarfile.BLOCKSIZE, content_byte_size=len(data))
        )
    if len({part.name for part in parts}) != len(parts):
        raise ValueError(f"sample {key!r}: a member name is repeated")
    return TarSample(key=key, byte_offset=start, byte_size=tar.offset - start, parts=parts)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return {name: _plain(item) for name, item in value if name != "schema_version"}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value  # str, numbers, None, and dicts of plain JSON


def _check_key(key: str) -> None:
    if not KEY_PATTERN.fullmatch(key):
        raise ValueError(f"sample key {key!r} must match {KEY_PATTERN.pattern}: a reader cuts names at the first dot")


def _encode_npy(positions_P3: npt.NDArray[np.int32]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(positions_P3, dtype="<i4"), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _member(by_name: dict[str, bytes], name: str) -> bytes:
    if name not in by_name:
        raise ValueError(f"member {name!r} is missing; there are {len(by_name)}: {', '.join(sorted(by_name)[:5])} ..")
    return by_name[name]


class _CountingReader:
    """A read-only stream that counts what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.num_bytes += len(data)
        return data


class _HashingWriter:
    """A write-only stream that hashes and counts what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)
