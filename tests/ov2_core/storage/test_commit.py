"""The commit protocol under races, late writers, lost answers and SIGKILL at every failpoint."""

import multiprocessing
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from s3_stores import ATOMIC_STORES
from synthetic_run import (
    RUN_FALLEN,
    RUN_SHARDS,
    commit_lines,
    finished_run,
    run_job,
    run_job_in_child,
    tree_bytes,
    write_plan,
)

from ov2_core.storage.commit import (
    collect_orphans,
    commit_shard,
    committed_shards,
    finish_commit,
    finish_commits,
    load_commit,
    load_commits,
)
from ov2_core.storage.failpoint import FAILPOINTS
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run
from ov2_core.storage.writer import write_tar
from schemas.shard import CommitRecord

_PROCESSES = multiprocessing.get_context("forkserver")  # pytest's own process has threads: no fork of it
_PROCESSES.set_forkserver_preload(["ov2_core.storage.verify"])
PUBLISHED = ("shards", "quarantine", ".nv-meta")


def die_at(point: str, root: Path, tmp: Path, **environment: str) -> None:
    """Runs the job in a process of its own that kills itself at `point`."""
    child = _PROCESSES.Process(target=run_job_in_child, args=(root, tmp, {"OV2_FAILPOINT": point, **environment}))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, f"{point} was never reached: exit code {child.exitcode}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    tmp = tmp_path_factory.mktemp("undisturbed")
    finished_run(Store(tmp / "run"), tmp)
    return tree_bytes(tmp / "run", below=PUBLISHED)


