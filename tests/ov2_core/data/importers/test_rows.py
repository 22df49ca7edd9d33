import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from importer_fixtures import png, write_json_lines

from ov2_core.data import row_files as lines_of_text
from ov2_core.data.importers import rows as row_files
from ov2_core.data.importers.rows import RawRow, list_files, read_csv, read_json, read_parquet, read_parquet_cell

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ITEMS = st.lists(st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=4) | JSON_VALUES, max_size=12)


def read(path: Path, text: str | bytes) -> list[RawRow]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return list(read_json(str(path)))


@settings(max_examples=80, deadline=None)
@given(
    items=ITEMS, indent=st.sampled_from([None, 0, 2]), chunk=st.sampled_from([1, 2, 7, 64]), ascii_only=st.booleans()
)
def test_array_equals_a_whole_parse_whatever_the_chunk(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], indent: int | None, chunk: int, ascii_only: bool
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "_CHUNK_CHARACTERS", chunk)
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return
        path = tmp_path_factory.mktemp("array") / "a.json"
        found = read(path, data)
    assert [row.row for row in found] == list(range(1, len(items) + 1))
    for row, item in zip(found, items, strict=True):
        assert row.value == (item if isinstance(item, dict) else None)
        assert (row.error is None) == isinstance(item, dict)


BAD_ITEMS = [
    '{"a": 1,}',
    '{"a": [1, 2}',
    '{"a": 1} {"b": 2}',
    '{"a": tru}',
    "{'a': 1}",
    '{"a": "tab\tinside"}',
    '{"a": 1}}',
    '{"a": "x" "y"}',
    "nonsense",
    "",
    '{"a": "brackets ]}{[ and a \\" quote", oops}',
]


@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(st.sampled_from(BAD_ITEMS) | st.integers(0, 99), min_size=1, max_size=10),
    chunk=st.sampled_from([1, 5, 4096]),
)
def test_bad_items_of_an_array_fall_alone(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str | int], chunk: int
) -> None:
    if parts[-1] == "":
        parts = [*parts, 7]  # a comma before the bracket is forgiven, so an empty last item is none
    text = "[" + ", ".join(part if isinstance(part, str) else json.dumps({"n": part}) for part in parts) + "]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "_CHUNK_CHARACTERS", chunk)
        found = read(tmp_path_factory.mktemp("array") / "a.json", text)
    assert [row.value for row in found] == [None if isinstance(part, str) else {"n": part} for part in parts]
    assert [row.raw is not None for row in found] == [isinstance(part, str) for part in parts]


@pytest.mark.parametrize("bad", ['{"a": "no end, "b": 3}', '{"a": {"b": 1}', '{"a": "no end}'])
def test_item_without_an_end_falls_alone_where_items_open_lines_alike(tmp_path: Path, bad: str) -> None:
    found = read(tmp_path / "a.json", f'[\n  {{"n": 1}},\n  {bad},\n  {{"n": 2}},\n  {{"n": 3}}\n]')
    assert [row.value for row in found] == [{"n": 1}, None, {"n": 2}, {"n": 3}]
    with pytest.raises(ValueError, match=r"item 2 does not end.*cut"):
        read(tmp_path / "b.json", f'[{{"n": 1}}, {bad}, {{"n": 2}}]')


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('[{"n": 1}, {"n": 2}', "does not end after item 2|item 2 does not end"),
        ('[{"n": 1}, {"n": 2},', "does not end after item 2"),
        ('[{"n": 1}, {"n"', "item 2 does not end"),
        ("[", "does not end after item 0"),
        ('[{"n": 1}] x', "behind the array of 1 items"),
    ],
)
def test_cut_array_is_an_error_after_its_whole_items(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "a.json").write_text(text)
    found: list[Any] = []
    with pytest.raises(ValueError, match=match):
        found.extend(row.value for row in read_json(str(tmp_path / "a.json")))
    assert found[:1] == ([{"n": 1}] if text != "[" else [])


def test_text_that_is_not_utf8_falls_alone(tmp_path: Path) -> None:
    found = read(tmp_path / "a.json", b'[{"a": "ok"}, {"a": "\xff"}, {"a": "\xc3\xa9"}]')
    assert [row.value for row in found] == [
        {"a": "ok"},
        {"a": "\udcff"},
        {"a": "é"},
    ]  # refused when a record is made of it


