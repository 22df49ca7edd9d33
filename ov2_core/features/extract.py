"""A committed token shard to the samples of its feature shard, in the same order.

    read (thread) -> pack -> decode + patchify (threads) -> encode (thread) -> gather by key -> members

Enters: the source's store, a shard's commit, an encoder. Leaves: one FeatureSample after the other, and a ledger row for each
sample that cannot be read. Each part of a batch names its sample and its place in it; what the encoder returns is put there by
that name, never by the order in which it comes. Pixels exist for the batches in hand alone, so memory does not grow with a
video's length but for its features.

Shape letters: P patches, T rows, D values of a row.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ov2_core.features.ahead import iterate_ahead, map_ahead
from ov2_core.features.batching import Span, pack_spans
from ov2_core.features.encoder import FeatureEncoder, Launched, PixelBatch
from ov2_core.features.layout import (
    FEATURES_KEY,
    feature_info,
    header_bytes,
    image_digest,
    num_rows,
    position_members,
)
from ov2_core.features.stored_rows import TORCH_TYPE
from ov2_core.model.patches import patchify, to_block_order
from ov2_core.model.visual import Visual, show_sample
from ov2_core.storage.files import Store
from ov2_core.storage.layout import tar_rel
from ov2_core.storage.reader import StoredSample
from ov2_core.storage.writer import Member, canonical_json, positions_digest
from schemas.features import FeatureConfig, FeatureRecord
from schemas.shard import CommitRecord, CommittedSample, QuarantineReason, QuarantineRow
from schemas.video import ManifestRow

SAMPLES_AHEAD = 2


class SourceLostError(RuntimeError):
    """The source run is not what its commits say: nothing that one sample is to blame for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSample:
    """One sample, ready for a tar."""

    source: CommittedSample
    members: list[Member]
    record: FeatureRecord


@dataclass(kw_only=True, slots=True)
class Timings:
    """Where the time of one shard went, seconds of wall clock."""

    encode_seconds: float = 0.0
    """The encoder at work: from a launch to its result."""
    starved_seconds: float = 0.0
    """The encoder waited for pixels."""
    blocked_seconds: float = 0.0
    """The encoder waited for the writer."""
    num_batches: int = 0
    num_flops: float = 0.0


@dataclass(slots=True)
class _Source:
    """A sample while its parts are on their way."""

    committed: CommittedSample
    stored: StoredSample
    visual: Visual
    digest: str
    """Of the images."""
    values_TD: Tensor
    scales_T: Tensor | None
    rows_done: int = 0


@dataclass(slots=True)
class _Fallen:
    """Samples that ended in the ledger; written by decoding threads, read by all."""

    rows: dict[str, QuarantineRow] = field(default_factory=dict)

    def add(
        self, sample: CommittedSample, error: object, source: StoredSample | None, reason: QuarantineReason
    ) -> None:
        self.rows.setdefault(sample.key, quarantine_sample(sample, reason=reason, message=str(error), source=source))


def quarantine_sample(
    sample: CommittedSample,
    *,
    reason: QuarantineReason,
    message: str,
    source: StoredSample | None = None,
    attempts: int = 1,
) -> QuarantineRow:
    """The ledger row of a sample without features. Where its record can be read, the row tokenizes its video anew."""
    row = uri = None
    if source is not None:
        try:
            found = source.record.provenance
            uri = found.uri
            medium = "image" if source.record.media == "image" else "video"
            fields: dict[str, object] = {medium: uri, "id": found.id, "messages": source.record.messages}
            if medium == "video":
                fields |= {"start": found.start_seconds, "end": found.end_seconds}
            row = ManifestRow.model_validate(fields)
        except ValueError:
            row = None
    return QuarantineRow(
        line=sample.line,
        id=sample.id,
        uri=uri,
        reason=reason,
        stage="encode",
        message=message.encode("utf-8", "replace").decode()[:4000],
        attempts=attempts,
        row=row,
    )


@contextmanager
def extract_shard(
    source: Store,
    commit: CommitRecord,
    encoder: FeatureEncoder,
    *,
    tokens_per_batch: int,
    decode_threads: int = 1,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    timings: Timings | None = None,
) -> Iterator[Iterator[FeatureSample | QuarantineRow]]:
    """While the context is open: the shard's samples in tar order, each with its features or as a ledger row.

    tokens_per_batch: merged tokens of a batch; a group that is larger is a batch alone. Values do not depend on it beyond
        rounding.
    only, skip: keys to take, or to leave out.

    Raises:
        SourceLostError: the tar is not there, or is not of the committed size.
        MemoryError: of a batch.
    """
    check_source_tar(source, commit)
    samples = [s for s in commit.samples if s.key not in skip and (only is None or s.key in only)]
    timings = timings if timings is not None else Timings()
    fallen, sources = _Fallen(), dict[str, _Source]()
    config = encoder.config

    def opened() -> Iterator[tuple[str, Sequence[int]]]:
        with iterate_ahead(_read(source, commit, samples, config, fallen), depth=SAMPLES_AHEAD, name="read") as found:
            for item in found:
                sources[item.committed.key] = item
                yield item.committed.key, item.visual.group_lengths()

    packed = pack_spans(opened(), max_patches=tokens_per_batch * config.merge**2)
    batches = map_ahead(lambda spans: _decode(spans, sources, fallen, encoder), packed, num_threads=decode_threads)
    with (
        closing(packed),
        closing(batches),
        iterate_ahead(_encode(batches, encoder, timings), depth=1, name="encode") as encoded,
    ):
        yield _gather(encoded, samples, sources, fallen, config)


