"""Store: one contract on the local disk, in memory and on S3."""

import errno
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from s3_stores import ATOMIC_STORES

from ov2_core.storage import files
from ov2_core.storage.files import Store


def test_bytes_round_trip_and_are_replaced(store: Store) -> None:
    store.write_bytes("a/b.bin", b"first")
    store.write_bytes("a/b.bin", b"second one")
    assert store.read_bytes("a/b.bin") == b"second one"
    assert store.size("a/b.bin") == 10
    assert store.exists("a/b.bin")
    assert not store.exists("a/c.bin")
    assert not store.exists("a")
    assert store.read_range("a/b.bin", 2, 6) == b"cond"
    assert store.read_range("a/b.bin", 3, 3) == b""
    with pytest.raises(EOFError):
        store.read_range("a/b.bin", 2, 60)
    with store.open_read("a/b.bin") as file:
        file.seek(7)
        assert file.read() == b"one"
    for read in (store.read_bytes, store.size, store.open_read):
        with pytest.raises(FileNotFoundError):
            read("a/none.bin")


def test_exclusive_create_happens_once(store: Store) -> None:
    assert store.create_bytes("c/x.json", b"winner")
    assert not store.create_bytes("c/x.json", b"loser")
    assert store.read_bytes("c/x.json") == b"winner"


