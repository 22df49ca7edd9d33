"""Does a stage hold what it says? Findings as text, each with what to do; an empty list means yes.

Enters: a stage. Quick: the index against stage.json (packs, limits, sums, digest, nobody twice) and the tars by size. Deep: every
pack is loaded too, so each slice is read, each KEY.json held against its key, and each picture decoded; with a processor, each
sample's length is counted anew.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ov2_core.data.mixture import sample_hash
from ov2_core.data.packed_batch import PackEncoder
from ov2_core.data.read_pack import BadPackError, Packs, open_packs
from ov2_core.data.stage import PackIndex, StageDigest, load_stage, load_tars, pack_key, relocate
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import tar_rel
from schemas.stage import StagePack, StageRecord

_ANEW = "build the stage anew into an empty folder"
_MAX_FINDINGS = 100


@dataclass(slots=True)
class StageCheck:
    """What was looked at, and what was found."""

    num_packs: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    num_images: int = 0
    """Decoded; 0 for a quick check."""
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.errors


def verify_stage(
    store: Store, *, deep: bool = True, moved: dict[str, str] | None = None, processor: Any = None
) -> StageCheck:
    """Checks a finished stage.

    Args:
        processor: with `deep`, lengths are counted anew.

    Raises:
        ValueError: no finished stage stands there.
    """
    record = load_stage(store)
    check = StageCheck()
    findings = _findings(store, record, check, moved=moved or {}, deep=deep, processor=processor)
    for finding in findings:
        check.errors.append(finding)
        if len(check.errors) == _MAX_FINDINGS:
            check.errors.append("more findings are not listed")
            break
    return check


def _findings(
    store: Store, record: StageRecord, check: StageCheck, *, moved: dict[str, str], deep: bool, processor: Any
) -> Iterator[str]:
    try:
        tars = load_tars(store)
    except (OSError, ValueError) as error:
        yield f"tars.parquet cannot be read ({error}); {_ANEW}"
        return
    digest = StageDigest()
    hashes: list[int] = []
    by_source: Counter[int] = Counter()
    index = PackIndex(store, record)
    for number in range(len(index)):
        try:
            pack = index[number]
        except (OSError, ValueError, KeyError) as error:
            yield f"pack {number} cannot be read from the index ({error}); {_ANEW}"
            return
        digest.add_pack(pack)
        yield from _check_pack(pack, record, len(tars))
        for sample in pack.samples:
            hashes.append(sample_hash(0, str(sample.source), sample.id))
            by_source[sample.source] += 1
            check.num_tokens += sample.num_tokens
        check.num_packs += 1
        check.num_samples += len(pack.samples)
    if digest.finish(tars) != record.digest:
        yield f"the packs are not those that stage.json was written for (digest); {_ANEW}"
    packing = record.packing
    for name, here, there in (
        ("samples", check.num_samples, packing.num_samples),
        ("tokens", check.num_tokens, packing.num_tokens),
        ("tars", len(tars), record.num_tars),
    ):
        if here != there:
            yield f"{here} {name} in the index, {there} in stage.json; {_ANEW}"
    if len(np.unique(np.array(hashes, np.uint64))) < len(hashes):
        yield f"a sample stands in the stage twice; {_ANEW}"
    for i, source in enumerate(record.sources):
        if by_source[i] != source.num_samples:
            yield f"source {source.name}: {by_source[i]} samples in the index, {source.num_samples} in stage.json; {_ANEW}"
    yield from _check_tars(store, record, moved)
    if deep:
        packs = open_packs(store, record, moved=moved)
        try:
            yield from _check_contents(packs, record, check, processor)
        finally:
            packs.close()


def _check_pack(pack: StagePack, record: StageRecord, num_tars: int) -> Iterator[str]:
    limit, most = record.packing.sequence_length, int(record.config["max_samples"])
    if pack.key != pack_key(pack.number):
        yield f"pack {pack.number} is called {pack.key!r}; {_ANEW}"
    if pack.num_tokens != sum(sample.num_tokens for sample in pack.samples) or not 0 < pack.num_tokens <= limit:
        yield f"pack {pack.key} says {pack.num_tokens} tokens, at most {limit} and the sum of its samples; {_ANEW}"
    if len(pack.samples) > most:
        yield f"pack {pack.key} holds {len(pack.samples)} samples, at most {most}; {_ANEW}"
    if any(medium.tar >= num_tars for sample in pack.samples for medium in sample.media):
        yield f"pack {pack.key} names a tar that tars.parquet lacks; {_ANEW}"


def _check_tars(store: Store, record: StageRecord, moved: dict[str, str]) -> Iterator[str]:
    """Sizes: of the tars that the index names, or of the stage's own shards."""
    if record.form == "shards":
        wanted = [(store, tar_rel(commit.shard), commit.tar_bytes) for commit in iter_commits(store)]
        remedy = "remove its commit and run `ov2 curriculum` again"
    else:
        wanted = [
            (store if tar.run == "." else Store(relocate(tar.run, moved)), tar.name, tar.num_bytes)
            for tar in load_tars(store)
        ]
        remedy = "bring it back, or say where it went (--moved OLD=NEW)"
    for where, name, num_bytes in wanted:
        try:
            size = where.size(name)
        except OSError as error:
            yield f"{where.url(name)} cannot be read ({error}); {remedy}"
            continue
        if size != num_bytes:
            yield f"{where.url(name)} has {size} bytes, {num_bytes} when the stage was built; {remedy}"


def _check_contents(packs: Packs, record: StageRecord, check: StageCheck, processor: Any) -> Iterator[str]:
    encoder = PackEncoder(processor, exact_lengths=record.lengths == "exact") if processor is not None else None
    if len(packs) != record.packing.num_packs:
        yield f"the shards hold {len(packs)} packs, stage.json says {record.packing.num_packs}; {_ANEW}"
    for number in range(len(packs)):
        try:
            pack = packs.load(number, skip_bad=False)
            if encoder is not None:
                encoder.encode(pack, on_bad="raise")
        except BadPackError as error:
            yield str(error)
            continue
        if pack.key != pack_key(number):
            yield f"pack {number} is called {pack.key!r} in the shards; {_ANEW}"
        for sample in pack.samples:
            for visual in sample.media:
                try:
                    check.num_images += sum(1 for _ in visual.images())
                except (ValueError, KeyError) as error:
                    yield f"pack {pack.key}, sample {sample.id}: {error}"
