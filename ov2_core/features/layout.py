"""Bytes of a feature shard without torch: the safetensors member, sizes known before anything is encoded, digests.

Enters: shapes and buffers, or a member's bytes; a source's commits. Leaves: bytes, headers, exact sizes. The safetensors
format is 8 bytes of header length, a JSON header and the tensors one after the other; written here by hand so that equal
features give equal bytes whatever the version of the library, and so that `ov2 verify` needs neither torch nor the library.

Shape letters: T rows, D values of a row.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ov2_core.storage.writer import Member, canonical_json
from schemas.features import FeatureConfig, FeatureDtype, FeatureInfo, FeatureStage, PlannedFeatures
from schemas.shard import CommitRecord, CommittedSample

FEATURES_KEY = "features.safetensors"
FEATURES, SCALES = "features", "scales"
TensorType = Literal["F32", "BF16", "I8"]
TYPE_OF: dict[FeatureDtype, TensorType] = {"fp32": "F32", "bf16": "BF16", "int8": "I8"}
ITEM_BYTES: dict[TensorType, int] = {"F32": 4, "BF16": 2, "I8": 1}
_POSITIONS_PREFIX = "patch_positions_"
_TAR_BLOCK_BYTES, _TAR_RECORD_BYTES = 512, 10240


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpan:
    """One tensor of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte offset in the file."""
    stop: int


def num_rows(num_tokens: int, *, stage: FeatureStage, merge: int) -> int:
    """Rows that a sample's features have."""
    return num_tokens if stage == "merged" else num_tokens * merge * merge


def header_bytes(rows: int, width: int, dtype: FeatureDtype) -> bytes:
    """Length and JSON of the member's header. Scales stand before int8 values, so that both are aligned."""
    shapes: dict[str, tuple[TensorType, tuple[int, ...]]] = {}
    if dtype == "int8":
        shapes[SCALES] = ("F32", (rows,))
    shapes[FEATURES] = (TYPE_OF[dtype], (rows, width))
    fields, start = {}, 0
    for name, (kind, shape) in shapes.items():
        stop = start + ITEM_BYTES[kind] * _product(shape)
        fields[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def member_bytes(rows: int, width: int, dtype: FeatureDtype) -> int:
    """Size of the member, exactly."""
    scales = 4 * rows if dtype == "int8" else 0
    return len(header_bytes(rows, width, dtype)) + scales + rows * width * ITEM_BYTES[TYPE_OF[dtype]]


def read_header(data: bytes) -> dict[str, TensorSpan]:
    """Tensors of a safetensors file by name.

    Raises:
        ValueError: the header cannot be read, or its offsets do not tile the file.
    """
    if len(data) < 8:
        raise ValueError(f"not safetensors: {len(data)} bytes")
    (length,) = struct.unpack_from("<Q", data)
    begin = 8 + length
    if begin > len(data):
        raise ValueError(f"not safetensors: a header of {length} bytes in a file of {len(data)}")
    try:
        fields: dict[str, Any] = json.loads(data[8:begin])
        fields.pop("__metadata__", None)
        spans = {
            name: TensorSpan(
                dtype=str(field["dtype"]),
                shape=tuple(int(n) for n in field["shape"]),
                start=begin + int(field["data_offsets"][0]),
                stop=begin + int(field["data_offsets"][1]),
            )
            for name, field in fields.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not safetensors: its header cannot be read ({error})") from error
    at = begin
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        if span.start != at or span.stop - span.start != ITEM_BYTES.get(span.dtype, 0) * _product(span.shape):  # type: ignore[call-overload]
            raise ValueError(f"tensor {name!r}: its offsets do not fit its shape {list(span.shape)}")
        at = span.stop
    if at != len(data):
        raise ValueError(f"its tensors end at byte {at}, the file at {len(data)}")
    return spans


def position_members(members: Iterable[Member]) -> list[Member]:
    """The members that a feature sample takes over from its source as they are."""
    return [(name, data) for name, data in members if name.startswith(_POSITIONS_PREFIX)]


def image_digest(members: Mapping[str, bytes], image_keys: Sequence[str]) -> str:
    """sha256 over names and bytes of a sample's images. Raises KeyError where one is missing."""
    digest = hashlib.sha256()
    for name in image_keys:
        digest.update(f"{name}\0{len(members[name])}\0".encode() + members[name])
    return digest.hexdigest()


def source_digest(commits: Iterable[CommitRecord]) -> str:
    """sha256 of what a run's commits promise: tars, their digests and their keys; not when and how fast they were made."""
    digest = hashlib.sha256()
    for commit in commits:
        digest.update(f"{commit.shard}\0{commit.tar_digest}\0{len(commit.samples)}\n".encode())
        for sample in commit.samples:
            digest.update(f"{sample.line}\0{sample.key}\n".encode())
    return digest.hexdigest()


def config_digest(config: FeatureConfig) -> str:
    """sha256 that stands in every commit of the run."""
    return hashlib.sha256(canonical_json(config)).hexdigest()


def feature_info(config: FeatureConfig, *, rows: int, source_digest: str) -> FeatureInfo:
    """What KEY.json says of the features of one sample."""
    return FeatureInfo(
        features_key=FEATURES_KEY,
        stage=config.stage,
        dtype=config.dtype,
        compute_dtype=config.compute_dtype,
        num_rows=rows,
        width=config.width,
        encoder_digest=config.encoder_digest,
        source_digest=source_digest,
    )


def plan_commit(commit: CommitRecord, config: FeatureConfig) -> Iterator[PlannedFeatures]:
    """What the samples of a source shard become; predicted_bytes is what their members will take in the tar, to the byte."""
    for sample in commit.samples:
        yield PlannedFeatures(
            line=sample.line,
            key=sample.key,
            id=sample.id,
            shard=commit.shard,
            num_tokens=sample.num_tokens,
            predicted_bytes=_sample_bytes(sample, config),
        )


def tar_bytes(sample_bytes: int) -> int:
    """Size of a tar whose samples take so many bytes."""
    return -(-(sample_bytes + 2 * _TAR_BLOCK_BYTES) // _TAR_RECORD_BYTES) * _TAR_RECORD_BYTES


def predict_bytes(num_tokens: int, *, width: int, dtype: FeatureDtype) -> int:
    """Bytes of merged features alone, where nothing but the number of tokens is known."""
    return num_tokens * (width * ITEM_BYTES[TYPE_OF[dtype]] + (4 if dtype == "int8" else 0))


def _sample_bytes(sample: CommittedSample, config: FeatureConfig) -> int:
    rows = num_rows(sample.num_tokens, stage=config.stage, merge=config.merge)
    sizes = [part.content_byte_size for part in sample.parts if part.name.startswith(_POSITIONS_PREFIX)]
    json_part = next(part.content_byte_size for part in sample.parts if part.name == "json")
    info = canonical_json(feature_info(config, rows=rows, source_digest="0" * 64))
    # A nested record does not repeat its schema_version, and stands behind a key and a comma.
    json_part += len(info) - len(b'"schema_version":1,') + len(b'"features":,')
    sizes += [json_part, member_bytes(rows, config.width, config.dtype)]
    return sum(_TAR_BLOCK_BYTES + -(-size // _TAR_BLOCK_BYTES) * _TAR_BLOCK_BYTES for size in sizes)


def _product(shape: Sequence[int]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product
