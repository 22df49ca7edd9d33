"""The commit protocol through a proxy that refuses, resets, cuts, repeats and steals requests: see tests/fault_proxy.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import ANYWHERE, FaultProxy, S3Request, Schedule, first_of_each, mixed
from s3_stores import make_s3_store
from synthetic_run import commit_lines, finished_run, tree_bytes, write_plan

from ov2_core.storage.commit import collect_orphans, finish_commits, load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.index import write_index
from ov2_core.storage.verify import verify_run

pytestmark = pytest.mark.s3
PUBLISHED = ("shards", "quarantine", ".nv-meta")


@pytest.fixture
def direct(s3_endpoint: str) -> Store:
    """An empty run, reached without the proxy."""
    return make_s3_store(s3_endpoint)


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def harmed(direct: Store, proxy: FaultProxy) -> Store:
    """The same run through the proxy; botocore does not try again by itself, which takes it seconds each time."""
    return through(proxy, direct, config_kwargs={"retries": {"max_attempts": 0}})


def through(proxy: FaultProxy, direct: Store, **options: Any) -> Store:
    return Store(direct.root, {**direct.storage_options, "endpoint_url": proxy.endpoint, **options})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    tmp = tmp_path_factory.mktemp("undisturbed")
    finished_run(Store(tmp / "run"), tmp)
    return tree_bytes(tmp / "run", below=PUBLISHED)


def test_a_shard_through_every_fault_is_committed_once(
    direct: Store, harmed: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    alone = Store(tmp_path / "alone")
    for store in (alone, harmed):
        write_plan(store, tmp_path / "plan", {0: [1, 2]})
        proxy.schedule = mixed(1, [fault for fault in ANYWHERE if fault != "slow"], share=0.4)
        commit_lines(store, tmp_path, shard=0, lines=[1], quarantined=[2])
        finish_commits(store)
        collect_orphans(store)
        write_index(store)
    assert {fault for fault, _ in proxy.injected} == set(ANYWHERE) - {"slow"}
    assert verify_run(direct).errors == []
    assert direct.list("attempts") == []
    for rel in ("shards/shard-000000.tar", "quarantine/shard-000000.jsonl", ".nv-meta/index.sqlite"):
        assert direct.read_bytes(rel) == alone.read_bytes(rel)


def test_a_commit_whose_answer_was_lost_is_ours(harmed: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.schedule = first_of_each("reset_after", "CreateObject")
    record = commit_lines(harmed, tmp_path, shard=0, lines=[1])
    assert [r.count for r in proxy.requests if r.operation == "CreateObject"] == [1, 2]  # the second met its own object
    assert load_commit(harmed, 0) == record
    assert harmed.list("attempts/shard-000000") == []
    assert harmed.size("shards/shard-000000.tar") == record.tar_bytes


def test_a_commit_that_is_told_ours_but_is_anothers_is_not_taken_for_ours(
    direct: Store, harmed: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    def commit_before(key: str) -> None:
        commit_lines(direct, tmp_path / "rival", shard=0, lines=[1], quarantined=[2])

    proxy.rival = commit_before
    proxy.schedule = first_of_each("stolen", "CreateObject")
    record = commit_lines(harmed, tmp_path, shard=0, lines=[1, 2])
    assert [fault for fault, _ in proxy.injected] == ["stolen"]
    assert record == load_commit(direct, 0)
    assert [row.line for row in record.quarantined] == [2]
    assert direct.size("shards/shard-000000.tar") == record.tar_bytes
    assert direct.list("attempts/shard-000000") == []


def test_a_server_without_conditional_puts_is_refused(moto_endpoint: str) -> None:
    """On moto alone: the header that is taken out is signed, which other servers check."""
    direct = make_s3_store(moto_endpoint)
    direct.require_exclusive_creation()
    with (
        FaultProxy(moto_endpoint, lambda request: "ignored_condition") as proxy,
        pytest.raises(ValueError, match=r"s3://.*/run: .*ignores If-None-Match: \*.*use another storage"),
    ):
        through(proxy, direct).require_exclusive_creation()
    assert direct.list("attempts/probe") == []


def test_an_upload_whose_completion_was_lost_is_made_again(
    direct: Store, harmed: Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "x").write_bytes(content)
    for fault in ("reset_after", "error_in_200", "500"):
        proxy.schedule = first_of_each(fault, "CompleteMultipartUpload")
        harmed.put_file(tmp_path / "x", fault)
        assert direct.read_bytes(fault) == content
    proxy.schedule = first_of_each("error_in_200", "CopyObject")
    harmed.publish("500", "copy")
    assert direct.read_bytes("copy") == content
    assert len(proxy.injected) == 4


def test_a_storage_that_stays_down_is_named_and_the_run_goes_on_later(
    direct: Store, harmed: Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    write_plan(direct, tmp_path / "plan", {0: [1]})
    proxy.schedule = lambda r: "503" if r.operation == "CopyObject" else None
    with pytest.raises(ConnectionError, match=r"s3://.*/attempts/shard-000000/.*\.tar: .*the same command goes on"):
        commit_lines(harmed, tmp_path, shard=0, lines=[1])
    assert sum(r.operation == "CopyObject" for r in proxy.requests) == 4
    assert direct.list("shards") == []
    assert collect_orphans(direct) == []  # the attempt is the commit's
    proxy.schedule = lambda request: None
    assert finish_commits(harmed) == 1
    write_index(harmed)
    assert verify_run(direct).errors == []


def everywhere(fault: str) -> Schedule:
    """An error in a 200 comes with copies and completed uploads alone."""
    return first_of_each(fault, *(["CopyObject", "CompleteMultipartUpload"] if fault == "error_in_200" else []))


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        *(pytest.param(everywhere(fault), id=fault) for fault in (*ANYWHERE, "error_in_200")),
        *(pytest.param(mixed(seed, ANYWHERE, share=0.7), id=f"mixed-{seed}") for seed in range(3)),
    ],
)
def test_a_run_through_faults_has_the_bytes_of_one_without(
    direct: Store, harmed: Store, proxy: FaultProxy, schedule: Schedule, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.schedule = schedule
    finished_run(harmed, tmp_path)
    check_undisturbed(direct, harmed, proxy, undisturbed)


@pytest.mark.slow
def test_the_same_where_botocore_tries_again_too(
    direct: Store, proxy: FaultProxy, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    proxy.schedule = mixed(9, ANYWHERE, share=0.4)
    store = through(proxy, direct)
    finished_run(store, tmp_path)
    check_undisturbed(direct, store, proxy, undisturbed)


def check_undisturbed(direct: Store, store: Store, proxy: FaultProxy, undisturbed: dict[str, bytes]) -> None:
    assert proxy.injected
    assert {rel: direct.read_bytes(rel) for rel in undisturbed} == undisturbed
    assert {f"shards/{name}" for name in direct.list("shards")} == {r for r in undisturbed if r.startswith("shards")}
    assert direct.list("attempts") == []
    assert verify_run(store).errors == []


@pytest.mark.slow
def test_a_server_that_never_answers_is_left_and_asked_again(direct: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.schedule = first_of_each("hang_after", "CreateObject", "CopyObject", "UploadPart", "CompleteMultipartUpload")
    store = through(proxy, direct, config_kwargs={"retries": {"max_attempts": 0}, "read_timeout": 1})
    record = commit_lines(store, tmp_path, shard=0, lines=[1])
    assert len(proxy.injected) == 4
    assert load_commit(direct, 0) == record
    assert direct.list("attempts/shard-000000") == []
    assert direct.size("shards/shard-000000.tar") == record.tar_bytes


@pytest.mark.slow
def test_parts_of_a_large_upload_fail_and_are_sent_again(direct: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    content = bytes(range(251)) * (40 << 12)
    (tmp_path / "large").write_bytes(content)

    def schedule(r: S3Request) -> str | None:
        if r.operation == "UploadPart" and r.count == 1:
            return {"1": "reset_after", "2": "503", "3": "twice"}[r.key.partition("#")[2]]
        return None

    proxy.schedule = schedule
    store = through(proxy, direct)
    store.put_file(tmp_path / "large", "large")
    assert len(proxy.injected) == 3
    proxy.schedule = first_of_each("truncated", "GetObject")
    assert store.read_bytes("large") == content
    assert store.read_range("large", 20_000_000, 20_000_100) == content[20_000_000:20_000_100]
    proxy.schedule = lambda r: "truncated" if r.operation == "GetObject" and r.count % 2 else None
    with store.open_read("large") as file:
        assert file.read() == content


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "500", "reset_before"])
def test_calls_to_a_storage_that_is_down_end_after_a_bounded_number_of_requests(
    direct: Store, proxy: FaultProxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    direct.write_bytes("a", b"there")
    proxy.schedule = lambda request: fault
    with pytest.raises(ConnectionError, match=r"/run/a: the storage still fails"):
        through(proxy, direct, config_kwargs={"retries": {"max_attempts": 1}}).write_bytes("a", b"new")
    attempts = 2 * 2 * 4  # of botocore, s3fs and ours: 5 * 5 * 4 as users have them
    assert len(proxy.requests) in ({attempts} if fault != "reset_before" else {attempts, 2 * attempts})  # aiohttp's own
    assert direct.read_bytes("a") == b"there"
