"""Finished token runs to one run, without making a sample again: `ov2 merge`.

Enters: two or more runs of the same config, code and libraries. Leaves: a run that is the first one with the others appended, in
the form in which `ov2 append` would have left it (ov2_core/rounds.py): the plan and the rounds of each later run become rounds,
its shards and lines are counted on. So every command on runs takes it, and `ov2 verify` proves its sum.

Tars are copied by the server or linked, not read, but for those of which a sample is left out because a run before has its id.
A copied tar's samples still tell the line of their own manifest: their commit's `line_offset` says the difference.

All names and bytes follow from the runs, so the same command goes on with a merge that was cut off; merge.json, created first,
refuses another one.
"""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq

from ov2_core.data.keys import IdLedger
from ov2_core.plan import iter_plan_rows, planned_text
from ov2_core.redact import redacted
from ov2_core.rounds import Rounds, RoundWriter, load_rounds, round_rel
from ov2_core.storage.commit import (
    collect_orphans,
    commit_attempt,
    committed_shards,
    finish_commits,
    iter_commits,
    load_commit,
)
from ov2_core.storage.files import Store
from ov2_core.storage.index import write_index
from ov2_core.storage.layout import (
    ATTEMPTS_DIR,
    MERGE_JSON,
    PLAN_JSON,
    SHARDS_DIR,
    shard_name,
    tar_rel,
)
from ov2_core.storage.writer import Member, canonical_json, iter_tar_members, write_tar
from pipelines.run_identity import claim_run, load_run_record, run_differences
from schemas.run import MergedRun, MergeRecord, RoundRecord, RunRecord
from schemas.shard import CommitRecord

NUM_THREADS = 8
"""Shards copied at once: a copy waits for the server."""
_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeSummary:
    """What one invocation did."""

    record: MergeRecord
    num_shards: int
    """Of the merged run."""
    num_shards_before: int
    """Committed before this invocation."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One run on its way into the merged one."""

    store: Store
    rounds: Rounds
    identity: RunRecord
    merged: MergedRun
    left_out: frozenset[int]
    """Its lines whose ids a run before it has."""


def merge_runs(sources: list[Store], store: Store, *, leave_out_duplicates: bool = False) -> MergeSummary:
    """Makes, or goes on with, a merged run: afterwards its shards are committed and published, and the index is written.

    leave_out_duplicates: rows whose ids a run before has are left out and counted; by default they are refused. Rows without
    an id (malformed ones) are never duplicates.

    Raises:
        ValueError: fewer than two runs, one that is not a finished token run, one of another config, code or libraries
            (each difference is named), ids in two runs, or the store holds something else.
    """
    _check_roots(sources, store)
    parts = list(_read_parts(sources, leave_out_duplicates=leave_out_duplicates))
    record = MergeRecord(runs=[part.merged for part in parts])
    _claim(store, record, parts[0].identity)
    _write_plan(store, parts)
    finish_commits(store)
    done = set(committed_shards(store))
    tasks = [(part, shard) for part in parts for shard in range(part.merged.num_shards)]
    missing = [(part, shard) for part, shard in tasks if part.merged.first_shard + shard not in done]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(lambda task: _take_shard(store, *task), missing):
            pass
    collect_orphans(store)
    write_index(store)
    return MergeSummary(record=record, num_shards=len(tasks), num_shards_before=len(tasks) - len(missing))


def _check_roots(sources: list[Store], store: Store) -> None:
    if len(sources) < 2:
        raise ValueError(f"merging takes at least two runs, got {len(sources)}")
    seen: set[str] = set()
    for one in [*sources, store]:
        root = os.path.realpath(one.local_root) if one.local_root is not None else one.root
        if root in seen:
            raise ValueError(f"{one.root} is given twice; give different runs and another --out")
        seen.add(root)


