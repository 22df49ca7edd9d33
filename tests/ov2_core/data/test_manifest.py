import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ov2_core.data import row_files
from ov2_core.data.manifest import ManifestItem, manifest_digest, read_manifest, resolve_uri
from ov2_core.errors import BadItemError
from schemas.video import ManifestRow

CONVERSATION = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He."}]


def read(path: Path, data: bytes | str) -> list[ManifestItem]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_manifest(str(path)))


def test_jsonl_numbers_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    text = '\ufeff{"video": "a.mp4"}\n\n  \n{"image": "b.jpg", "id": 7}\nnot json\n{"video": "c.mp4"}'
    items = read(tmp_path / "m.jsonl", text)
    assert [(item.line, item.row is not None) for item in items] == [(1, True), (4, True), (5, False), (6, True)]
    assert items[1].row is not None
    assert items[1].row.id == "7"
    assert items[2].raw == "not json"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b'{"video": "a", "fps": 3}', "fps: unknown column"),
        (b'{"video": "a", "image": "b"}', "exactly one of"),
        (b'{"video": "a", "start": 5, "end": 2}', "end .2.0. must be greater"),
        (b'{"video": "a", "start": NaN}', "start"),
        (b'{"video": ""}', "video"),
        (b"[1]", "must be a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"video": "a", "id": "\\ud800"}', "unicode string"),
        (b'{"video": "a", "tags": "x"}', "tags: expected a JSON list"),
        (b"[" * 100_000, "not JSON"),
        (b'{"video": "a", "start": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_malformed_line_says_what_is_wrong_and_the_rest_goes_on(tmp_path: Path, line: bytes, match: str) -> None:
    items = read(tmp_path / "m.jsonl", line + b'\n{"video": "ok.mp4"}\n')
    assert items[0].row is None
    assert items[0].error is not None
    assert re.search(match, items[0].error), items[0].error
    assert items[1].row == ManifestRow(video="ok.mp4")


def test_overlong_line_is_malformed_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 100)
    items = read(tmp_path / "m.jsonl", '{"video": "' + "x" * 1000 + '"}\n{"video": "ok.mp4"}\n')
    assert [item.row is not None for item in items] == [False, True]
    assert items[1].line == 2


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"video": "a.mp4", "id": "a", "start": 1.5, "end": 3.0, "caption": "A dog, running."},
        {"image": "b.jpg", "id": "b", "tags": ["x", "y"], "source": "web"},
        {"video": "c.mp4", "id": "c", "conversations": CONVERSATION},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    expected = [item.row for item in read(tmp_path / "m.jsonl", text)]
    assert None not in expected
    with gzip.open(tmp_path / "m.jsonl.gz", "wb") as file:
        file.write(text.encode())
    names = ["video", "image", "id", "start", "end", "caption", "tags", "source", "conversations"]
    with open(tmp_path / "m.csv", "w", newline="") as csv_file:
        writer = csv.DictWriter(csv_file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    columns = {name: [row.get(name) for row in rows] for name in names}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    for name in ("m.jsonl.gz", "m.csv", "m.parquet"):
        assert [item.row for item in read_manifest(str(tmp_path / name))] == expected, name
        assert [item.line for item in read_manifest(str(tmp_path / name))] == [1, 2, 3], name


def test_csv_with_wrong_cells_names_both_counts(tmp_path: Path) -> None:
    items = read(tmp_path / "m.csv", "video,id\na.mp4,a\nb.mp4\n\nc.mp4,c\n")
    assert [(item.line, item.row is not None) for item in items] == [(1, True), (2, False), (4, True)]
    assert items[1].error == "1 cells, but the header names 2 columns"


def test_csv_with_unknown_column_names_it(tmp_path: Path) -> None:
    (item,) = read(tmp_path / "m.csv", "video,titel\na.mp4,x\n")
    assert item.error == "titel: unknown column"


def test_quarantine_ledger_is_a_manifest_of_its_rows(tmp_path: Path) -> None:
    from ov2_core.make_sample import quarantine_row

    row = ManifestRow(video="a.mp4", caption="x")
    fallen = quarantine_row(
        line=3, id="a_1", uri="/data/a.mp4", row=row, reason="not_media", stage="probe", message="no"
    )
    (item,) = read(tmp_path / "q.jsonl", fallen.model_dump_json())
    assert item.row == ManifestRow(video="/data/a.mp4", id="a_1", caption="x")


@pytest.mark.parametrize("name", ["m.txt", "m", "m.json"])
def test_unknown_extension_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="unknown format"):
        read(tmp_path / name, "")


