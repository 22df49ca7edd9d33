"""Chunks: the unit of work of the stage builder, and the file that commits one.

Enters: some records of one source with the bytes of their stills. Leaves: work/<source>/<chunk>.jsonl.gz in the stage, created
once; from then on the chunk is done, and a resume takes it as it is. A tar of stills that the chunk needs is put first, under the
name of its content, so a killed attempt leaves at most a tar that nothing names.

Lines stand in the order of their media (run, tar, offset), so that a stage built of them reads its shards near-sequentially.
"""

import gzip
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.data.importers import ImportedItem
from ov2_core.data.measure import FoundMedium, LeftOut, MeasuredSample, SampleMeasurer, Stills
from ov2_core.make_sample import NotHereError
from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store
from ov2_core.storage.writer import TarWritten, write_tar
from schemas.records import TrainingRecord
from schemas.stage import DroppedSample
from schemas.video import Message

CHUNK_RECORDS = 1024
CHUNK_BYTES = 64 << 20
"""Of stills in the rows."""
STILLS_DIR, WORK_DIR = "stills", "work"
OWN_RUN = "."


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A record that the draw chose, with its place in the draw."""

    hash: int
    record: TrainingRecord
    payloads: dict[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Records to be measured together. Named, so that each attempt writes the same file."""

    source: str
    name: str
    candidates: list[Candidate] = field(repr=False)
    asked: bool = False
    """Other nodes do not see its stills either: what is missing now is left out."""

    @property
    def rel(self) -> str:
        return f"{WORK_DIR}/{self.source}/{self.name}.jsonl.gz"

    @property
    def seen_rel(self) -> str:
        """Of the part that was committed first, where a node could not measure all of it."""
        return f"{WORK_DIR}/{self.source}/{self.name}-seen.jsonl.gz"

    def unseen(self, done: "ChunkDone") -> "Chunk | None":
        """What `done`, which is of this chunk, leaves to be measured; None: nothing."""
        hashes = set(done.hashes.tolist())
        rest = [candidate for candidate in self.candidates if candidate.hash not in hashes]
        return Chunk(source=self.source, name=f"{self.name}-unseen", candidates=rest) if rest else None

    def halves(self) -> "list[Chunk]":
        """Two chunks of half the records; for one that kills its workers."""
        middle = len(self.candidates) // 2
        parts = (self.candidates[:middle], self.candidates[middle:])
        return [Chunk(source=self.source, name=f"{self.name}-{i}", candidates=part) for i, part in enumerate(parts)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkDone:
    """What the builder keeps of a committed chunk in memory."""

    rel: str
    hashes: npt.NDArray[np.uint64] = field(repr=False)
    """Of each line."""
    lengths: npt.NDArray[np.int32] = field(repr=False)
    """Tokens of each line; 0 for one that is left out."""
    dropped: Counter[str]


def make_chunks(items: Iterable[ImportedItem], wanted: "dict[str, int]", *, source: str, first: int) -> Iterator[Chunk]:
    """Chunks of the items whose ids are wanted, in the order of the source; ended by number and by bytes of stills.

    wanted: hash by id. first: number of the first chunk.
    """
    held: list[Candidate] = []
    num_bytes = 0
    for item in items:
        record = item.record
        if record is None or record.id not in wanted:
            continue
        held.append(Candidate(hash=wanted[record.id], record=record, payloads=dict(item.payloads)))
        num_bytes += sum(map(len, item.payloads.values()))
        if len(held) == CHUNK_RECORDS or num_bytes >= CHUNK_BYTES:
            yield Chunk(source=source, name=f"{first:06d}", candidates=held)
            held, num_bytes, first = [], 0, first + 1
    if held:
        yield Chunk(source=source, name=f"{first:06d}", candidates=held)


def measure_chunk(store: Store, chunk: Chunk, measurer: SampleMeasurer, *, ask_elsewhere: bool = False) -> ChunkDone:
    """Measures and commits a chunk; another attempt may have been first, whose file then stands.

    ask_elsewhere: what this machine says of missing stills is not enough; records that need such are not among what is committed.

    Raises:
        NotHereError: that holds of all of them.
    """
    stills = Stills()
    results = [(c.hash, measurer.measure(c.record, c.payloads, stills)) for c in chunk.candidates]
    rel = chunk.rel
    if ask_elsewhere and not chunk.asked:
        seen = [pair for pair in results if not _is_missing(pair[1])]
        if results and not seen:
            raise NotHereError(next(result.message for _, result in results if isinstance(result, LeftOut)))
        if len(seen) < len(results):
            results, rel = seen, chunk.seen_rel
    tar_name, tar = "", None
    with tempfile.TemporaryDirectory(prefix="ov2-stills-") as folder:
        if stills.samples:
            made = [(key, sample.members) for key, sample in sorted(stills.samples.items())]
            tar = write_tar(os.path.join(folder, "stills.tar"), made)
            tar_name = f"{STILLS_DIR}/{tar.digest[:32]}.tar"
            if not store.exists(tar_name):
                store.put_file(tar.path, tar_name, move=True)
    failpoint("mid_chunk")
    lines = [_line(hash_, result, tar_name, tar) for hash_, result in results]
    lines.sort(key=_place)
    return commit_lines(store, rel, lines)


def _is_missing(result: MeasuredSample | LeftOut) -> bool:
    return isinstance(result, LeftOut) and result.reason == "source_missing"


def condemn_chunk(store: Store, chunk: Chunk, *, reason: str, message: str) -> ChunkDone:
    """Commits a chunk whose records cannot be measured, as left out."""
    lines = [
        _line(c.hash, LeftOut(record=c.record, reason=reason, message=message), "", None) for c in chunk.candidates
    ]
    return commit_lines(store, chunk.rel, lines)


def commit_lines(store: Store, rel: str, lines: Sequence[dict[str, Any]]) -> ChunkDone:
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    store.create_bytes(rel, gzip.compress(text.encode(), 5, mtime=0))
    failpoint("after_chunk")
    return load_chunk(store, rel)


def load_chunk(store: Store, rel: str) -> ChunkDone:
    """Numbers of a committed chunk."""
    lines = read_lines(store, rel)
    return ChunkDone(
        rel=rel,
        hashes=np.array([line["hash"] for line in lines], np.uint64),
        lengths=np.array([line.get("num_tokens", 0) for line in lines], np.int32),
        dropped=Counter(line["reason"] for line in lines if "reason" in line),
    )


def read_lines(store: Store, rel: str) -> list[dict[str, Any]]:
    """The lines of a committed chunk."""
    return [json.loads(line) for line in gzip.decompress(store.read_bytes(rel)).decode().splitlines()]


def committed_chunks(store: Store, source: str) -> set[str]:
    """Their paths below the stage."""
    return {f"{WORK_DIR}/{source}/{name}" for name in store.list(f"{WORK_DIR}/{source}") if name.endswith(".jsonl.gz")}


def dropped_of(line: dict[str, Any], source: str) -> DroppedSample:
    """A left-out line as a row of dropped.jsonl."""
    origin = line["origin"]
    return DroppedSample(
        source=source,
        id=line["id"],
        file=origin["file"],
        row=origin["row"],
        reason=line["reason"],
        message=line["message"],
    )


def _line(hash_: int, result: MeasuredSample | LeftOut, tar_name: str, tar: TarWritten | None) -> dict[str, Any]:
    record = result.record
    base = {"hash": hash_, "id": record.id, "modality": record.modality}
    if isinstance(result, LeftOut):
        missing = [ref.model_dump(mode="json", exclude_defaults=True) for ref in record.media if ref.uri is not None]
        return {
            **base,
            "reason": result.reason,
            "message": result.message,
            "origin": {"file": record.origin.file, "row": record.origin.row},
            **({"missing": missing} if result.reason == "unbound_media" else {}),
        }
    return {
        **base,
        "messages": [_turn(message) for message in result.messages],
        "media": [_medium(medium, tar_name, tar) for medium in result.media],
        "num_tokens": result.num_tokens,
        "num_visual_tokens": result.num_visual_tokens,
        "num_supervised_tokens": result.num_supervised_tokens,
        "num_rounds_cut": result.num_rounds_cut,
    }


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _medium(medium: FoundMedium, tar_name: str, tar: TarWritten | None) -> dict[str, Any]:
    place = medium.place
    if place is not None:
        where = (place.run, place.tar_name, place.byte_offset, place.byte_size)
    else:
        assert tar is not None
        made = next(sample for sample in tar.samples if sample.key == medium.ref.key)
        where = (OWN_RUN, tar_name, made.byte_offset, made.byte_size)
    run, name, offset, size = where
    digest = {"digest": tar.digest, "num_bytes": tar.num_bytes} if place is None and tar is not None else {}
    return {
        "key": medium.ref.key,
        "kind": medium.ref.kind,
        "run": run,
        "tar": name,
        "byte_offset": offset,
        "byte_size": size,
        **digest,
    }


def _place(line: dict[str, Any]) -> tuple[str, str, int, int]:
    media = line.get("media") or []
    first = (media[0]["run"], media[0]["tar"], media[0]["byte_offset"]) if media else ("", "", 0)
    return (*first, line["hash"])