def test_json_lines_under_any_name_keep_their_line_numbers(tmp_path: Path) -> None:
    text = '\ufeff{"a": 1}\n\n[2]\n{"a": 3'
    for name in ("a.json", "a.jsonl"):
        found = read(tmp_path / name, text)
        assert [(row.row, row.value) for row in found] == [(1, {"a": 1}), (3, None), (4, None)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert [row.value for row in read_json(str(tmp_path / "a.jsonl.gz"))] == [{"a": 1}]


def test_long_rows_are_refused_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_of_text, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(row_files, "_CHUNK_CHARACTERS", 100)
    long = json.dumps({"a": "x" * 5000})
    lines = read(tmp_path / "a.jsonl", f'{long}\n{{"a": 2}}\n')
    assert [(row.row, row.value) for row in lines] == [(1, None), (2, {"a": 2})]


class Counting(io.RawIOBase):
    """Endless items, counting what was asked for."""

    def __init__(self, item: bytes) -> None:
        self.item, self.given, self.opened = item, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = (b"" if self.opened else b"[") + self.item
        self.opened = True
        assert len(data) <= len(buffer)
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)


def test_array_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_CHUNK_CHARACTERS", 4096)
    stream = Counting(b'{"a": "' + b"x" * 500 + b'"},\n')
    monkeypatch.setattr(row_files, "_open", lambda file: io.BufferedReader(stream, 8192))
    rows = read_json("endless.json")
    for expected in range(1, 2001):
        assert next(rows).row == expected
        assert stream.given < expected * 511 + 4 * 8192
    rows.close()


def test_memory_stays_bounded_over_a_long_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    item = json.dumps({"id": "x", "conversations": [{"from": "human", "value": "word " * 40}] * 4})
    with path.open("w") as file:
        file.write("[" + ",\n".join([item] * 12_000) + "]")
    assert path.stat().st_size > 9 << 20
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_json(str(path))) == 12_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_parquet_rows_and_cells_agree(tmp_path: Path) -> None:
    table = [
        {"n": n, "images": [{"bytes": png(n), "path": None}, {"bytes": png(n + 100), "path": "p"}]} for n in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet", row_group_size=20)
    found = list(read_parquet(str(tmp_path / "a.parquet")))
    assert [row.row for row in found] == list(range(1, 51))
    assert [row.value for row in found] == table
    for index in (0, 15, 16, 19, 20, 36, 49):
        assert read_parquet_cell(str(tmp_path / "a.parquet"), index, "images") == table[index]["images"]
    with pytest.raises(ValueError, match="has no row 50"):
        read_parquet_cell(str(tmp_path / "a.parquet"), 50, "images")
    with pytest.raises(ValueError, match="nothing"):
        read_parquet_cell(str(tmp_path / "a.parquet"), 5, "nothing")


def test_parquet_memory_is_bounded_by_pages_not_by_the_row_group(tmp_path: Path) -> None:
    blobs = [{"bytes": bytes([n]) * 8 + png(n) * 1000} for n in range(200)]
    pq.write_table(
        pa.table({"image": blobs}), tmp_path / "a.parquet", write_batch_size=4, compression="none", use_dictionary=False
    )
    size = (tmp_path / "a.parquet").stat().st_size
    assert size > 14 << 20
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert sum(1 for _ in read_parquet(str(tmp_path / "a.parquet"))) == 200
        peak = pool.max_memory()
    finally:
        pa.set_memory_pool(before)
    assert 0 < peak < size / 2


def test_parquet_row_with_a_broken_string_falls_alone(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).buffers())
    pq.write_table(pa.table({"a": broken}), tmp_path / "a.parquet")
    found = list(read_parquet(str(tmp_path / "a.parquet")))
    assert [row.value for row in found] == [{"a": "good"}, None, {"a": "fine"}]


def test_parquet_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(ValueError, match=r"a\.parquet: not readable as Parquet"):
        list(read_parquet(str(tmp_path / "a.parquet")))


def test_csv_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,"x, y"\n2\n\n3,z\n', encoding="utf-8-sig")
    found = list(read_csv(str(tmp_path / "a.csv")))
    assert [(row.row, row.value) for row in found] == [
        (1, {"a": "1", "b": "x, y"}),
        (2, None),
        (4, {"a": "3", "b": "z"}),
    ]
    (tmp_path / "b.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="each once"):
        list(read_csv(str(tmp_path / "b.csv")))


def test_files_of_a_folder_a_glob_and_a_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "sub/a.jsonl", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json_lines(tmp_path / name, [{}])
    assert list_files(str(tmp_path), (".jsonl",)) == [f"{tmp_path}/b.jsonl", f"{tmp_path}/sub/a.jsonl"]
    assert list_files(f"{tmp_path}/*.txt", (".jsonl",)) == [f"{tmp_path}/c.txt"]
    assert list_files(f"{tmp_path}/c.txt", (".jsonl",)) == [f"{tmp_path}/c.txt"]
    for path in (tmp_path / "none.jsonl", tmp_path / "*.csv"):
        with pytest.raises(ValueError, match="no such file"):
            list_files(str(path), (".jsonl",))