@pytest.mark.parametrize("store", ATOMIC_STORES, indirect=True)
def test_exclusive_create_has_one_winner_among_threads(store: Store) -> None:
    barrier = threading.Barrier(8)
    created: list[bytes] = []

    def create(content: bytes) -> None:
        barrier.wait()
        if store.create_bytes("c/x.json", content):
            created.append(content)

    threads = [threading.Thread(target=create, args=(b"%d" % i * 1000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert store.read_bytes("c/x.json") == created[0]
    assert store.list("c") == ["x.json"]


@pytest.mark.parametrize("error", [FileExistsError(), OSError(errno.EINVAL, "At least one of the pre-conditions ..")])
def test_both_answers_to_a_lost_conditional_put_mean_it_was_there(monkeypatch: Any, error: OSError) -> None:
    store = Store("memory://answers")
    store.write_bytes("x", b"winner")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(store.fs, "pipe_file", refuse)
    assert store.create_bytes("x", b"loser") is False
    if not isinstance(error, FileExistsError):
        with pytest.raises(OSError, match="pre-conditions"):  # a true EINVAL: nothing is there
            store.create_bytes("y", b"data")


def test_put_and_publish_are_repeatable(store: Store, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    local = tmp_path / "local.tar"
    local.write_bytes(content)
    store.put_file(local, "attempts/s/1.tar")
    assert local.exists()
    for _ in range(2):
        store.publish("attempts/s/1.tar", "shards/s.tar")
    assert store.list("shards") == ["s.tar"]
    if store.is_local:  # rename(2) of two names of one file leaves both
        assert os.listdir(store.local("shards")) == ["s.tar"]
    store.remove("attempts/s/1.tar")
    assert store.read_bytes("shards/s.tar") == content
    local.write_bytes(b"other")
    store.put_file(local, "attempts/s/2.tar", move=True)
    assert not local.exists()
    store.publish("attempts/s/2.tar", "shards/s.tar")
    assert store.read_bytes("shards/s.tar") == b"other"
    with pytest.raises(FileNotFoundError):
        store.publish("attempts/s/1.tar", "shards/s.tar")


@pytest.mark.s3
def test_a_large_file_is_uploaded_in_parts(s3_store: Store, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 37  # more than two parts of 16 MiB
    local = tmp_path / "large.tar"
    local.write_bytes(content)
    s3_store.put_file(local, "large.tar")
    assert s3_store.size("large.tar") == len(content)
    assert s3_store.read_range("large.tar", 20 << 20, (20 << 20) + 99) == content[20 << 20 : (20 << 20) + 99]


@pytest.mark.parametrize("store", ATOMIC_STORES, indirect=True)
def test_a_failed_write_leaves_what_was_there(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    import shutil

    store.write_bytes("x.tar", b"before")
    local = tmp_path / "local.tar"
    local.write_bytes(b"after" * 1000)

    def break_off(source: Any, target: Any, length: int) -> None:
        target.write(source.read(1000))
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(shutil, "copyfileobj", break_off)
    for rel in ("x.tar", "y.tar"):
        with pytest.raises(RuntimeError, match="on fire"):
            store.put_file(local, rel)
    assert store.read_bytes("x.tar") == b"before"
    assert store.list() == ["x.tar"]


def test_lists_are_sorted_fresh_and_without_temporaries(store: Store) -> None:
    assert store.list("d") == []
    for name in ("b", "a", "c/deep"):
        store.write_bytes(f"d/{name}", name.encode())
    assert store.list("d") == ["a", "b", "c"]
    assert store.list_sizes("d") == {"a": 1, "b": 1}
    store.remove("d/a")
    store.remove("d/a")
    with pytest.raises(FileNotFoundError):
        store.remove("d/a", missing_ok=False)
    assert store.list("d") == ["b", "c"]
    assert store.read_many(["d/b", "d/c/deep"]) == [b"b", b"c/deep"]


def test_another_store_object_sees_every_change(store: Store) -> None:
    other: Store = pickle.loads(pickle.dumps(store))
    assert other.root == store.root
    assert other.list("d") == []
    store.write_bytes("d/a", b"1")
    assert other.list("d") == ["a"]
    assert other.exists("d/a")
    store.write_bytes("d/a", b"22")
    assert other.size("d/a") == 2
    store.remove("d/a")
    assert not other.exists("d/a")


def test_temporaries_of_killed_writers_are_hidden_and_collected(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("d/a", b"1")
    temporary = Path(store._temporary(store.local("d/b")))
    temporary.write_bytes(b"half")
    assert store.list("d") == ["a"]
    assert store.remove_temporaries("d") == 1
    assert sorted(os.listdir(tmp_path / "d")) == ["a"]


def test_publish_copies_where_links_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    store = Store(tmp_path)
    store.write_bytes("a", b"content")

    def refuse(*args: Any) -> None:
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    store.publish("a", "p/b")
    assert store.read_bytes("p/b") == b"content"
    assert store.list("p") == ["b"]
    with pytest.raises(OSError, match="hard links"):
        store.create_bytes("c", b"x")


def test_a_root_may_be_a_file_url(tmp_path: Path) -> None:
    store = Store((tmp_path / "a b").as_uri())
    store.write_bytes("x", b"1")
    assert (tmp_path / "a b" / "x").read_bytes() == b"1"
    for rel in ("../x", "a/../../x", "/etc/x", "a\0b"):
        with pytest.raises(ValueError, match="no path below a run"):
            store.write_bytes(rel, b"1")


@pytest.mark.parametrize("operation", ["write_bytes", "create_bytes", "put_file"])
@pytest.mark.parametrize("num_sweeps", [1, files.MAX_SWEEPS, files.MAX_SWEEPS + 1])
def test_what_a_sweep_takes_away_before_it_has_its_name_is_made_again(
    operation: str, num_sweeps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, local = Store(tmp_path / "run"), tmp_path / "local"
    local.write_bytes(b"data")
    swept: list[int] = []

    def sweep(name: str) -> None:
        if name == "mid_write" and len(swept) < num_sweeps:
            swept.append(store.remove_temporaries("shards"))

    monkeypatch.setattr(files, "failpoint", sweep)
    write = {
        "write_bytes": lambda: store.write_bytes("shards/x", b"data"),
        "create_bytes": lambda: store.create_bytes("shards/x", b"data"),
        "put_file": lambda: store.put_file(local, "shards/x"),
    }[operation]
    if num_sweeps > files.MAX_SWEEPS:
        with pytest.raises(FileNotFoundError):
            write()
    else:
        write()
        assert store.read_bytes("shards/x") == b"data"
    assert swept == [1] * num_sweeps
    assert os.listdir(tmp_path / "run" / "shards") == ["x"] * (num_sweeps <= files.MAX_SWEEPS)
