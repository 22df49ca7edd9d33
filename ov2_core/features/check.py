"""One sample of a feature shard held against its commit and its run: shapes, sizes, values, positions. No torch.

Enters: the sample's members. Leaves: findings, each a clause, as check_shard.check_sample gives them for token shards.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ov2_core.features.layout import FEATURES, SCALES, TYPE_OF, num_rows, read_header
from ov2_core.storage.ledger import first_line
from ov2_core.storage.writer import Member, decode_npy, positions_digest
from schemas.features import FeatureConfig, FeatureRecord
from schemas.shard import CommittedSample

_CHUNK_BYTES = 1 << 24


def check_features(members: list[Member], *, committed: CommittedSample, config: FeatureConfig) -> Iterator[str]:
    """What is wrong with one sample, as clauses."""
    by_name = dict(members)
    try:
        record = FeatureRecord.model_validate_json(by_name.get("json", b""))
    except ValueError as error:
        yield f"json: not a FeatureRecord: {first_line(error)}"
        return
    yield from _check_record(record, committed, config)
    key = record.features.features_key
    if len(by_name) != len(members):
        yield "a member stands twice"
    if set(by_name) != {"json", key, *record.patch_positions_keys}:
        yield "its members are not those that its json names"
    positions: list[npt.NDArray[np.int32]] = []
    for name in record.patch_positions_keys:
        if name in by_name:
            try:
                positions.append(decode_npy(by_name[name], name=name))
            except ValueError as error:
                yield str(error)
    if positions_digest(positions) != record.positions_digest:
        yield "positions_digest does not agree with the positions"
    if sum(map(len, positions)) != record.num_tokens * record.merge**2:
        yield f"{sum(map(len, positions))} positions for {record.num_tokens} tokens of {record.merge} x {record.merge}"
    if key in by_name:
        yield from _check_tensors(by_name[key], key, record)


def _check_record(record: FeatureRecord, committed: CommittedSample, config: FeatureConfig) -> Iterator[str]:
    info = record.features
    pairs: dict[str, tuple[object, object]] = {
        "line": (record.provenance.manifest_line, committed.line),
        "id": (record.provenance.id, committed.id),
        "num_images": (len(record.image_keys), committed.num_images),
        "num_tokens": (record.num_tokens, committed.num_tokens),
    }
    for name, (said, commit_says) in pairs.items():
        if said != commit_says:
            yield f"its json says {name} {said!r}, its commit {commit_says!r}"
    for name in ("encoder_digest", "stage", "dtype", "compute_dtype", "width"):
        if getattr(info, name) != getattr(config, name):
            yield f"its json says {name} {getattr(info, name)!r}, run.json {getattr(config, name)!r}"
    if record.provenance.config_digest != config.source_config_digest:
        yield "its json is of a sample of another token run"
    rows = num_rows(record.num_tokens, stage=info.stage, merge=record.merge)
    if info.num_rows != rows:
        yield f"its json says {info.num_rows} rows, its tokens make {rows}"


def _check_tensors(data: bytes, key: str, record: FeatureRecord) -> Iterator[str]:
    info = record.features
    try:
        spans = read_header(data)
    except ValueError as error:
        yield f"{key}: {error}"
        return
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {FEATURES: (TYPE_OF[info.dtype], (info.num_rows, info.width))}
    if info.dtype == "int8":
        wanted[SCALES] = ("F32", (info.num_rows,))
    found = {name: (span.dtype, span.shape) for name, span in spans.items()}
    if found != wanted:
        yield f"{key}: holds {found}, must be {wanted}"
        return
    for name, span in spans.items():
        if span.dtype != "I8" and not _all_finite(memoryview(data)[span.start : span.stop], span.dtype):
            yield f"{key}: {name} has values that are not finite"


def _all_finite(data: "memoryview[int]", dtype: str) -> bool:
    """A bfloat16 is the upper half of a float32: not finite where all bits of its exponent are set."""
    for start in range(0, len(data), _CHUNK_BYTES):
        part = data[start : start + _CHUNK_BYTES]
        if dtype == "BF16":
            exponents = np.frombuffer(part, "<u2") & 0x7F80
            if (exponents == 0x7F80).any():
                return False
        elif not np.isfinite(np.frombuffer(part, "<f4")).all():
            return False
    return True