def _read_parts(sources: list[Store], *, leave_out_duplicates: bool) -> Iterator[_Part]:
    first: _Part | None = None
    first_shard = last_line = 0
    with IdLedger() as known:
        for source in sources:
            identity, rounds = _open_finished(source)
            if first is not None:
                _check_mergeable(first, source, identity, rounds)
            digest = _check_tars(source)
            left_out: dict[int, str] = {}
            kept: list[tuple[str, int]] = []
            own_last_line = 0
            for line, id in _iter_ids(rounds):
                own_last_line = max(own_last_line, line)
                if id is None:
                    continue
                if known.holds(id):
                    left_out[line] = id
                else:
                    kept.append((id, line))
            if left_out and not leave_out_duplicates:
                shown = ", ".join(sorted(set(left_out.values()))[:_NUM_NAMED])
                raise ValueError(
                    f"{len(left_out)} rows of {source.root} have ids that a run before it has: {shown}"
                    f"{', ..' if len(set(left_out.values())) > _NUM_NAMED else ''}; give --leave-out-duplicates to leave them out"
                )
            for id, line in kept:
                known.claim(id, last_line + line)
            part = _Part(
                store=source,
                rounds=rounds,
                identity=identity,
                merged=MergedRun(
                    root=redacted(source.root),
                    digest=digest,
                    first_shard=first_shard,
                    num_shards=rounds.num_shards,
                    line_offset=last_line,
                    num_rows=rounds.manifest_rows,
                    num_left_out=len(left_out),
                ),
                left_out=frozenset(left_out),
            )
            first = first or part
            first_shard, last_line = first_shard + rounds.num_shards, last_line + own_last_line
            yield part


def _open_finished(source: Store) -> tuple[RunRecord, Rounds]:
    identity, rounds = load_run_record(source), load_rounds(source)
    if identity is None or rounds is None:
        raise ValueError(f"{source.root} holds no run; give the folder that `ov2 tokenize --out` made")
    if "tokenizer" not in identity.config:
        raise ValueError(
            f"{source.root} is a run of {identity.recipe!r}; only token runs (`ov2 tokenize`) are merged: merge those, then make "
            "features and stages of the merged run"
        )
    num_missing = rounds.num_shards - len(committed_shards(source))
    if num_missing:
        raise ValueError(
            f"{source.root} has {num_missing} of {rounds.num_shards} shards to make; finish it first: "
            f"ov2 tokenize --manifest {identity.manifest_uri} --out {source.root} --recipe {identity.recipe}"
        )
    return identity, rounds


def _check_mergeable(first: _Part, source: Store, identity: RunRecord, rounds: Rounds) -> None:
    differences = run_differences(first.identity, identity)
    filters = first.rounds.filter_now(), rounds.filter_now()
    if filters[0] != filters[1]:
        differences.append(f"thresholds that `ov2 refilter` set: {filters[0]} there, {filters[1]} here")
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(
            f"{first.store.root} (there) and {source.root} (here) differ in:\n  {listed}\n"
            "Samples of two kinds are never mixed in a run; train on both as two sources of a stage (`ov2 curriculum`)."
        )


def _check_tars(source: Store) -> str:
    """Raises ValueError for a commit whose tar is not published. Returns MergedRun.digest."""
    sizes, digest = source.list_sizes(SHARDS_DIR), hashlib.sha256()
    for commit in iter_commits(source):
        if commit.tar_name is not None and sizes.get(commit.tar_name) != commit.tar_bytes:
            raise ValueError(
                f"{source.url(tar_rel(commit.shard))} is missing or not of {commit.tar_bytes} bytes as committed; "
                f"`ov2 verify {source.root}` tells the remedy"
            )
        digest.update(f"{commit.shard}\0{commit.tar_digest}\0{commit.line_offset}\n".encode())
        for sample in commit.samples:
            digest.update(f"{sample.line}\0{sample.key}\n".encode())
        for row in [*commit.filtered, *commit.quarantined]:
            digest.update(canonical_json(row))
    return digest.hexdigest()