@pytest.mark.parametrize(
    ("name", "data"),
    [("m.parquet", b"not parquet"), ("m.jsonl.gz", b"not gzip"), ("m.csv", b"\n"), ("m.csv", b"a,a\n")],
)
def test_file_that_is_not_its_format_is_an_error_of_the_manifest(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match="manifest"):
        read(tmp_path / name, data)


def test_missing_manifest_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        list(read_manifest("nowhere.jsonl"))
    with pytest.raises(ValueError, match="no such file"):
        manifest_digest("nowhere.jsonl")


def test_remote_manifest_is_read() -> None:
    with fsspec.open("memory://bucket/m.jsonl", "wb") as file:
        file.write(b'{"video": "a.mp4"}\n')
    (item,) = read_manifest("memory://bucket/m.jsonl")
    assert item.row == ManifestRow(video="a.mp4")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300), name=st.sampled_from(["m.jsonl", "m.csv"]))
def test_any_bytes_give_items_or_one_clear_error(tmp_path: Path, data: bytes, name: str) -> None:
    try:
        items = read(tmp_path / name, data)
    except ValueError as error:
        assert "manifest" in str(error)  # noqa: PT017 - either outcome is allowed
        return
    for item in items:
        assert (item.row is None) == (item.error is not None)
        (item.error or "").encode()
        (item.raw or "").encode()
    assert [item.line for item in items] == sorted({item.line for item in items})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    row=st.dictionaries(
        st.sampled_from(["video", "image", "id", "start", "end", "caption", "messages", "conversations", "tags", "x"]),
        json_values,
        max_size=6,
    )
)
def test_any_json_object_is_a_row_or_malformed(tmp_path: Path, row: dict[str, Any]) -> None:
    (item,) = read(tmp_path / "m.jsonl", json.dumps(row))
    assert (item.row is None) == (item.error is not None)
    if item.row is not None:
        assert ManifestRow.model_validate_json(item.row.model_dump_json()) == item.row


@pytest.mark.parametrize(
    ("uri", "manifest", "expected"),
    [
        ("a.mp4", "/data/m.jsonl", "/data/a.mp4"),
        ("../b/a.mp4", "/data/x/m.jsonl", "/data/b/a.mp4"),
        ("/abs/a.mp4", "s3://bucket/m.jsonl", "/abs/a.mp4"),
        ("file:///abs/a%20b.mp4", "/data/m.jsonl", "/abs/a b.mp4"),
        ("s3://bucket/a b.mp4", "/data/m.jsonl", "s3://bucket/a b.mp4"),
        ("S3://bucket/a.mp4", "/data/m.jsonl", "s3://bucket/a.mp4"),
        ("sub/a.mp4", "s3://bucket/dir/m.jsonl", "s3://bucket/dir/sub/a.mp4"),
        ("a.mp4", "s3://bucket/m.jsonl", "s3://bucket/a.mp4"),
        ("../a.mp4", "s3://bucket/dir/m.jsonl", "s3://bucket/a.mp4"),
        ("a.mp4", "memory://m.jsonl", "memory://a.mp4"),
        ("a.mp4", "https://host/dir/m.jsonl?x=1", "https://host/dir/a.mp4"),
        ("12:30.mp4", "/data/m.jsonl", "/data/12:30.mp4"),
        ("./clip:1.mp4", "/data/m.jsonl", "/data/clip:1.mp4"),
    ],
)
def test_resolve_uri_is_absolute(uri: str, manifest: str, expected: str) -> None:
    assert resolve_uri(uri, manifest) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "concat:a.mp4|b.mp4",
        "pipe:0",
        "data:video/mp4;base64,AAAA",
        "ftp://host/a.mp4",
        "simplecache::s3://b/a.mp4",
        "zip://a.mp4::s3://b/x.zip",
        "s3://b/a::memory://c",
        "rtsp://camera/1",
        "subfile,,start,0,end,9,,:/etc/passwd:x",
        "file://host/a.mp4",
        "s3:/b/a.mp4",
        "a\x00b.mp4",
        "a\nb.mp4",
        "x" * 9000,
    ],
)
def test_resolve_uri_refuses_what_could_open_something_else(uri: str) -> None:
    if uri.startswith("subfile"):
        assert resolve_uri(uri, "/data/m.jsonl").startswith("/data/")  # a mere file name: it never reaches FFmpeg bare
        return
    with pytest.raises(BadItemError) as caught:
        resolve_uri(uri, "/data/m.jsonl")
    assert caught.value.reason == "refused_uri"


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_resolve_uri_of_any_text_is_absolute_or_refused(uri: str) -> None:
    try:
        resolved = resolve_uri(uri, "/data/m.jsonl")
    except BadItemError:
        return
    assert resolved.startswith("/") or "://" in resolved
