"""The commit protocol: a shard is done at the instant its commit file exists, whoever else tries, and wherever a
process dies.

    write      attempts/shard-000007/<uuid>.tar      any number of attempts, none is seen by readers
    decide     commits/shard-000007.json             created if absent: the first wins, others remove themselves
    publish    shards/shard-000007.tar (+ .idx)      derived from the commit, repeatable;
               quarantine/shard-000007.jsonl         so is the ledger
    clean      the winning attempt is removed

A process killed before "decide" leaves an attempt that nobody refers to (collect_orphans). Killed after it, everything
that is missing follows from the commit (finish_commits). Readers and the index trust commits alone.
"""

import contextlib
import logging
import re
import struct
import uuid
from collections.abc import Iterator, Sequence

from ov2_core.storage.failpoint import failpoint
from ov2_core.storage.files import Store
from ov2_core.storage.layout import (
    ATTEMPTS_DIR,
    COMMITS_DIR,
    QUARANTINE_DIR,
    SHARDS_DIR,
    commit_rel,
    quarantine_rel,
    shard_name,
    shard_of_commit,
    sidecar_rel,
    tar_rel,
)
from ov2_core.storage.summaries import iter_summaries
from ov2_core.storage.writer import TarWritten, canonical_json
from schemas.shard import CommitRecord, CommittedSample, FilteredRow, QuarantineRow

logger = logging.getLogger(__name__)
_READ_BATCH = 32
_OFFSET_BYTES = 8


def commit_shard(
    store: Store,
    *,
    shard: int,
    tar: TarWritten | None,
    samples: Sequence[CommittedSample],
    filtered: Sequence[FilteredRow],
    quarantined: Sequence[QuarantineRow],
    config_digest: str,
    code_version: str,
    started_unix_seconds: float,
    finished_unix_seconds: float,
    line_offset: int = 0,
) -> CommitRecord:
    """Commit one shard, or learn that another attempt has; either way the shard is committed and published on return.

    tar: a finished tar on the local disk, which is moved into the store (gone afterwards); None for a shard whose rows
    all fell. samples: in tar order, as writer.committed_sample makes them. line_offset: see CommitRecord.

    Returns the winner's record: `record.attempt` tells whose, and for a lost race it is not this call's tar.
    """
    assert (tar is None) == (not samples), "a tar goes with samples, and no tar with none"
    if tar is not None:
        assert [sample.key for sample in samples] == [sample.key for sample in tar.samples], "samples are not the tar's"
    attempt = None if tar is None else f"{ATTEMPTS_DIR}/{shard_name(shard)}/{uuid.uuid4().hex}.tar"
    record = CommitRecord(
        shard=shard,
        tar_name=None if tar is None else f"{shard_name(shard)}.tar",
        attempt=attempt,
        tar_digest=None if tar is None else tar.digest,
        tar_bytes=0 if tar is None else tar.num_bytes,
        samples=list(samples),
        filtered=sorted(filtered, key=lambda row: row.line),
        quarantined=sorted(quarantined, key=lambda row: row.line),
        config_digest=config_digest,
        code_version=code_version,
        started_unix_seconds=started_unix_seconds,
        finished_unix_seconds=finished_unix_seconds,
        line_offset=line_offset,
    )
    failpoint("before_upload")
    if tar is not None and attempt is not None:
        store.put_file(tar.path, attempt, move=True)
    failpoint("after_upload")

    return commit_attempt(store, record)


@contextlib.contextmanager
def unless_committed(store: Store, shard: int) -> Iterator[None]:
    """Around the making of a shard. A FileNotFoundError is passed over where the shard is committed: then this was a late
    attempt, and who ended the run has swept its scratch folder away."""
    try:
        yield
    except FileNotFoundError:
        if not store.exists(commit_rel(shard)):
            raise


def commit_attempt(store: Store, record: CommitRecord) -> CommitRecord:
    """The rest of commit_shard, for a record whose attempt stands in the store: decide, publish, clean."""
    failpoint("before_commit")
    store.create_bytes(commit_rel(record.shard), canonical_json(record))
    # What stands there decides, not the answer: a request that took effect may be told to have failed, and the reverse.
    winner = load_commit(store, record.shard)
    if record.attempt is not None and winner.attempt != record.attempt:
        logger.info("shard %d: committed by another attempt; this one is removed", record.shard)
        store.remove(record.attempt)
    failpoint("after_commit")
    finish_commit(store, winner)
    return winner


def finish_commit(store: Store, record: CommitRecord) -> bool:
    """Publish what a commit promises and its process did not live to publish. True if anything was missing. Repeatable.

    Two processes may finish the same commit at once.

    Raises:
        ValueError: neither the published tar nor the attempt is there: the storage lost a committed file.
    """
    missing = False
    if record.tar_name is not None:
        missing |= _publish_tar(store, record)
        sidecar = sidecar_bytes(record)
        failpoint("before_sidecar")
        if _size_or_none(store, sidecar_rel(record.shard)) != len(sidecar):
            store.write_bytes(sidecar_rel(record.shard), sidecar)
            missing = True
        failpoint("after_sidecar")
    rows = quarantine_bytes(record)
    if rows and _size_or_none(store, quarantine_rel(record.shard)) != len(rows):
        store.write_bytes(quarantine_rel(record.shard), rows)
        missing = True
    failpoint("before_cleanup")
    if record.attempt is not None:
        store.remove(record.attempt)
        store.remove_empty_dirs(f"{ATTEMPTS_DIR}/{shard_name(record.shard)}")
    failpoint("after_cleanup")
    return missing