def _iter_ids(rounds: Rounds) -> Iterator[tuple[int, str | None]]:
    """(line, id) of all rows that the plan and the rounds speak of; a replayed line comes again."""
    for number in range(len(rounds.records) + 1):
        with rounds.store.open_read(rounds.rows_rel(number)) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=["line", "id"]):
                yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        yield from ((row.line, row.id) for row in rounds.fallen(number))


def _claim(store: Store, record: MergeRecord, identity: RunRecord) -> None:
    data = (record.model_dump_json(indent=2) + "\n").encode()
    if not store.exists(MERGE_JSON) and (load_run_record(store) is not None or store.exists(PLAN_JSON)):
        raise ValueError(f"{store.root} holds a run that was not merged; give another --out")
    store.create_bytes(MERGE_JSON, data)
    if store.read_bytes(MERGE_JSON) != data:
        raise ValueError(
            f"{store.root} was merged of other runs, or these have grown since: {store.url(MERGE_JSON)} says of which; "
            "give another --out"
        )
    claim_run(store, identity)


def _write_plan(store: Store, parts: list[_Part]) -> None:
    """The first run's plan and rounds as they are, those of the others as rounds. Repeatable."""
    first, *others = parts
    if not store.exists(PLAN_JSON):
        for rel in (first.rounds.plan.rows, first.rounds.plan.fallen, PLAN_JSON):
            if first.store.exists(rel):
                store.copy_from(first.store, rel, rel)
    records: list[RoundRecord] = []
    for record in first.rounds.records:
        for rel in (record.rows, record.fallen, round_rel(record.number)):
            if not store.exists(rel):
                store.copy_from(first.store, rel, rel)
        records.append(record)
    for part in others:
        for number in range(len(part.rounds.records) + 1):
            records.append(_write_round(Rounds(store, first.rounds.plan, records), part, number))


def _write_round(there: Rounds, part: _Part, number: int) -> RoundRecord:
    """Round `number` of a run (0: its plan) as the next round of the merged one, its rows' lines and shards counted on."""
    rel = round_rel(len(there.records) + 1)
    if there.store.exists(rel):
        return RoundRecord.model_validate_json(there.store.read_bytes(rel))
    merged, left_out = part.merged, part.left_out
    source = part.rounds.records[number - 1] if number else None
    token = hashlib.sha256(f"{merged.digest} {merged.line_offset} {number}".encode()).hexdigest()[:32]
    num_planned = num_fallen = tokens = num_bytes = num_left_out = 0
    cpu_seconds = video_seconds = 0.0
    with RoundWriter(there, token=token) as writer:
        for row in iter_plan_rows(part.store, rel=part.rounds.rows_rel(number)):
            if row.line in left_out:
                num_left_out += 1
                continue
            line = row.line + merged.line_offset
            filtered = None if row.filtered is None else row.filtered.model_copy(update={"line": line})
            text = planned_text(row.model_copy(update={"line": line, "shard": 0, "filtered": filtered}))
            writer.plan.add(text, row.shard + merged.first_shard)
            num_planned += 1
            tokens += text.tokens
            num_bytes += text.bytes
            cpu_seconds += text.cpu_seconds
            video_seconds += text.video_seconds
        for fallen in part.rounds.fallen(number):
            if fallen.line in left_out:
                num_left_out += 1
                continue
            writer.plan.quarantine(fallen.model_copy(update={"line": fallen.line + merged.line_offset}))
            num_fallen += 1
        plan, is_append = part.rounds.plan, source is None or source.kind == "append"

        def make(at: int, rows: str, fallen: str) -> RoundRecord:
            return RoundRecord(
                number=at,
                kind=source.kind if source else "append",
                reasons=source.reasons if source else [],
                filter=source.filter if source else None,
                manifest_uri=source.manifest_uri if source else plan.manifest_uri,
                manifest_digest=source.manifest_digest if source else plan.manifest_digest,
                line_offset=(source.line_offset if source else 0) + merged.line_offset if is_append else 0,
                first_shard=(source.first_shard if source else 0) + merged.first_shard,
                num_shards=source.num_shards if source else plan.num_shards,
                num_rows=num_planned + num_fallen,
                num_planned=num_planned,
                num_quarantined=num_fallen,
                num_left_out=(source.num_left_out if source else 0) + (num_left_out if is_append else 0),
                predicted_tokens=tokens,
                predicted_bytes=num_bytes,
                predicted_cpu_seconds=round(cpu_seconds, 3),
                predicted_video_seconds=round(video_seconds, 3),
                rows=rows,
                fallen=fallen,
                created_unix_seconds=(source or part.identity).created_unix_seconds,
            )

        return writer.finish(make, plan)