def check_source_tar(source: Store, commit: CommitRecord) -> None:
    """Raises SourceLostError unless the published tar has the committed size."""
    rel = tar_rel(commit.shard)
    try:
        size = source.size(rel)
    except FileNotFoundError:
        size = -1
    if size != commit.tar_bytes:
        found = "is missing" if size < 0 else f"has {size} bytes, committed {commit.tar_bytes}"
        raise SourceLostError(f"{source.url(rel)} {found}; `ov2 verify {source.root}` tells what to do")


def _read(
    source: Store, commit: CommitRecord, samples: list[CommittedSample], config: FeatureConfig, fallen: _Fallen
) -> Iterator[_Source]:
    """Samples as they lie in the tar, checked but for their images."""
    rel = tar_rel(commit.shard)
    for sample in samples:
        data = source.read_range(rel, sample.byte_offset, sample.byte_offset + sample.byte_size)
        stored = StoredSample(key=sample.key, tar_name=rel, members=_members(data, sample))
        try:
            yield _open(sample, stored, config)
        except (ValueError, KeyError) as error:
            fallen.add(sample, error, stored, "damaged_sample")


def _members(data: bytes, sample: CommittedSample) -> list[Member]:
    members = []
    for part in sample.parts:
        start = part.content_byte_offset - sample.byte_offset
        members.append((part.name, data[start : start + part.content_byte_size]))
    return members


def _open(sample: CommittedSample, stored: StoredSample, config: FeatureConfig) -> _Source:
    record = stored.record
    if (record.provenance.id, record.num_tokens) != (sample.id, sample.num_tokens):
        raise ValueError(
            f"its json says id {record.provenance.id!r} and {record.num_tokens} tokens, not what its commit says"
        )
    if (record.patch_px, record.merge) != (config.patch_px, config.merge):
        raise ValueError(
            f"patches of {record.patch_px} px merged {record.merge} x {record.merge}, but the encoder takes "
            f"{config.patch_px} px and {config.merge} x {config.merge}"
        )
    if positions_digest(stored.positions_NP3) != record.positions_digest:
        raise ValueError("positions_digest does not agree with the positions")
    visual = show_sample(stored)
    if visual.num_tokens != sample.num_tokens:
        raise ValueError(f"{visual.num_tokens} tokens by its positions, {sample.num_tokens} by its commit")
    digest = image_digest(dict(stored.members), record.image_keys)
    rows = num_rows(sample.num_tokens, stage=config.stage, merge=config.merge)
    values_TD = torch.empty((rows, config.width), dtype=TORCH_TYPE[config.dtype])
    return _Source(sample, stored, visual, digest, values_TD, torch.empty(rows) if config.dtype == "int8" else None)


def _decode(
    spans: list[Span], sources: dict[str, _Source], fallen: _Fallen, encoder: FeatureEncoder
) -> tuple[list[Span], PixelBatch | None]:
    """Pixels and positions of a batch; parts of samples that fall are left out of it."""
    kept, pixels, positions = list[Span](), list[Tensor](), list[Tensor]()
    mean, std = encoder.pixel_stats
    for span in spans:
        if span.key in fallen.rows:
            continue
        item = sources.get(span.key)
        if item is None:
            continue  # it fell just now, and was dropped
        visual = item.visual
        patches = visual.rows * visual.columns
        first, count = span.first_patch // patches, span.num_patches // patches
        try:
            pixels.append(
                patchify(
                    (_image(visual, index) for index in range(first, first + count)),
                    num_patches=span.num_patches,
                    patch_px=visual.patch_px,
                    merge=visual.merge,
                    mean=mean,
                    std=std,
                    dtype=encoder.pixel_dtype,
                )
            )
        except ValueError as error:
            fallen.add(item.committed, error, item.stored, "damaged_sample")
            continue
        raster = visual.positions_NP3[first : first + count]
        ordered = to_block_order(raster, rows=visual.rows, columns=visual.columns, merge=visual.merge)
        positions.append(torch.from_numpy(ordered.reshape(-1, 3).astype(np.int64)))
        kept.append(span)
    if not kept:
        return [], None
    batch = PixelBatch(
        pixels=_joined(pixels, pinned=encoder.device.type == "cuda"),
        positions=_joined(positions, pinned=encoder.device.type == "cuda"),
        group_lengths=[length for span in kept for length in span.group_lengths],
    )
    return kept, batch


