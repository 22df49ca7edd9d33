"""What a training step has seen, and which steps have seen a sample or a video.

Enters: CKPT (run.json, lineage.jsonl) and its stage. Leaves: `StepLineage`: packs, samples, media, and of each medium the file it
was cut from, as its token shard says (of a stage made of shards, its key alone). Neither the model nor torch is needed; of a token
shard one small range is read for a medium.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ov2_core.data.stage import PackIndex, TarTable, load_stage, relocate
from ov2_core.storage.files import Store
from ov2_core.train.metrics import LINEAGE, METRICS, read_lines
from ov2_core.train.run_files import read_run
from schemas.stage import StageMedium, StagePack, StageRecord
from schemas.tokens import SampleRecord

TAIL_BYTES = 64 << 10
"""Of a medium's slice, whose last member is its KEY.json; what is longer is read whole."""
_BLOCK = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumSeen:
    """One video or still of a sample."""

    key: str
    kind: Literal["video", "image"]
    mode: str | None = None
    """codec, uniform or still; None where it could not be read."""
    uri: str | None = None
    """The file it was cut from."""
    start_seconds: float | None = None
    end_seconds: float | None = None
    """Of the file; None: its beginning, its end."""
    tar: str | None = None
    """The token shard."""
    unreadable: str | None = None
    """Why `uri` is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSeen:
    """One sample of a pack."""

    source: str
    id: str
    num_tokens: int
    num_supervised_tokens: int
    media: tuple[MediumSeen, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSeen:
    """One sequence."""

    number: int
    key: str
    num_tokens: int
    samples: tuple[SampleSeen, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLineage:
    """One step of a run."""

    step: int
    epoch: int
    applied: bool
    """False: the guard left the weights as they were."""
    skipped_samples: int
    """Of these samples, could not be read and were left out."""
    skipped_tars: dict[str, int]
    """Where: samples left out by tar."""
    packs: tuple[PackSeen, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        samples = [sample for pack in self.packs for sample in pack.samples]
        tokens = sum(pack.num_tokens for pack in self.packs)
        lines = [
            f"step {self.step}, epoch {self.epoch}: {len(self.packs)} packs, {len(samples)} samples, {tokens:,} tokens"
            + ("" if self.applied else "; NOT APPLIED: the guard left the weights as they were (bad_steps.jsonl)")
        ]
        for tar, number in self.skipped_tars.items():
            lines.append(f"left out, for they could not be read: {number} samples of {tar}")
        for pack in self.packs:
            lines.append(f"{pack.key}: {pack.num_tokens:,} tokens")
            for sample in pack.samples:
                lines.append(f"  {sample.source}/{sample.id}: {sample.num_tokens:,} tokens")
                lines += [f"    {_medium_text(medium)}" for medium in sample.media]
        return lines


class Lineage:
    """A run's steps and its stage."""

    def __init__(self, run: Path, *, stage: str | None = None, moved: Mapping[str, str] | None = None) -> None:
        """
        Args:
            run: CKPT.
            stage: where the run's stage lies now; None: where it lay.
            moved: {old: new} prefixes of token runs that lie elsewhere than when the stage was built.

        Raises:
            ValueError: no run, no stage there, or another stage than the run's.
        """
        fields = read_run(run)
        self.run = run
        self._store = Store(stage or fields["stage"])
        self.record: StageRecord = load_stage(self._store)
        if self.record.digest != fields["stage_digest"]:
            raise ValueError(
                f"{self._store.root} is not the stage that {run} was trained on (digest {self.record.digest[:12]}, must be "
                f"{fields['stage_digest'][:12]}); give its place with --stage"
            )
        self._index = PackIndex(self._store, self.record)
        self._tars = TarTable(self._store)
        self._moved = {**{old: new for old, new in fields.get("moved", [])}, **(moved or {})}
        self._runs = lru_cache(maxsize=None)(self._open_run)

    def step(self, step: int) -> StepLineage:
        """What a step has seen.

        Raises:
            ValueError: the run has made no such step.
        """
        last = 0
        for fields in read_lines(self.run / LINEAGE):
            last = int(fields["step"])
            if last == step:
                return StepLineage(
                    step=step,
                    epoch=int(fields["epoch"]),
                    applied=self._applied(step),
                    skipped_samples=int(fields["skipped_samples"]),
                    skipped_tars=dict(fields.get("skipped_tars", {})),
                    packs=tuple(self._pack(self._index[number]) for number in fields["packs"]),
                )
        raise ValueError(f"{self.run} has made no step {step}; its steps are 1 to {last}")

    def steps_of_sample(self, source: str, id: str) -> list[int]:
        """Steps that have seen a sample. Raises ValueError where the stage holds no such sample."""
        if source not in self._source_names():
            raise ValueError(f"the stage has no source {source!r}; its sources: {', '.join(self._source_names())}")
        number = self._source_names().index(source)
        packs = {pack.number for pack in self._index if any((s.source, s.id) == (number, id) for s in pack.samples)}
        if not packs:
            raise ValueError(f"the stage holds no sample {id!r} of source {source!r}")
        return list(self._steps_of_packs(packs))

    def steps_of_medium(self, key: str) -> list[int]:
        """Steps that have seen a video or still, by its key. Raises ValueError where the stage holds no such medium."""
        packs = {
            pack.number
            for pack in self._index
            if any(medium.key == key for sample in pack.samples for medium in sample.media)
        }
        if not packs:
            raise ValueError(f"the stage holds no medium with key {key!r}; `ov2 lineage --step N` shows keys")
        return list(self._steps_of_packs(packs))

    def _steps_of_packs(self, packs: set[int]) -> Iterator[int]:
        for fields in read_lines(self.run / LINEAGE):
            if not packs.isdisjoint(fields["packs"]):
                yield int(fields["step"])

    def _source_names(self) -> list[str]:
        return [source.name for source in self.record.sources]

    def _applied(self, step: int) -> bool:
        return all(fields["applied"] for fields in read_lines(self.run / METRICS) if fields["step"] == step)

    def _pack(self, pack: StagePack) -> PackSeen:
        return PackSeen(
            number=pack.number,
            key=pack.key,
            num_tokens=pack.num_tokens,
            samples=tuple(
                SampleSeen(
                    source=self._source_names()[sample.source],
                    id=sample.id,
                    num_tokens=sample.num_tokens,
                    num_supervised_tokens=sample.num_supervised_tokens,
                    media=tuple(self._medium(medium) for medium in sample.media),
                )
                for sample in pack.samples
            ),
        )

    def _medium(self, medium: StageMedium) -> MediumSeen:
        if self.record.form == "shards":
            return MediumSeen(key=medium.key, kind=medium.kind)
        tar = self._tars[medium.tar]
        store = self._runs(tar.run)
        try:
            found = _read_record(store, tar.name, medium)
        except (OSError, ValueError) as error:
            return MediumSeen(key=medium.key, kind=medium.kind, tar=store.url(tar.name), unreadable=str(error))
        return MediumSeen(
            key=medium.key,
            kind=medium.kind,
            mode=found.mode,
            uri=found.provenance.uri,
            start_seconds=found.provenance.start_seconds,
            end_seconds=found.provenance.end_seconds,
            tar=store.url(tar.name),
        )

    def _open_run(self, run: str) -> Store:
        return Store(self._store.root if run == "." else relocate(run, self._moved))