def _take_shard(store: Store, part: _Part, shard: int) -> None:
    """Copies and commits one shard of a run."""
    commit = load_commit(part.store, shard)
    merged, left_out = part.merged, part.left_out
    number = merged.first_shard + shard
    record = commit.model_copy(
        update={
            "shard": number,
            "samples": [
                sample.model_copy(update={"line": sample.line + merged.line_offset})
                for sample in commit.samples
                if sample.line not in left_out
            ],
            "filtered": [
                row.model_copy(update={"line": row.line + merged.line_offset})
                for row in commit.filtered
                if row.line not in left_out
            ],
            "quarantined": [
                row.model_copy(update={"line": row.line + merged.line_offset})
                for row in commit.quarantined
                if row.line not in left_out
            ],
            "line_offset": commit.line_offset + merged.line_offset,
        }
    )
    if not record.samples:
        none = {"tar_name": None, "attempt": None, "tar_digest": None, "tar_bytes": 0}
        commit_attempt(store, record.model_copy(update=none))
    elif len(record.samples) == len(commit.samples):
        placed = _placed(record, digest=str(commit.tar_digest))
        assert placed.attempt is not None
        store.copy_from(part.store, tar_rel(shard), placed.attempt)
        commit_attempt(store, placed)
    else:
        _take_some_samples(store, part.store, commit, record)


def _take_some_samples(store: Store, source: Store, commit: CommitRecord, record: CommitRecord) -> None:
    """Writes a tar anew with the record's samples alone, members as they are, and commits it."""
    kept = {sample.key for sample in record.samples}

    def samples() -> Iterator[tuple[str, list[Member]]]:
        with source.open_read(tar_rel(commit.shard)) as file:
            for key, members in itertools.groupby(iter_tar_members(file), key=lambda found: found[0]):
                if key in kept:
                    yield key, [(part.name, data) for _, part, data in members]

    with tempfile.TemporaryDirectory(prefix="ov2-merge-") as folder:
        tar = write_tar(os.path.join(folder, "shard.tar"), samples())
        if [placed.key for placed in tar.samples] != [sample.key for sample in record.samples]:
            raise ValueError(
                f"{source.url(tar_rel(commit.shard))} is not what its commit says; `ov2 verify {source.root}` tells the remedy"
            )
        places = [
            sample.model_copy(update={"byte_offset": at.byte_offset, "byte_size": at.byte_size, "parts": at.parts})
            for sample, at in zip(record.samples, tar.samples, strict=True)
        ]
        placed = _placed(record.model_copy(update={"samples": places, "tar_bytes": tar.num_bytes}), digest=tar.digest)
        assert placed.attempt is not None
        store.put_file(tar.path, placed.attempt, move=True)
        commit_attempt(store, placed)


def _placed(record: CommitRecord, *, digest: str) -> CommitRecord:
    """The attempt is named by its content: whoever makes it again makes the same file."""
    name = shard_name(record.shard)
    attempt = f"{ATTEMPTS_DIR}/{name}/{digest[:32]}.tar"
    return record.model_copy(update={"tar_name": f"{name}.tar", "attempt": attempt, "tar_digest": digest})
