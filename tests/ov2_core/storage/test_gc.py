"""find_orphans: finds all that a dead writer leaves, and nothing that a live one, or a commit, may need."""

import os
import time
from pathlib import Path

import pytest
from synthetic_run import commit_lines, finished_run, run_job, tree_bytes, write_plan

from ov2_core.storage.commit import load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.gc import find_orphans, remove_orphans
from ov2_core.storage.index import rebuild_index
from ov2_core.storage.invocations import invocation_rel
from ov2_core.storage.verify import verify_run
from schemas.run import InvocationRecord

HOUR = 3600.0


def sign_of_life(state: str, seen_unix_seconds: float) -> bytes:
    return (
        InvocationRecord.model_validate(
            {
                "stage": "tokenize",
                "host": "elsewhere",
                "pid": 7,
                "state": state,
                "began_unix_seconds": seen_unix_seconds - 10,
                "seen_unix_seconds": seen_unix_seconds,
                "num_items": 4,
                "num_done": 1,
                "num_made": 1,
                "num_filtered": 0,
                "num_tokens": 16,
                "num_shards_done": 0,
                "num_worker_deaths": 0,
                "cpu_seconds": 1.0,
                "video_seconds": 1.0,
                "quarantined": {},
                "elapsed_seconds": 10.0,
                "workers": [],
            }
        )
        .model_dump_json()
        .encode()
    )


def leave_orphans(store: Store) -> list[str]:
    """One of each kind that a store can hold."""
    rels = ["attempts/shard-000000/late.tar", "attempts/shard-000009/dead.tar", f"plan/round-0001-{'a' * 32}.parquet"]
    rels += [f"plan/rows-{'a' * 16}.parquet", f"quarantine/plan-{'a' * 16}.jsonl"]
    if store.is_local:
        rels += ["attempts/tmp-1/shard.tar", "shards/.x.ov2tmp", "commits/.y.ov2tmp", ".z.ov2tmp"]
    for rel in rels:
        if store.is_local:
            path = Path(store.local(rel))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"left")
        else:
            store.write_bytes(rel, b"left")
    return sorted(rel if "tmp-1" not in rel else "attempts/tmp-1" for rel in rels)


def test_all_that_the_dead_leave_is_found_and_removed_and_nothing_else(store: Store, tmp_path: Path) -> None:
    finished_run(store, tmp_path)
    left = leave_orphans(store)
    later = time.time() + 2 * HOUR
    found = find_orphans(store, older_than_seconds=HOUR, now=later)
    assert [orphan.rel for orphan in found.orphans] == left
    assert found.kept == []
    assert all(store.exists(rel) or rel == "attempts/tmp-1" for rel in left), "finding removes nothing"
    remove_orphans(store, found)
    assert find_orphans(store, older_than_seconds=0, now=later).orphans == []
    assert store.list("attempts") == []
    assert verify_run(store).errors == []
    remove_orphans(store, found)


def test_young_files_are_kept_but_attempts_of_committed_shards_are_not(tmp_path: Path) -> None:
    store = finished_run(Store(tmp_path / "run"), tmp_path)
    leave_orphans(store)
    found = find_orphans(store, older_than_seconds=HOUR)
    assert [orphan.rel for orphan in found.orphans] == ["attempts/shard-000000/late.tar"]
    assert len(found.kept) == 8
    assert {orphan.why for orphan in found.kept} == {"younger than the age asked"}


@pytest.mark.parametrize(
    ("state", "ago", "kept"), [("running", 60, True), ("running", 2 * HOUR, False), ("done", 60, False)]
)
def test_sign_of_life_protects_what_an_open_shard_may_need(tmp_path: Path, state: str, ago: float, kept: bool) -> None:
    store = finished_run(Store(tmp_path / "run"), tmp_path)
    leave_orphans(store)
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (1, 1))
    later = time.time() + 3 * HOUR
    store.write_bytes(invocation_rel("1-a"), sign_of_life(state, later - ago))
    found = find_orphans(store, older_than_seconds=HOUR, now=later)
    assert ("attempts/shard-000009/dead.tar" in [orphan.rel for orphan in found.kept]) == kept
    assert "attempts/shard-000000/late.tar" in [orphan.rel for orphan in found.orphans]
    assert ("pid 7" in found.kept[0].why) if kept else not found.kept


def test_attempt_that_a_commit_has_still_to_publish_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    write_plan(store, tmp_path, {0: [1, 2]})
    commit_lines(store, tmp_path / "work", shard=0, lines=[1, 2])
    attempt = load_commit(store, 0).attempt
    assert attempt is not None
    store.publish("shards/shard-000000.tar", attempt)  # as a process leaves it that dies before it publishes
    store.remove("shards/shard-000000.tar")
    later = time.time() + 2 * HOUR
    assert find_orphans(store, older_than_seconds=HOUR, now=later).orphans == []
    rebuild_index(store)
    assert verify_run(store).errors == []


def test_removal_cut_off_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    num_orphans = 9
    for cut in range(num_orphans):
        store = finished_run(Store(tmp_path / f"run{cut}"), tmp_path / f"work{cut}")
        left = leave_orphans(store)
        assert len(left) == num_orphans
        whole = tree_bytes(tmp_path / f"run{cut}", below=("commits", ".nv-meta", "quarantine"))
        found = find_orphans(store, older_than_seconds=0, now=time.time() + 9)
        del found.orphans[cut:]
        remove_orphans(store, found)
        remove_orphans(store, find_orphans(store, older_than_seconds=0, now=time.time() + 9))
        assert find_orphans(store, older_than_seconds=0, now=time.time() + 9).orphans == []
        whole = {rel: data for rel, data in whole.items() if rel not in left}
        assert tree_bytes(tmp_path / f"run{cut}", below=("commits", ".nv-meta", "quarantine")) == whole
        assert verify_run(store, deep=False).ok


def test_index_is_rebuilt_byte_for_byte_from_commits_alone(tmp_path: Path) -> None:
    store = finished_run(Store(tmp_path / "run"), tmp_path)
    below = ("shards", ".nv-meta", "quarantine")
    whole = tree_bytes(tmp_path / "run", below=below)
    for path in (tmp_path / "run/.nv-meta").iterdir():
        path.unlink()
    (tmp_path / "run/shards/shard-000000.tar.idx").unlink()
    wrong = tmp_path / "run/shards/shard-000001.tar.idx"
    wrong.write_bytes(bytes(wrong.stat().st_size))  # of the right size
    assert rebuild_index(store) == (4, 2)
    assert tree_bytes(tmp_path / "run", below=below) == whole
    assert rebuild_index(store) == (4, 0)
    run_job(store, tmp_path / "again")
    assert tree_bytes(tmp_path / "run", below=below) == whole
