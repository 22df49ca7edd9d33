"""Readers of shards, commits and indexes against bytes that nobody of ours wrote: clear errors, nothing outside the run is touched.

Fuzzed from real files: bits turned, pieces cut, doubled and overwritten. Hypothesis keeps what fails.
"""

import io
import json
import os
import resource
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_run import finished_run

from ov2_core.data.manifest import ManifestItem, read_manifest
from ov2_core.storage.commit import committed_shards, iter_commits, load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.index import INDEX_SQLITE, INFO_JSON
from ov2_core.storage.reader import ShardReader, iter_tar
from ov2_core.storage.verify import verify_run

FUZZ = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Edit = tuple[str, int, bytes]
KINDS = st.sampled_from(["flip", "cut", "write", "insert", "double", "zero"])
EDITS = st.lists(st.tuples(KINDS, st.integers(0, 1 << 30), st.binary(min_size=1, max_size=24)), min_size=1, max_size=6)


def damaged(data: bytes, edits: list[Edit]) -> bytes:
    for kind, place, value in edits:
        if not data:
            break
        at = place % len(data)
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << value[0] % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "write":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "double":
            data = data[:at] + data[at : at + 1024] + data[at:]
        else:
            data = data[:at] + bytes(512) + data[at + 512 :]
    return data


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    finished_run(Store(folder / "run"), folder)
    return folder / "run"


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "run")
    return tmp_path / "run"


@FUZZ
@given(edits=EDITS)
def test_damaged_tars_are_read_or_refused(pristine: Path, tmp_path: Path, edits: list[Edit]) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(damaged((pristine / "shards/shard-000001.tar").read_bytes(), edits))
    try:
        for sample in iter_tar(path):
            assert "/" not in sample.key
            assert sample.record.image_keys
            assert sample.images_NHW3.ndim == 4
            assert sample.positions_NP3.ndim == 3
    except (ValueError, KeyError):
        pass


@FUZZ
@given(edits=EDITS)
def test_damaged_indexes_are_read_or_refused(pristine: Path, run: Path, edits: list[Edit]) -> None:
    for rel in (INDEX_SQLITE, INFO_JSON):
        (run / INDEX_SQLITE).write_bytes((pristine / INDEX_SQLITE).read_bytes())
        (run / INFO_JSON).write_bytes((pristine / INFO_JSON).read_bytes())
        (run / rel).write_bytes(damaged((pristine / rel).read_bytes(), edits))
        try:
            with ShardReader(run) as reader:
                assert len(reader) >= 0
                for key in reader.keys()[:3]:
                    assert reader.read(key).key == key
        except (ValueError, KeyError, EOFError, FileNotFoundError):
            pass


@FUZZ
@given(edits=EDITS)
def test_damaged_commits_are_read_or_refused_by_name(pristine: Path, run: Path, edits: list[Edit]) -> None:
    rel = "commits/shard-000001.json"
    (run / rel).write_bytes(damaged((pristine / rel).read_bytes(), edits))
    store = Store(run)
    try:
        assert load_commit(store, 1).shard == 1
    except ValueError as error:
        refused = str(error)
    else:
        return
    assert "shard-000001.json cannot be read; remove it" in refused
    assert not verify_run(store, deep=False).ok


@FUZZ
@given(edits=EDITS, suffix=st.sampled_from([".jsonl", ".csv", ".jsonl.gz", ".parquet"]))
def test_damaged_manifests_give_rows_or_one_error(tmp_path: Path, edits: list[Edit], suffix: str) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"video": f"clips/ä {i}.mp4", "id": f"v{i}", "caption": 'a "b", c'} for i in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".csv":
        text = ("video,id,caption\n" + "".join(f'{r["video"]},{r["id"]},"a ""b"", c"\n' for r in rows)).encode()
    elif suffix == ".jsonl.gz":
        text = gzip.compress(text, mtime=0)
    elif suffix == ".parquet":
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out)
        text = out.getvalue()
    path = tmp_path / f"m{suffix}"
    path.write_bytes(damaged(text, edits))
    items: list[ManifestItem] = []
    refused = str(path)
    try:
        items.extend(read_manifest(str(path)))
    except ValueError as error:
        refused = str(error)
    assert str(path) in refused
    assert all((item.row is None) != (item.error is None) for item in items)
    assert [item.line for item in items] == sorted({item.line for item in items})