def finish_commits(store: Store) -> int:
    """finish_commit for every commit that needs it; returns how many did. One listing a folder and the summaries tell
    which; only those are read. Called when a run is begun or resumed."""
    tars, ledgers = store.list_sizes(SHARDS_DIR), store.list_sizes(QUARANTINE_DIR)
    attempts = set(store.list(ATTEMPTS_DIR))
    count = 0
    for summary in iter_summaries(store):
        name = shard_name(summary.shard)
        published = not summary.num_samples or (
            tars.get(f"{name}.tar") == summary.tar_bytes
            and tars.get(f"{name}.tar.idx") == _OFFSET_BYTES * (summary.num_samples + 1)
        )
        told = ledgers.get(f"{name}.jsonl", 0) == summary.ledger_bytes or not summary.ledger_bytes
        if not (published and told) or name in attempts:
            count += finish_commit(store, load_commit(store, summary.shard))
    return count


def load_commit(store: Store, shard: int) -> CommitRecord:
    """The commit of one shard. Raises FileNotFoundError if it has none, ValueError if it cannot be read."""
    return _parse(store, shard, store.read_bytes(commit_rel(shard)))


def committed_shards(store: Store) -> list[int]:
    """Numbers of the committed shards, ascending, by one listing: all that a resume needs to know what is left."""
    found = (shard_of_commit(name) for name in store.list(COMMITS_DIR))
    return sorted(shard for shard in found if shard is not None)


def iter_commits(store: Store) -> Iterator[CommitRecord]:
    """All commits by ascending shard, a few in memory at a time."""
    shards = committed_shards(store)
    for start in range(0, len(shards), _READ_BATCH):
        batch = shards[start : start + _READ_BATCH]
        for shard, data in zip(batch, store.read_many([commit_rel(shard) for shard in batch]), strict=True):
            yield _parse(store, shard, data)


def load_commits(store: Store) -> dict[int, CommitRecord]:
    """All commits at once. A commit holds some 100 bytes a tar member: use iter_commits for large runs."""
    return {record.shard: record for record in iter_commits(store)}


def collect_orphans(store: Store) -> list[str]:
    """Remove attempts that no unpublished commit refers to, and half-written temporaries; returns the attempts removed.

    Only while no writer runs on this store: the attempt of a writer that is about to commit looks like an orphan.
    """
    committed, removed = set(committed_shards(store)), []
    for folder in store.list(ATTEMPTS_DIR):
        names = store.list(f"{ATTEMPTS_DIR}/{folder}")
        shard_text = folder.removeprefix("shard-")
        keep = None
        if names and shard_text.isdigit() and int(shard_text) in committed:
            record = load_commit(store, int(shard_text))
            if record.tar_name is not None and _size_or_none(store, tar_rel(record.shard)) != record.tar_bytes:
                keep = record.attempt
        for name in names:
            rel = f"{ATTEMPTS_DIR}/{folder}/{name}"
            if rel != keep:
                store.remove(rel)
                removed.append(rel)
        store.remove_temporaries(f"{ATTEMPTS_DIR}/{folder}")
        store.remove_empty_dirs(f"{ATTEMPTS_DIR}/{folder}")
    store.remove_empty_dirs(ATTEMPTS_DIR)
    for folder in (SHARDS_DIR, COMMITS_DIR, QUARANTINE_DIR):
        store.remove_temporaries(folder)
    return removed


def sidecar_bytes(record: CommitRecord) -> bytes:
    """The tar's .idx: little-endian u64 offset of each sample, then the end of the last."""
    offsets = [sample.byte_offset for sample in record.samples]
    if record.samples:
        offsets.append(record.samples[-1].byte_offset + record.samples[-1].byte_size)
    return struct.pack(f"<{len(offsets)}Q", *offsets)


def quarantine_bytes(record: CommitRecord) -> bytes:
    """The shard's quarantine ledger: one JSON line a row; empty if nothing fell."""
    return b"".join(canonical_json(row) + b"\n" for row in record.quarantined)


def _publish_tar(store: Store, record: CommitRecord) -> bool:
    failpoint("before_publish")
    target = tar_rel(record.shard)
    missing = _size_or_none(store, target) != record.tar_bytes
    if missing:
        assert record.attempt is not None
        try:
            store.publish(record.attempt, target)
        except FileNotFoundError as error:
            # Another process may have published and cleaned between our two looks.
            if _size_or_none(store, target) != record.tar_bytes:
                raise ValueError(
                    f"shard {record.shard} is committed, but neither {store.url(target)} nor its attempt "
                    f"{record.attempt} is there: the storage lost a file. Remove {store.url(commit_rel(record.shard))} "
                    "and run again to make the shard anew"
                ) from error
    failpoint("after_publish")
    return missing


def _size_or_none(store: Store, rel: str) -> int | None:
    try:
        return store.size(rel)
    except FileNotFoundError:
        return None


def _is_own_attempt(attempt: str | None, name: str) -> bool:
    """What a commit calls its attempt is removed in the end, so it must be one."""
    return attempt is None or re.fullmatch(rf"{ATTEMPTS_DIR}/{name}/[A-Za-z0-9_-]+\.tar", attempt) is not None


def _parse(store: Store, shard: int, data: bytes) -> CommitRecord:
    try:
        record = CommitRecord.model_validate_json(data)
        if record.shard != shard:
            raise ValueError(f"it says shard {record.shard}")
        name = shard_name(shard)
        if record.tar_name not in (None, f"{name}.tar") or not _is_own_attempt(record.attempt, name):
            raise ValueError(f"its files {record.tar_name!r}, {str(record.attempt)[:200]!r} are not those of {name}")
    except ValueError as error:
        raise ValueError(
            f"{store.url(commit_rel(shard))} cannot be read; remove it and run again to make shard {shard} anew: {error}"
        ) from error
    return record
