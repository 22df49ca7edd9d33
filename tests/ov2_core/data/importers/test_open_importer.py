import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from importer_fixtures import conversation, fallen, png, read, records, texts, write_json_lines, write_parquet

from ov2_core.data.importers import importer_names, open_importer
from ov2_core.data.importers import rows as row_files
from ov2_core.data.keys import derived_id, key_of
from ov2_core.data.records import write_records
from schemas.video import ManifestRow


def test_names_and_options_are_checked_at_once(tmp_path: Path) -> None:
    assert importer_names() == [
        "manifest",
        "llava-instruct",
        "finevision",
        "captions",
        "llava-video",
        "videochat-flash",
        "molmo2-track",
        "molmo2-point",
        "token-shards",
        "spatial-qa",
        "records",
    ]
    with pytest.raises(ValueError, match=r"unknown importer 'webvid'; expected one of manifest, "):
        open_importer("webvid", "x")
    with pytest.raises(ValueError, match=r"media_root must be text, got 5"):
        open_importer("llava-video", "x", media_root=5)
    with pytest.raises(ValueError, match=r"cut must be true or false, got 'yes'"):
        open_importer("captions", "x", cut="yes")
    with pytest.raises(ValueError, match=r"scale must be a number, got True"):
        open_importer("molmo2-point", "x", scale=True)
    open_importer("molmo2-point", "x", scale=1000, media_root=None).close()
    with pytest.raises(ValueError, match=r"has no option root; its options: source, media_root, media_template"):
        open_importer("llava-video", "x", root="y")


@pytest.mark.parametrize("name", importer_names())
def test_every_importer_takes_a_source_and_names_a_missing_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        list(open_importer(name, str(tmp_path / "nowhere"), source="mine"))


def test_manifest_rows_keep_their_ids_and_keys(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"video": "a.mp4", "id": "one", "caption": "A dog.", "start": 1, "end": 3, "source": "pets", "tags": ["t"]},
        {
            "image": "b.jpg",
            "messages": [{"role": "user", "content": "Q<image>"}, {"role": "assistant", "content": "A"}],
        },
        {"video": "c.mp4", "id": "x y", "conversations": conversation("<image>\nQ")},
        {"video": "d.mp4"},
        {"video": "e.mp4", "caption": "x", "frames": 3},
        {"video": "ftp://f.mp4", "caption": "x"},
        {"video": "g.mp4", "conversations": conversation("<video><video>")},
        {"video": "h.mp4", "id": "one", "caption": "again"},
        '{"video": ',
        {"video": "i.mp4", "caption": "last"},
    ]
    items = read("manifest", write_json_lines(tmp_path / "m.jsonl", rows))
    one, image, spaced, last = records(items)
    assert (one.id, one.media[0].key, one.media[0].uri) == ("one", "one", f"{tmp_path}/a.mp4")
    assert (one.media[0].start_seconds, one.media[0].end_seconds, one.tags) == (1.0, 3.0, ["t", "source:pets"])
    assert texts(one) == [("user", "<video>\nDescribe this video in detail."), ("assistant", "A dog.")]
    assert texts(image)[0] == ("user", "<image>\nQ")
    assert spaced.media[0].key == key_of("x y")
    assert last.media[0].id == derived_id(ManifestRow(video="i.mp4", caption="last"))
    assert [(row.line, row.reason) for row in fallen(items)] == [
        (4, "invalid_text"),
        (5, "malformed_row"),
        (6, "refused_uri"),
        (7, "invalid_text"),
        (8, "duplicate_id"),
        (9, "malformed_row"),
    ]


def test_a_repeated_row_is_a_duplicate_and_the_first_stays(tmp_path: Path) -> None:
    row = {"id": "a", "data_source": "x", "video": "a.mp4", "conversations": conversation()}
    items = read("llava-video", write_json_lines(tmp_path / "a.json", [row, {**row, "id": "b"}, row]))
    assert [item.row for item in items if item.record] == [1, 2]
    (again,) = fallen(items)
    assert (again.line, again.reason, again.id) == (3, "duplicate_id", records(items)[0].id)


def test_own_records_go_round(tmp_path: Path) -> None:
    rows = [{"images": [{"bytes": png(n), "path": None}], "texts": [{"user": "Q", "assistant": "A"}]} for n in range(3)]
    first = records(read("finevision", write_parquet(tmp_path / "a.parquet", rows)))
    assert write_records(str(tmp_path / "r.jsonl"), first) == 3
    assert records(read("records", tmp_path / "r.jsonl")) == first
    renamed = records(read("records", tmp_path / "r.jsonl", source="mine"))
    assert [(record.id, record.source) for record in renamed] == [(record.id, "mine") for record in first]
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    broken = json.loads(lines[1]) | {"modality": "video"}
    write_json_lines(tmp_path / "r.jsonl", [lines[0], json.dumps(broken), lines[2]])
    items = read("records", tmp_path / "r.jsonl")
    assert records(items) == [first[0], first[2]]
    assert [(row.line, "modality must be 'image'" in row.message) for row in fallen(items)] == [(2, True)]


def test_items_are_not_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        json.dumps({"video": f"{n}.mp4", "conversations": conversation(f"Q{n}")}).encode() + b"\n" for n in range(9)
    ]
    given: list[int] = []

    class Stream(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            given.append(len(given))
            return lines[given[-1]]

        def peek(self, size: int = 0) -> bytes:
            return lines[0]

    (tmp_path / "a.json").touch()
    monkeypatch.setattr(row_files, "_open", lambda file: Stream())
    items = open_importer("llava-video", str(tmp_path / "a.json"))
    assert given == []
    for number in range(5):
        item = next(items)
        assert item.row == number + 1
        assert len(given) == number + 1


def test_nothing_is_fetched_and_remote_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    rows = [
        {"video": "https://nowhere.invalid/a.mp4", "conversations": conversation()},
        {"video": "b.mp4", "conversations": conversation()},
    ]
    fs.pipe_file("/importers/sub/a.json", json.dumps(rows).encode())
    opened: list[str] = []
    real = fsspec.open

    def watched(urlpath: str, *args: Any, **options: Any) -> Any:
        opened.append(urlpath)
        return real(urlpath, *args, **options)

    monkeypatch.setattr(fsspec, "open", watched)
    try:
        items = list(open_importer("llava-video", "memory://importers"))
    finally:
        fs.rm("/importers", recursive=True)
    assert [ref.uri for record in records(items) for ref in record.media] == [
        "https://nowhere.invalid/a.mp4",
        "memory:///importers/sub/b.mp4",
    ]
    assert [name.rpartition("/")[2] for name in opened] == ["a.json"]
