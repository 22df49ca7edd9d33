"""Measured chunks to a stage's index: the draw is closed, sequences are packed, packs are written.

Enters: each source's committed chunks and its count. Leaves: packs, tars.parquet, dropped.jsonl, missing/<source>.jsonl and the
StageRecord, which the caller writes last. Of the samples' texts a few chunks are in memory at a time; of all samples, their
lengths and places in the chunks.
"""

import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ov2_core import config as configs
from ov2_core.data.chunks import OWN_RUN, ChunkDone, dropped_of, read_lines
from ov2_core.data.mixture import interleave
from ov2_core.data.packing import pack
from ov2_core.data.records import manifest_row
from ov2_core.data.runs import tar_digests
from ov2_core.data.stage import DROPPED_JSONL, pack_key, write_packs
from ov2_core.data.stage_config import SourceSpec, StageConfig
from ov2_core.make_sample import GENERATOR
from ov2_core.storage.files import Store
from ov2_core.storage.writer import canonical_json
from schemas.records import MediaRef
from schemas.shard import QuarantineRow
from schemas.stage import (
    DroppedSample,
    PackingStats,
    StageMedium,
    StagePack,
    StageRecord,
    StageSample,
    StageSource,
    StageTar,
)
from schemas.video import Message

BLOCKS_PER_PART = 256
_CACHED_CHUNKS = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePart:
    """One source, measured."""

    spec: SourceSpec
    num_available: int
    quarantined: list[QuarantineRow]
    chunks: list[ChunkDone]
    """In the order of the source."""
    count: int
    """Samples that the stage takes: the first usable ones of the draw."""


def assemble(
    store: Store,
    config: StageConfig,
    *,
    seed: int,
    tokenizer_digest: str,
    lengths_are: Literal["exact", "bound"],
    parts: Sequence[SourcePart],
) -> StageRecord:
    """Writes all of the stage but stage.json.

    Raises:
        ValueError: a source has fewer usable samples than its count.
    """
    chosen = [_choose(part) for part in parts]
    order = interleave([len(places) for places in chosen])
    lengths = np.array([chosen[source][place, 2] for source, place in order.tolist()], np.int64)
    packs = pack(lengths, config.packing())
    tars = _Tars(store)
    sources = [_new_stats(part) for part in parts]
    chunks = _ChunkCache(store, parts)

    def make_packs() -> Iterator[StagePack]:
        for number, samples in enumerate(packs):
            made = []
            for source, place in order[samples].tolist():
                chunk, line, _ = chosen[source][place].tolist()
                made.append(_sample(chunks.line(source, chunk, line), source, tars, sources[source]))
            yield StagePack(
                number=number, key=pack_key(number), num_tokens=sum(s.num_tokens for s in made), samples=made
            )

    packs_per_part = config.packs_per_block * BLOCKS_PER_PART
    written = write_packs(
        store, make_packs(), tars.records, packs_per_block=config.packs_per_block, packs_per_part=packs_per_part
    )
    write_dropped(store, parts)
    counts = np.diff(packs.starts)
    filled = {part.spec.slot.name for part in parts}
    return StageRecord(
        recipe=config.name,
        recipe_version=config.version,
        config=configs.to_dict(config),
        seed=seed,
        form="index",
        tokenizer_digest=tokenizer_digest,
        lengths=lengths_are,
        packs_per_block=config.packs_per_block,
        packs_per_part=packs_per_part,
        num_tars=len(tars.numbers),
        digest=written.digest,
        sources=[stats.record() for stats in sources],
        missing_slots=[slot.name for slot in config.slots if slot.name not in filled],
        packing=PackingStats(
            sequence_length=config.sequence_length,
            num_packs=len(packs),
            num_samples=len(lengths),
            num_tokens=int(lengths.sum()),
            fill=packs.fill(lengths, config.sequence_length),
            max_samples=int(counts.max(initial=0)),
            samples_per_pack=np.bincount(counts).tolist(),
            sample_tokens=np.bincount(np.log2(lengths).astype(np.int64)).tolist() if len(lengths) else [],
        ),
        generator=GENERATOR,
    )


def _choose(part: SourcePart) -> npt.NDArray[np.int64]:
    """int64 [count, 3]: (chunk, line, tokens) of the samples that the stage takes, in the order of the chunks."""
    chunk = np.concatenate([np.full(len(done.hashes), i) for i, done in enumerate(part.chunks)])
    line = np.concatenate([np.arange(len(done.hashes)) for done in part.chunks])
    lengths = np.concatenate([done.lengths for done in part.chunks]).astype(np.int64)
    hashes = np.concatenate([done.hashes for done in part.chunks])
    usable = np.flatnonzero(lengths > 0)
    if len(usable) < part.count:
        raise ValueError(f"source {part.spec.name!r}: {part.count} samples asked, {len(usable)} usable")
    kept = np.sort(usable[np.argsort(hashes[usable], kind="stable")[: part.count]])
    return np.stack([chunk[kept], line[kept], lengths[kept]], axis=1).reshape(-1, 3)


