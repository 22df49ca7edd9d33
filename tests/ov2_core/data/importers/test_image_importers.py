import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from importer_fixtures import conversation, fallen, png, read, records, texts, write_parquet

from ov2_core.data.importers import open_importer


def fine(n: int, **changes: Any) -> dict[str, Any]:
    """A FineVision row."""
    row: dict[str, Any] = {
        "images": [{"bytes": png(n), "path": None}],
        "texts": [{"user": f"Q{n}", "assistant": f"A{n}"}, {"user": "And?", "assistant": "So."}],
        "source": "ai2d",
        "relevance_ratings": [5, 3],
        "relevance_min": 3,
        "formatting_ratings": [4, 2],
        "formatting_min": None,
    }
    return {**row, **changes}


def test_finevision_rows_become_records(tmp_path: Path) -> None:
    two = [{"bytes": png(7), "path": "x.png"}, {"bytes": png(8), "path": "y.png"}]
    path = write_parquet(
        tmp_path / "a.parquet", [fine(1), fine(2, images=two), fine(3, images=[]), fine(4, images=None)]
    )
    items = read("finevision", path, source="fv")
    one, both, none, null = records(items)
    assert texts(one) == [("user", "<image>\nQ1"), ("assistant", "A1"), ("user", "And?"), ("assistant", "So.")]
    assert texts(both)[0] == ("user", "<image>\n<image>\nQ2")
    assert [r.modality for r in (one, both, none, null)] == ["image", "images", "text", "text"]
    assert one.ratings == {"relevance": 3.0, "formatting": 2.0}
    assert (one.source, one.tags, one.repairs) == ("fv", ["source:ai2d"], ["placeholder_added"])
    place = one.media[0].embedded
    assert place is not None
    assert (place.uri, place.row, place.column, place.index) == (str(path), 0, "images", 0)
    assert place.sha256 == hashlib.sha256(png(1)).hexdigest()
    assert one.media[0].key == f"img_{place.sha256[:40]}"
    assert items[1].payloads == {ref.key: image["bytes"] for ref, image in zip(both.media, two, strict=True)}


def test_finevision_bad_rows_fall_alone(tmp_path: Path) -> None:
    bad = [
        (fine(2, texts=[]), "malformed_row", "texts: expected a list of rounds"),
        (fine(3, texts=[{"user": "Q", "assistant": None}]), "malformed_row", "texts[0]: expected user and assistant"),
        (fine(4, images=[{"bytes": None, "path": None}]), "malformed_row", "images[0]: neither bytes nor a path"),
        (fine(5, texts=[{"user": "Q", "assistant": "  "}]), "invalid_text", "no round has an answer"),
        (fine(6, texts=[{"user": "<image><image>", "assistant": "A"}]), "invalid_text", "2 placeholders for 1 media"),
        (fine(7, images=[{"bytes": b"", "path": ""}]), "malformed_row", "images[0]: neither bytes nor a path"),
    ]
    rows = [row for i, (item, _, _) in enumerate(bad) for row in (item, fine(100 + i))]
    items = read("finevision", write_parquet(tmp_path / "a.parquet", rows))
    assert len(records(items)) == len(bad)
    assert [row.line for row in fallen(items)] == [1, 3, 5, 7, 9, 11]
    for row, (_, reason, message) in zip(fallen(items), bad, strict=True):
        assert (row.reason, message in row.message) == (reason, True), row.message
        assert row.raw is not None
        assert '"source": "ai2d"' in row.raw


FORMS: dict[str, Any] = {
    "struct": {"bytes": png(1), "path": "a.png"},
    "bytes": png(1),
    "list": [{"bytes": png(1), "path": None}],
}


@pytest.mark.parametrize("image", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("text", ["conversations", "messages", "json"])
def test_llava_instruct_reads_every_plausible_form(tmp_path: Path, image: Any, column: str, text: str) -> None:
    turns: Any = conversation("<image>\nQ", "A")
    if text == "messages":
        turns = [{"role": "user", "content": "<image>\nQ"}, {"role": "assistant", "content": "A"}]
    name = "messages" if text == "messages" else "conversations"
    row = {"id": "x/1", column: image, name: json.dumps(turns) if text == "json" else turns, "data_source": "cc"}
    (record,) = records(read("llava-instruct", write_parquet(tmp_path / "a.parquet", [row])))
    assert texts(record) == [("user", "<image>\nQ"), ("assistant", "A")]
    assert record.repairs == []
    assert record.tags == ["source:cc"]
    assert record.id.startswith("x-1_")
    assert record.media[0].key == f"img_{hashlib.sha256(png(1)).hexdigest()[:40]}"


def test_llava_instruct_paths_text_only_and_bad_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "image": "a/b.jpg", "conversations": conversation("<image>\nQ")},
        {"id": "2", "image": None, "conversations": conversation("Q")},
        {"id": "3", "image": "https://x.org/c.jpg", "conversations": conversation("Q")},
        {"id": "4", "image": "file.jpg", "conversations": None},
        {"id": "5", "image": "ftp://x/y.jpg", "conversations": conversation("Q")},
        {"id": "6", "image": "c.jpg", "conversations": [{"from": "nobody", "value": "x"}]},
    ]
    items = read("llava-instruct", write_parquet(tmp_path / "a.parquet", rows), media_root=str(tmp_path / "pictures"))
    assert [ref.uri for record in records(items) for ref in record.media] == [
        f"{tmp_path}/pictures/a/b.jpg",
        "https://x.org/c.jpg",
    ]
    assert [record.modality for record in records(items)] == ["image", "text", "image"]
    assert [(row.line, row.id, row.reason) for row in fallen(items)] == [
        (4, "4", "malformed_row"),
        (5, "5", "refused_uri"),
        (6, "6", "malformed_row"),
    ]


def test_parquet_items_come_one_by_one(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "a.parquet", [fine(n) for n in range(40)])
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    items = open_importer("finevision", str(tmp_path))
    assert [next(items).file for _ in range(40)] == [str(good)] * 40  # the broken second file is not opened before
    with pytest.raises(ValueError, match="not readable as Parquet"):
        next(items)


CELLS = st.none() | st.integers(-3, 3) | st.text(max_size=5) | st.just("<image>")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "images": st.none()
                | st.lists(st.none() | st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=4)}), max_size=3),
                "texts": st.none()
                | st.lists(
                    st.none()
                    | st.fixed_dictionaries(
                        {"user": st.none() | st.text(max_size=9), "assistant": st.none() | st.text(max_size=9)}
                    ),
                    max_size=3,
                ),
                "source": st.none() | st.text(max_size=4),
                "relevance_ratings": st.none() | st.lists(st.none() | st.integers(0, 5), max_size=3),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_finevision_accounts_for_any_row(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = write_parquet(tmp_path_factory.mktemp("fuzz") / "a.parquet", rows)
    items = read("finevision", path)
    assert [item.row for item in items] == list(range(1, len(rows) + 1))