def _image(visual: Visual, index: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    image = visual.image(index)
    expected = (visual.rows * visual.patch_px, visual.columns * visual.patch_px, 3)
    if image.shape != expected:
        raise ValueError(f"image {index} is {list(image.shape)}, its positions say {list(expected)}")
    return image


def _joined(parts: list[Tensor], *, pinned: bool) -> Tensor:
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined.pin_memory() if pinned else joined


_Encoded = tuple[list[Span], Tensor, Tensor | None]


def _encode(
    batches: Iterator[tuple[list[Span], PixelBatch | None]], encoder: FeatureEncoder, timings: Timings
) -> Iterator[_Encoded]:
    """Rows of each batch; one is in flight while the next is launched."""
    flying: tuple[list[Span], Launched] | None = None
    while True:
        began = time.perf_counter()
        spans, batch = next(batches, (None, None))
        timings.starved_seconds += time.perf_counter() - began
        if spans is None:
            break
        if batch is None:
            continue
        began = time.perf_counter()
        launched = encoder.launch(batch)
        landed = None if flying is None else (flying[0], *flying[1].wait())
        flying = spans, launched
        timings.encode_seconds += time.perf_counter() - began
        timings.num_batches += 1
        timings.num_flops += encoder.num_flops(batch.group_lengths)
        if landed is not None:
            began = time.perf_counter()
            yield landed
            timings.blocked_seconds += time.perf_counter() - began
    if flying is not None:
        began = time.perf_counter()
        landed = flying[0], *flying[1].wait()
        timings.encode_seconds += time.perf_counter() - began
        yield landed


def _gather(
    encoded: Iterator[_Encoded],
    samples: list[CommittedSample],
    sources: dict[str, _Source],
    fallen: _Fallen,
    config: FeatureConfig,
) -> Iterator[FeatureSample | QuarantineRow]:
    """Rows to their samples by key; samples leave in tar order as they are complete."""
    patches_per_row = config.merge**2 if config.stage == "merged" else 1
    complete: set[str] = set()
    left = iter(samples)
    waiting = next(left, None)
    while waiting is not None:
        if waiting.key in fallen.rows:
            sources.pop(waiting.key, None)
            yield fallen.rows[waiting.key]
            waiting = next(left, None)
            continue
        if waiting.key in complete:
            yield _finish(sources.pop(waiting.key), config)
            waiting = next(left, None)
            continue
        landed = next(encoded, None)
        if landed is None:
            # The threads have ended; a sample that fell last may have been added since the look above.
            assert waiting.key in fallen.rows, f"{waiting.key} came to no end"
            continue
        spans, values_TD, scales_T = landed
        at = 0
        for span in spans:
            rows = slice(at, at + span.num_patches // patches_per_row)
            at = rows.stop
            item = sources.get(span.key)
            if item is None or span.key in fallen.rows:
                assert span.key in fallen.rows, f"{span.key} is encoded after it ended"
                continue
            _put(
                item, span.first_patch // patches_per_row, values_TD[rows], None if scales_T is None else scales_T[rows]
            )
            if item.rows_done == len(item.values_TD):
                complete.add(span.key)
        assert at == len(values_TD), f"{len(values_TD)} rows came back for {at}"


def _put(item: _Source, first_row: int, values_TD: Tensor, scales_T: Tensor | None) -> None:
    rows = slice(first_row, first_row + len(values_TD))
    item.values_TD[rows] = values_TD
    if item.scales_T is not None and scales_T is not None:
        item.scales_T[rows] = scales_T
    item.rows_done += len(values_TD)


def _finish(item: _Source, config: FeatureConfig) -> FeatureSample | QuarantineRow:
    checked = item.values_TD if item.scales_T is None else item.scales_T
    if not bool(torch.isfinite(checked).all()):
        bad = int((~torch.isfinite(checked)).reshape(len(checked), -1).any(dim=1).sum())
        return quarantine_sample(
            item.committed,
            reason="internal_error",
            message=f"the encoder made values that are not finite in {bad} of {len(checked)} rows; computed in "
            f"{config.compute_dtype}, try --dtype fp32",
            source=item.stored,
        )
    rows = len(item.values_TD)
    record = FeatureRecord(
        **{name: getattr(item.stored.record, name) for name in type(item.stored.record).model_fields},
        features=feature_info(config, rows=rows, source_digest=item.digest),
    )
    parts = [header_bytes(rows, config.width, config.dtype)]
    if item.scales_T is not None:
        parts.append(_raw(item.scales_T))
    members = [
        (FEATURES_KEY, b"".join([*parts, _raw(item.values_TD)])),
        *position_members(item.stored.members),
        ("json", canonical_json(record)),
    ]
    return FeatureSample(source=item.committed, members=members, record=record)


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