def _sample(line: dict[str, Any], source: int, tars: "_Tars", stats: "_Stats") -> StageSample:
    media = [
        StageMedium(
            key=medium["key"],
            kind=medium["kind"],
            tar=tars.number(medium),
            byte_offset=medium["byte_offset"],
            byte_size=medium["byte_size"],
        )
        for medium in line["media"]
    ]
    sample = StageSample(
        source=source,
        id=line["id"],
        messages=[Message.model_validate(turn) for turn in line["messages"]],
        media=media,
        num_tokens=line["num_tokens"],
        num_visual_tokens=line["num_visual_tokens"],
        num_supervised_tokens=line["num_supervised_tokens"],
        num_rounds_cut=line["num_rounds_cut"],
    )
    stats.add(sample, line["modality"])
    return sample


class _Tars:
    """Numbers of tars, in the order in which packs first name them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.numbers: dict[tuple[str, str], int] = {}
        self._own: dict[str, tuple[str, int]] = {}

    def number(self, medium: dict[str, Any]) -> int:
        if medium["run"] == OWN_RUN:
            self._own[medium["tar"]] = (medium["digest"], medium["num_bytes"])
        return self.numbers.setdefault((medium["run"], medium["tar"]), len(self.numbers))

    def records(self) -> list[StageTar]:
        """All of them with their digests, which the runs' commits tell."""
        committed: dict[str, dict[str, tuple[str, int]]] = {OWN_RUN: self._own}
        records = []
        for (run, name), number in self.numbers.items():
            if run not in committed:
                committed[run] = tar_digests(Store(run))
            digest, num_bytes = committed[run][name]
            records.append(StageTar(number=number, run=run, name=name, digest=digest, num_bytes=num_bytes))
        return records


class _ChunkCache:
    """Lines of chunks, the last few chunks kept."""

    def __init__(self, store: Store, parts: Sequence[SourcePart]) -> None:
        self._store, self._parts = store, parts
        self._kept: OrderedDict[tuple[int, int], list[dict[str, Any]]] = OrderedDict()

    def line(self, source: int, chunk: int, line: int) -> dict[str, Any]:
        key = (source, chunk)
        if key not in self._kept:
            self._kept[key] = read_lines(self._store, self._parts[source].chunks[chunk].rel)
            if len(self._kept) > max(_CACHED_CHUNKS, 4 * len(self._parts)):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][line]


@dataclass(slots=True)
class _Stats:
    """What the stage takes of one source."""

    part: SourcePart
    totals: Counter[str] = field(default_factory=Counter)
    samples: Counter[Any] = field(default_factory=Counter)
    tokens: Counter[Any] = field(default_factory=Counter)

    def add(self, sample: StageSample, modality: str) -> None:
        self.samples[modality] += 1
        self.tokens[modality] += sample.num_tokens
        self.totals["samples"] += 1
        self.totals["tokens"] += sample.num_tokens
        self.totals["visual"] += sample.num_visual_tokens
        self.totals["supervised"] += sample.num_supervised_tokens
        self.totals["cut"] += sample.num_rounds_cut
        self.totals["bytes"] += sum(medium.byte_size for medium in sample.media)

    def record(self) -> StageSource:
        part, spec = self.part, self.part.spec
        dropped = sum((done.dropped for done in part.chunks), Counter[str]())
        return StageSource(
            name=spec.name,
            slot=spec.slot.name,
            importer=spec.importer,
            path=spec.path,
            weight=spec.share.weight,
            count=spec.share.count,
            num_available=part.num_available,
            num_quarantined=len(part.quarantined),
            num_tried=sum(len(done.hashes) for done in part.chunks),
            num_samples=self.totals["samples"],
            num_tokens=self.totals["tokens"],
            num_visual_tokens=self.totals["visual"],
            num_supervised_tokens=self.totals["supervised"],
            num_rounds_cut=self.totals["cut"],
            num_bytes=self.totals["bytes"],
            samples_by_modality=dict(self.samples),
            tokens_by_modality=dict(self.tokens),
            dropped=dict(sorted(dropped.items())),
        )


def _new_stats(part: SourcePart) -> _Stats:
    return _Stats(part=part)


def write_dropped(store: Store, parts: Sequence[SourcePart]) -> list[str]:
    """dropped.jsonl, and for each source a manifest of the media that no token run holds; returns the manifests' paths."""
    manifests: list[str] = []
    lines: list[bytes] = []
    for part in parts:
        name = part.spec.name
        for row in part.quarantined:
            file, _, message = row.message.partition(f":{row.line}: ")
            dropped = DroppedSample(
                source=name, id=row.id, file=file, row=row.line, reason=row.reason, message=message or row.message
            )
            lines.append(canonical_json(dropped))
        missing: dict[str, dict[str, Any]] = {}
        for done in part.chunks:
            if not done.dropped:
                continue
            for line in read_lines(store, done.rel):
                if "reason" in line:
                    lines.append(canonical_json(dropped_of(line, name)))
                    for given in line.get("missing", ()):
                        ref = MediaRef.model_validate(given)
                        missing[ref.key] = manifest_row(ref).model_dump(mode="json", exclude_defaults=True)
        if missing:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in missing.values())
            manifests.append(f"missing/{name}.jsonl")
            store.write_bytes(manifests[-1], text.encode())
    for name in store.list("missing"):
        if f"missing/{name}" not in manifests:  # of a stage that came to nothing here
            store.remove(f"missing/{name}")
    store.remove_empty_dirs("missing")
    store.write_bytes(DROPPED_JSONL, b"".join(line + b"\n" for line in lines))
    return manifests