def tar_of(*infos: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, data in infos:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def hostile_members() -> Iterator[tuple[str, tarfile.TarInfo]]:
    for name in (
        "/etc/evil.json", "../evil.json", "a/../../evil.json", "a/b.json", "./a.json", "..json", "...json", ".json", "a", "a.",
        "a..json", "a.img_000.jpg/x", "a.JSON", "a.x.y.z", "a\\..\\b.json", "C:evil.json", "a\nb.json", "a b.json", "ä.json",
        "x" * 73 + ".json", "x" * 5000 + ".json", "a.\u202egpj",
    ):  # fmt: skip
        yield f"name {name[:20]!r}", tarfile.TarInfo(name)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("a.json")
        info.type, info.linkname = kind, "/etc/passwd"
        yield f"type {kind!r}", info


@pytest.mark.parametrize(
    ("what", "info"), list(hostile_members()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_hostile_members_are_refused_by_name(tmp_path: Path, what: str, info: tarfile.TarInfo) -> None:
    data = b"" if info.type != tarfile.REGTYPE else b"{}"
    (tmp_path / "x.tar").write_bytes(tar_of((tarfile.TarInfo("good.json"), b"{}"), (info, data)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"not a file named KEY\.part"):
        list(iter_tar(tmp_path / "x.tar"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sparse_member_of_a_terabyte_takes_no_memory(tmp_path: Path) -> None:
    """GNU tar's sparse files are read as their stated size, all zeros."""
    info = tarfile.TarInfo("a.json")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,2",
        "GNU.sparse.size": str(1 << 40),
    }
    (tmp_path / "x.tar").write_bytes(tar_of((info, b"{}")))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match="not a file named"):
        list(iter_tar(tmp_path / "x.tar"))
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.parametrize("size", [1 << 33, 1 << 62])
def test_a_member_that_says_more_than_it_holds_is_cut_short(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("a.json")
    info.size = size
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"{}" + bytes(510))
    with pytest.raises(ValueError, match=r"cut short|not a readable tar"):
        list(iter_tar(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("byte_offset", -1),
        ("byte_offset", 1 << 62),
        ("byte_size", 1 << 50),
        ("byte_size", "x"),
        ("byte_size", None),
        ("tar_file_id", 99),
        ("tar_file_id", -1),
        ("byte_offset", 0.5),
    ],
)
def test_an_index_that_lies_is_named(run: Path, column: str, value: object) -> None:
    (run / INDEX_SQLITE).chmod(0o644)
    with closing(sqlite3.connect(run / INDEX_SQLITE)) as db:
        db.execute(f"UPDATE samples SET {column} = ? WHERE sample_key = 'clip-0005'", (value,))
        db.commit()
    with ShardReader(run) as reader, pytest.raises((ValueError, EOFError), match=r"index of .* is damaged|too short"):
        reader.read("clip-0005")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "shards/../../secret"])
def test_an_index_that_names_files_outside_the_run_is_refused(run: Path, name: str) -> None:
    (run.parent.parent / "secret").write_bytes(b"x" * (1 << 20))
    info = json.loads((run / INFO_JSON).read_text())
    info["shard_counts"] = dict.fromkeys([name, name + "x"], 2)
    (run / INFO_JSON).write_text(json.dumps(info))
    with ShardReader(run) as reader, pytest.raises(ValueError, match="no path below a run"):
        reader.read("clip-0001")


@pytest.mark.parametrize(
    "attempt", ["shards/shard-000000.tar", "../../victim", "/victim", "attempts/shard-000000/x.tar", "run.json"]
)
def test_a_commit_cannot_have_other_files_removed(run: Path, attempt: str) -> None:
    path = run / "commits/shard-000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attempt": attempt}))
    with pytest.raises(ValueError, match="are not those of shard-000001"):
        load_commit(Store(run), 1)


def test_strange_names_among_the_commits_are_no_commits(run: Path) -> None:
    for name in (
        "shard-abc.json",
        "shard-٣٣٣٣٣٣.json",
        "shard--00001.json",
        "shard-0000001.json",
        "shard-000001.json.bak",
        "shard-1.json",
    ):
        (run / "commits" / name).write_text("{}")
    os.symlink("/etc/passwd", run / "commits" / "shard-.json")
    assert committed_shards(Store(run)) == [0, 1, 2]
    assert [record.shard for record in iter_commits(Store(run))] == [0, 1, 2]