@pytest.mark.parametrize("point", [*FAILPOINTS, "mid_tar:2", "mid_tar:3", "after_commit:2", "before_publish:2"])
def test_a_run_killed_anywhere_ends_in_the_same_bytes(
    point: str, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    root = tmp_path / "run"
    store = Store(root)
    write_plan(store, tmp_path / "plan", RUN_SHARDS, fallen=RUN_FALLEN)
    die_at(point, root, tmp_path / "work")
    committed_before = load_commits(store)
    run_job(store, tmp_path / "work")
    assert tree_bytes(root, below=PUBLISHED) == undisturbed
    assert verify_run(store).errors == []
    assert store.list("attempts") == []
    assert not [path for path in root.rglob("*") if path.name.endswith(".ov2tmp")]
    for shard, record in committed_before.items():  # what was committed is not made again
        assert load_commit(store, shard) == record


def test_a_run_killed_over_and_over_still_ends(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    root = tmp_path / "run"
    write_plan(Store(root), tmp_path / "plan", RUN_SHARDS, fallen=RUN_FALLEN)
    for point in ("after_upload", "after_commit", "before_sidecar", "mid_tar:2", "before_commit", "mid_index"):
        die_at(point, root, tmp_path / "work")
    run_job(Store(root), tmp_path / "work")
    assert tree_bytes(root, below=PUBLISHED) == undisturbed


def test_failpoint_marker_lets_one_process_die(tmp_path: Path, monkeypatch: Any) -> None:
    marker = str(tmp_path / "marker")
    die_at("after_commit", tmp_path / "run", tmp_path / "work", OV2_FAILPOINT_MARKER=marker)
    monkeypatch.setenv("OV2_FAILPOINT_MARKER", marker)
    monkeypatch.setenv("OV2_FAILPOINT", "after_commit")
    run_job(Store(tmp_path / "run"), tmp_path / "work")  # this very process passes the point and lives


@pytest.mark.parametrize("store", ATOMIC_STORES, indirect=True)
def test_racing_attempts_have_one_winner(store: Store, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    records: list[CommitRecord] = []

    def attempt(worker: int) -> None:
        barrier.wait()
        records.append(commit_lines(store, tmp_path / str(worker), shard=0, lines=[1, 2], quarantined=[3]))

    threads = [threading.Thread(target=attempt, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 4
    assert len({record.attempt for record in records}) == 1
    assert load_commit(store, 0) == records[0]
    assert store.list("shards") == ["shard-000000.tar", "shard-000000.tar.idx"]
    assert store.list("quarantine") == ["shard-000000.jsonl"]
    assert store.list("attempts/shard-000000") == []
    assert store.size("shards/shard-000000.tar") == records[0].tar_bytes


def test_a_late_writer_changes_nothing(store: Store, tmp_path: Path) -> None:
    first = commit_lines(store, tmp_path, shard=3, lines=[1, 2])
    published = store.read_bytes("shards/shard-000003.tar")
    late = commit_lines(store, tmp_path, shard=3, lines=[1], quarantined=[2])  # it fared worse, and comes too late
    assert late == first == load_commit(store, 3)
    assert store.read_bytes("shards/shard-000003.tar") == published
    assert store.list("quarantine") == []
    assert store.list("attempts/shard-000003") == []


def test_a_create_whose_answer_was_lost_is_still_ours(tmp_path: Path) -> None:
    class LosesAnswers(Store):
        def create_bytes(self, rel: str, data: bytes) -> bool:
            assert super().create_bytes(rel, data)
            return super().create_bytes(rel, data)  # what a client that repeats a timed-out PUT sees

    store = LosesAnswers(tmp_path / "run")
    record = commit_lines(store, tmp_path, shard=0, lines=[1])
    assert load_commit(store, 0) == record
    assert store.size("shards/shard-000000.tar") == record.tar_bytes
    assert store.list("attempts") == ["shard-000000"] or store.list("attempts") == []


def test_a_shard_whose_rows_all_fell_has_no_tar(store: Store, tmp_path: Path) -> None:
    record = commit_lines(store, tmp_path, shard=0, lines=[], filtered=[2], quarantined=[9, 1])
    assert record.tar_name is record.attempt is record.tar_digest is None
    assert [row.line for row in record.quarantined] == [1, 9]
    assert store.list("shards") == []
    assert store.read_bytes("quarantine/shard-000000.jsonl").count(b"\n") == 2
    assert committed_shards(store) == [0]
    assert finish_commits(store) == 0


def test_finishing_publishes_what_is_missing_and_no_more(store: Store, tmp_path: Path) -> None:
    record = commit_lines(store, tmp_path, shard=0, lines=[1], quarantined=[2])
    assert finish_commits(store) == 0
    assert record.attempt is not None
    store.publish("shards/shard-000000.tar", record.attempt)  # as if killed before publishing
    published = {rel: store.read_bytes(rel) for rel in ("shards/shard-000000.tar", "shards/shard-000000.tar.idx")}
    for rel in published:
        store.remove(rel)
    store.remove("quarantine/shard-000000.jsonl")
    assert collect_orphans(store) == []  # the attempt is still needed
    assert finish_commits(store) == 1
    assert {rel: store.read_bytes(rel) for rel in published} == published
    assert store.exists("quarantine/shard-000000.jsonl")
    assert not store.exists(record.attempt)
    assert finish_commit(store, record) is False


def test_orphans_are_collected_and_named(store: Store, tmp_path: Path) -> None:
    record = commit_lines(store, tmp_path, shard=0, lines=[1])
    store.write_bytes("attempts/shard-000000/dead.tar", b"a late loser died before removing this")
    store.write_bytes("attempts/shard-000007/dead.tar", b"killed before its commit")
    assert collect_orphans(store) == ["attempts/shard-000000/dead.tar", "attempts/shard-000007/dead.tar"]
    assert store.list("attempts") == []
    assert store.size("shards/shard-000000.tar") == record.tar_bytes


def test_a_lost_or_damaged_commit_names_the_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    record = commit_lines(store, tmp_path, shard=0, lines=[1])
    store.remove("shards/shard-000000.tar")
    with pytest.raises(ValueError, match=r"lost a file\. Remove .*commits/shard-000000\.json and run again"):
        finish_commit(store, record)
    store.write_bytes("commits/shard-000000.json", b"{}")
    with pytest.raises(ValueError, match=r"shard-000000\.json cannot be read; remove it and run again"):
        load_commit(store, 0)
    with pytest.raises(FileNotFoundError):
        load_commit(store, 1)


def test_a_commit_must_name_its_tars_samples(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("k", [("json", b"{}")])])
    with pytest.raises(AssertionError):
        commit_shard(
            Store(tmp_path / "run"),
            shard=0,
            tar=tar,
            samples=[],
            filtered=[],
            quarantined=[],
            config_digest="",
            code_version="",
            started_unix_seconds=time.time(),
            finished_unix_seconds=time.time(),
        )
