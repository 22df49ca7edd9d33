import os
from pathlib import Path

import pytest

from ov2_core.run_status import iter_failed, read_status
from ov2_core.storage import summaries
from ov2_core.storage.commit import iter_commits, quarantine_bytes
from ov2_core.storage.files import Store
from ov2_core.storage.layout import RUN_JSON, commit_rel
from ov2_core.storage.summaries import iter_summaries
from ov2_core.storage.writer import canonical_json
from schemas.shard import CommitRecord, CommittedSample, FilteredRow, QuarantineRow

NUM_SHARDS = 11


def commit(shard: int, *, tokens: int = 10) -> CommitRecord:
    """Shard n holds n % 3 samples, one filtered row where n is even, and one fallen where n % 4 == 1."""
    samples = [
        CommittedSample(
            line=100 * shard + i + 1,
            key=f"k{shard}-{i}",
            id="x",
            byte_offset=1024 * i,
            byte_size=1024,
            parts=[],
            num_images=1,
            num_tokens=tokens + i,
            num_groups=1,
            duration_seconds=1.0,
            codec="h264",
            mode="codec",
            flags=[],
            cpu_seconds=0.5,
            peak_rss_bytes=1,
        )
        for i in range(shard % 3)
    ]
    fallen = [QuarantineRow(line=100 * shard + 9, id="é", uri="u", reason="not_media", stage="probe", message="né")]
    return CommitRecord(
        shard=shard,
        tar_name=f"shard-{shard:06d}.tar" if samples else None,
        attempt=f"attempts/shard-{shard:06d}/a.tar" if samples else None,
        tar_digest="0" * 64 if samples else None,
        tar_bytes=1000 * shard if samples else 0,
        samples=samples,
        filtered=[FilteredRow(line=100 * shard + 50, id="f", uri="u", rule="r", message="m")] * (shard % 2 == 0),
        quarantined=fallen * (shard % 4 == 1),
        config_digest="c",
        code_version="v",
        started_unix_seconds=0.0,
        finished_unix_seconds=float(shard),
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(summaries, "BLOCK_SHARDS", 4)
    monkeypatch.setattr(summaries, "MIN_NEW_COMMITS", 2)
    store = Store(tmp_path)
    store.write_bytes(RUN_JSON, b"{}")
    for shard in range(NUM_SHARDS):
        store.write_bytes(commit_rel(shard), canonical_json(commit(shard)))
    return store


def reads_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the commits that are read from now on."""
    read: list[str] = []
    many = store.read_many

    def read_many(rels: list[str]) -> list[bytes]:
        read.extend(rels)
        return many(rels)

    monkeypatch.setattr(store, "read_many", read_many)
    return read


def test_summaries_say_what_the_commits_say(store: Store) -> None:
    for _ in range(2):  # read, then remembered
        for summary, record in zip(iter_summaries(store), iter_commits(store), strict=True):
            assert summary.shard == record.shard
            assert summary.num_samples == len(record.samples)
            assert sum(map(len, summary.filtered.values())) == len(record.filtered)
            assert summary.num_tokens == sum(sample.num_tokens for sample in record.samples)
            assert (summary.tar_bytes, summary.ledger_bytes) == (record.tar_bytes, len(quarantine_bytes(record)))
            assert summary.quarantined == {row.reason: [row.line] for row in record.quarantined}
            assert summary.finished_unix_seconds == record.finished_unix_seconds


def test_a_commit_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reads_of(store, monkeypatch)
    first = list(iter_summaries(store))
    assert read == [commit_rel(shard) for shard in range(NUM_SHARDS)]
    read.clear()
    assert list(iter_summaries(store)) == first
    assert read == []
    store.write_bytes(commit_rel(11), canonical_json(commit(11)))
    assert [summary.shard for summary in iter_summaries(store)] == list(range(12))
    assert read == [commit_rel(11)]


def test_a_commit_that_was_made_anew_is_read_again_though_its_size_is_the_same(store: Store) -> None:
    list(iter_summaries(store))
    before = store.size(commit_rel(5))
    status = os.stat(store.local(commit_rel(5)))
    store.write_bytes(commit_rel(5), canonical_json(commit(5, tokens=20)))
    os.utime(store.local(commit_rel(5)), ns=(0, status.st_mtime_ns + 1))
    assert store.size(commit_rel(5)) == before
    assert {s.shard: s.num_tokens for s in iter_summaries(store)}[5] == 41


def test_a_commit_that_was_removed_is_not_counted(store: Store) -> None:
    list(iter_summaries(store))
    store.remove(commit_rel(4))
    assert [summary.shard for summary in iter_summaries(store)] == [s for s in range(NUM_SHARDS) if s != 4]


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"commits": [1', b"\xff"])
def test_a_damaged_or_missing_summary_is_made_anew(store: Store, damage: bytes) -> None:
    first = list(iter_summaries(store))
    store.write_bytes("summaries/block-000001.json", damage)
    store.remove("summaries/block-000000.json")
    assert list(iter_summaries(store)) == first


def test_small_runs_have_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MIN_NEW_COMMITS", 5)
    list(iter_summaries(store))
    assert store.list("summaries") == []


def test_store_that_cannot_be_written_is_still_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(rel: str, data: bytes) -> None:
        raise PermissionError(rel)

    monkeypatch.setattr(store, "write_bytes", refuse)
    assert len(list(iter_summaries(store))) == NUM_SHARDS


def test_status_and_failed_say_the_same_with_and_without_summaries(store: Store) -> None:
    status, fallen = read_status(store), list(iter_failed(store))
    assert store.list("summaries") != []
    assert (read_status(store), list(iter_failed(store))) == (status, fallen)
    records = list(iter_commits(store))
    assert status.committed == sum(len(record.samples) for record in records)
    assert status.quarantined == {"not_media": 3}
    assert [row.line for row in status.newest] == [909, 509, 109]
    assert fallen == [row for record in records for row in record.quarantined]


def test_commit_that_cannot_be_read_is_named(store: Store) -> None:
    store.write_bytes(commit_rel(3), b"{")
    with pytest.raises(ValueError, match="remove it and run again to make shard 3 anew"):
        list(iter_summaries(store))
