"""All commits of a run in numbers, without reading them all again: what `ov2 status` counts and what a resume checks.

Enters: a store. Leaves: a CommitSummary of every commit, by ascending shard. A commit lists every member of its tar, some 300 KB
of JSON in a shard of 64 videos, and a run may have 100,000. So they are read once, and what is kept of them stands in
RUN/summaries, a file a thousand shards. Commits stay the truth: a summary counts only while the commit has the size and stamp
(ETag or modification time) that it was made of, anything else is read again, and the folder may be removed at any time.
Only files with many new commits are written, so small runs have none.
"""

import logging
from collections.abc import Iterator
from itertools import groupby

from pydantic import BaseModel

from ov2_core.storage.files import Store
from ov2_core.storage.layout import COMMITS_DIR, SUMMARIES_DIR, commit_rel, shard_of_commit
from ov2_core.storage.writer import canonical_json
from schemas.shard import QuarantineRow
from schemas.summary import CommitSummary, SummaryBlock

log = logging.getLogger(__name__)
BLOCK_SHARDS = 1000
MIN_NEW_COMMITS = 100
"""A block is written when so many of its commits had to be read."""
_READ_BATCH = 32


class _Sample(BaseModel):
    num_tokens: int


class _Filtered(BaseModel):
    line: int
    rule: str


class _Commit(BaseModel):
    """The fields of a CommitRecord that a summary needs; the rest is passed over, which is 15 times as fast."""

    shard: int
    tar_bytes: int
    samples: list[_Sample]
    filtered: list[_Filtered]
    quarantined: list[QuarantineRow]
    finished_unix_seconds: float


def iter_summaries(store: Store) -> Iterator[CommitSummary]:
    """Every commit by ascending shard; commits without a summary are read.

    Raises:
        ValueError: a commit that had to be read cannot be.
    """
    files: dict[int, tuple[int, str]] = {}
    for name, found in store.list_stamps(COMMITS_DIR).items():
        shard = shard_of_commit(name)
        if shard is not None:
            files[shard] = found
    blocks = set(store.list(SUMMARIES_DIR))
    for number, shards in groupby(sorted(files), key=lambda shard: shard // BLOCK_SHARDS):
        name = f"block-{number:06d}.json"
        wanted = list(shards)
        known = _load_block(store, name) if name in blocks else {}
        summaries = {shard: known[shard] for shard in wanted if shard in known and _is_of(known[shard], files[shard])}
        missing = [shard for shard in wanted if shard not in summaries]
        for start in range(0, len(missing), _READ_BATCH):
            batch = missing[start : start + _READ_BATCH]
            for shard, data in zip(batch, store.read_many([commit_rel(shard) for shard in batch]), strict=True):
                summaries[shard] = _summarise(store, shard, data, files[shard][1])
        if len(missing) >= MIN_NEW_COMMITS:
            _write_block(store, name, [summaries[shard] for shard in wanted])
        yield from (summaries[shard] for shard in wanted)


def _is_of(summary: CommitSummary, file: tuple[int, str]) -> bool:
    """Whether it was made of this file; where a file system gives no stamp, nobody can tell."""
    return bool(file[1]) and file == (summary.commit_bytes, summary.commit_stamp)


def _summarise(store: Store, shard: int, data: bytes, stamp: str) -> CommitSummary:
    try:
        commit = _Commit.model_validate_json(data)
        if commit.shard != shard:
            raise ValueError(f"it says shard {commit.shard}")
    except ValueError as error:
        raise ValueError(
            f"{store.url(commit_rel(shard))} cannot be read; remove it and run again to make shard {shard} anew: {error}"
        ) from error
    quarantined: dict[str, list[int]] = {}
    for row in commit.quarantined:
        quarantined.setdefault(row.reason, []).append(row.line)
    filtered: dict[str, list[int]] = {}
    for left_out in commit.filtered:
        filtered.setdefault(left_out.rule, []).append(left_out.line)
    return CommitSummary(
        shard=shard,
        commit_bytes=len(data),
        commit_stamp=stamp,
        num_samples=len(commit.samples),
        filtered=filtered,
        num_tokens=sum(sample.num_tokens for sample in commit.samples),
        tar_bytes=commit.tar_bytes,
        ledger_bytes=sum(len(canonical_json(row)) + 1 for row in commit.quarantined),
        quarantined=quarantined,
        finished_unix_seconds=commit.finished_unix_seconds,
    )


def _load_block(store: Store, name: str) -> dict[int, CommitSummary]:
    try:
        block = SummaryBlock.model_validate_json(store.read_bytes(f"{SUMMARIES_DIR}/{name}"))
    except (OSError, ValueError) as error:
        log.info("%s cannot be read (%s); its commits are", store.url(f"{SUMMARIES_DIR}/{name}"), error)
        return {}
    return {summary.shard: summary for summary in block.commits}


def _write_block(store: Store, name: str, commits: list[CommitSummary]) -> None:
    try:
        store.write_bytes(f"{SUMMARIES_DIR}/{name}", SummaryBlock(commits=commits).model_dump_json().encode())
    except Exception as error:  # whoever may only read the run still gets his answer
        log.debug("%s is not written: %s", store.url(f"{SUMMARIES_DIR}/{name}"), error)