def _read_record(store: Store, tar: str, medium: StageMedium) -> SampleRecord:
    """KEY.json of a slice. Raises OSError, ValueError."""
    stop = medium.byte_offset + medium.byte_size
    for num_bytes in (TAIL_BYTES, medium.byte_size):
        data = store.read_range(tar, stop - min(num_bytes, medium.byte_size), stop)
        for at in range(len(data) - _BLOCK, -1, -_BLOCK):
            header = data[at : at + _BLOCK]
            if header[257:262] != b"ustar" or not header.startswith(f"{medium.key}.json\0".encode()):
                continue
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            return SampleRecord.model_validate_json(data[at + _BLOCK : at + _BLOCK + info.size])
    raise ValueError(f"no {medium.key}.json where the index says; the tar was changed since")


def _medium_text(medium: MediumSeen) -> str:
    text = f"{medium.mode or medium.kind} {medium.key}"
    if medium.unreadable is not None:
        return f"{text}: its file is not known: {medium.unreadable}"
    if medium.uri is None:
        return text
    if medium.start_seconds is None and medium.end_seconds is None:
        return f"{text}: {medium.uri}"
    end = "its end" if medium.end_seconds is None else f"{medium.end_seconds:g} s"
    return f"{text}: {medium.uri}, {medium.start_seconds or 0:g} s to {end}"
