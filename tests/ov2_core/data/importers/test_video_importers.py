import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from importer_fixtures import conversation, fallen, read, records, texts, write_json_lines

from ov2_core.data.importers import open_importer
from ov2_core.data.keys import key_of


def llava(n: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"id-{n}", "data_source": "0_30_s", "video": f"v/{n}.mp4", "conversations": conversation("<image>\nQ")}
    return {**row, **changes}


def write_array(path: Path, items: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=1))
    return path


def test_llava_video_items_become_records(tmp_path: Path) -> None:
    more = [*conversation("<image>\nQ", "A"), *conversation("And?", "So.")]
    path = write_array(tmp_path / "a.json", [llava(1), llava(2, conversations=more)])
    one, two = records(read("llava-video", path, media_root="s3://bucket/videos"))
    assert texts(one) == [("user", "<video>\nQ"), ("assistant", "That.")]
    assert (one.repairs, one.modality, one.tags) == (["placeholder_renamed"], "video", ["source:0_30_s"])
    assert one.media[0].uri == "s3://bucket/videos/v/1.mp4"
    assert [role for role, _ in texts(two)] == ["user", "assistant"] * 2
    (there,) = records(
        read("llava-video", write_array(tmp_path / "b.json", [llava(1)]), media_template="{data_source}/{video}")
    )
    assert there.media[0].uri == f"{tmp_path}/0_30_s/v/1.mp4"


def test_llava_video_bad_items_fall_alone(tmp_path: Path) -> None:
    bad: list[tuple[Any, str, str]] = [
        (llava(1, video=None), "malformed_row", "video: expected text"),
        (llava(2, video="ftp://x/y.mp4"), "refused_uri", "only local paths"),
        (llava(3, conversations="none"), "malformed_row", "conversations"),
        (llava(4, conversations=conversation("Q", "<video>")), "invalid_text", "assistant turn"),
        (llava(5, conversations=conversation("<image><image>Q")), "invalid_text", "2 placeholders for 1 media"),
        (llava(6, conversations=conversation("\ud800")), "malformed_row", "Unicode"),
        (llava(7, id=[1]), "malformed_row", "id: expected"),
        (["not", "an", "object"], "malformed_row", "must be a JSON object"),
        (llava(8, video="a\x00b.mp4"), "refused_uri", "control characters"),
    ]
    rows = [row for i, (item, _, _) in enumerate(bad) for row in (item, llava(100 + i))]
    items = read("llava-video", write_array(tmp_path / "a.json", rows))
    assert len(records(items)) == len(bad)
    assert [row.line for row in fallen(items)] == list(range(1, 2 * len(bad), 2))
    for row, (_, reason, message) in zip(fallen(items), bad, strict=True):
        assert (row.reason, message in row.message) == (reason, True), row.message


def test_one_video_has_one_key_whoever_asks(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.json", [llava(1), llava(1, conversations=conversation("Other?")), llava(2)])
    one, other, two = records(read("llava-video", path))
    assert one.media == other.media
    assert one.id != other.id
    assert one.media[0].key != two.media[0].key
    moved = records(read("llava-video", path, media_root="/elsewhere"))
    assert [record.media[0].key for record in moved] == [record.media[0].key for record in (one, other, two)]
    (foreign, *_) = records(read("llava-video", path, source="another"))
    assert foreign.media[0].key != one.media[0].key
    assert key_of(one.media[0].id) == one.media[0].key


def test_order_of_rows_changes_no_binding(tmp_path: Path) -> None:
    rows = [llava(n, conversations=conversation(f"About {n}?", f"It is {n}.")) for n in range(20)]
    forth = records(read("llava-video", write_array(tmp_path / "a.json", rows)))
    back = records(read("llava-video", write_array(tmp_path / "b.json", rows[::-1])))
    assert {r.id: (r.media[0].key, texts(r)) for r in forth} == {r.id: (r.media[0].key, texts(r)) for r in back}
    for record in back:
        assert texts(record)[1][1] == f"It is {Path(record.media[0].uri or '').stem}."


def flash(tmp_path: Path, **entry: Any) -> Path:
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{"json_path": "ann/a.json", "sampling_strategy": "all", **entry}]}))
    return path


def test_videochat_flash_reads_all_media_forms(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"video": "a.mp4", "conversations": conversation("<image>\nQ"), "start": 1.5, "end": "4"},
        {"video": ["a.mp4", "b.mp4"], "conversations": conversation("<image>\nQ")},
        {"image": ["a.jpg", "b.jpg"], "conversations": conversation("<image>\n<image>\nQ")},
        {"image": "p2:s3://other/c.jpg", "conversations": conversation("<image>\nQ")},
        {"conversations": conversation("Q")},
        {"video": "a.mp4", "image": "b.jpg", "conversations": conversation("Q")},
        {"video": "a.mp4", "conversations": conversation("Q"), "start": 5, "end": 2},
        {"video": "a.mp4", "conversations": conversation("Q"), "start": "soon"},
    ]
    write_array(tmp_path / "ann" / "a.json", rows)
    items = read("videochat-flash", flash(tmp_path, data_root="pnorm2:s3://bucket/root", media_type="mix"))
    clip, two, images, other, text = records(items)
    assert [(ref.uri, ref.start_seconds, ref.end_seconds) for ref in clip.media] == [
        ("s3://bucket/root/a.mp4", 1.5, 4.0)
    ]
    assert texts(two)[0][1] == "<video>\n<video>\nQ"
    assert two.repairs == ["placeholder_expanded", *two.repairs[1:]]
    assert texts(images)[0][1] == "<image>\n<image>\nQ"
    assert other.media[0].uri == "s3://other/c.jpg"
    assert [record.modality for record in (clip, two, images, other, text)] == [
        "video",
        "video",
        "images",
        "image",
        "text",
    ]
    assert [(row.line, row.reason) for row in fallen(items)] == [(n, "malformed_row") for n in (6, 7, 8)]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", range(1, 11)),
        ("first:3", [1, 2, 3]),
        ("first2:3", [4, 5, 6]),
        ("first3:3", [7, 8, 9]),
        ("first4:3", [10]),
        ("first:25%", [1, 2, 3]),
        ("end:2", [9, 10]),
        ("end:20%", [9, 10]),
        ("end:99", range(1, 11)),
        ("first:0", []),
    ],
)
def test_videochat_flash_sampling(tmp_path: Path, strategy: str, expected: Any) -> None:
    rows = [{"video": f"{n}.mp4", "conversations": conversation(f"Q{n}")} for n in range(1, 11)]
    write_array(tmp_path / "ann" / "a.json", rows)
    items = read("videochat-flash", flash(tmp_path, sampling_strategy=strategy))
    assert [item.row for item in items] == list(expected)
    assert [texts(record)[0][1] for record in records(items)] == [f"<video>\nQ{n}" for n in expected]


def test_videochat_flash_folders_of_frames_and_media_type(tmp_path: Path) -> None:
    write_json_lines(
        tmp_path / "ann.jsonl",
        [
            {"video": "frames/a", "conversations": conversation()},
            {"conversations": conversation()},
            {"video": "TVQA/b", "conversations": conversation()},
            {"video": "frames/a", "conversations": conversation(), "fps": 2},
            {"video": "frames/a", "conversations": conversation(), "fps": "2"},
            {"video": "frames/a", "conversations": conversation(), "fps": 0},
        ],
    )
    items = read("videochat-flash", flash(tmp_path, json_path="ann.jsonl", media_type="video", video_read_type="img"))
    media = [record.media[0] for record in records(items)]
    assert [medium.frames_fps for medium in media] == [1.0, 3.0, 2.0]
    assert len({medium.key for medium in media}) == 3, "the rate is part of what a medium is"
    assert [(row.line, row.reason) for row in fallen(items)] == [(line, "malformed_row") for line in (2, 5, 6)]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("datasets: []", "expected `datasets:`"),
        ("a: [", "not readable as YAML"),
        ("datasets: [{data_root: x}]", r"datasets\[0\].*json_path"),
        ("datasets: [{json_path: x, sampling_strategy: 'random:5'}]", "sampling_strategy 'random:5' is not read"),
        ("datasets: [{json_path: x, media_type: audio}]", "media_type"),
        ("datasets: [3]", r"datasets\[0\]"),
        ("- {json_path: nowhere.json}", "nowhere.json: no such file"),
    ],
)
def test_videochat_flash_unusable_yaml_is_an_error(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        list(open_importer("videochat-flash", str(tmp_path / "a.yaml")))


CAPTIONS: dict[str, dict[str, Any]] = {
    "caption": {"video": "clips/a_0_30.mp4", "caption": "A dog."},
    "conversations": {"video": ["clips/a_0_30.mp4"], "conversations": conversation("<video>\nDescribe.", "A dog.")},
    "messages": {
        "videos": ["clips/a_0_30.mp4"],
        "messages": [{"role": "user", "content": "<video>Describe."}, {"role": "assistant", "content": "A dog."}],
    },
    "dst_path": {"dst_path": "clips/a_0_30.mp4", "text": "A dog."},
}
MAPPING = "dst_path,youtube_id,start_time,end_time\nclips/b_30_60.mp4,b,30,60\nclips/a_0_30.mp4,a,00:00:00,00:00:30.5\n"


@pytest.mark.parametrize("row", CAPTIONS.values(), ids=CAPTIONS)
@pytest.mark.parametrize("cut", [True, False])
def test_captions_bind_by_path(tmp_path: Path, row: dict[str, Any], cut: bool) -> None:
    (tmp_path / "mapping_30s.csv").write_text(MAPPING)
    path = write_json_lines(tmp_path / "split_30s.jsonl", [row])
    (record,) = records(read("captions", path, mapping=f"{tmp_path}/mapping_*.csv", cut=cut, media_root="/v"))
    ref = record.media[0]
    where = ("/v/clips/a_0_30.mp4", None, None) if cut else ("/v/a.mp4", 0.0, 30.5)
    assert (ref.uri, ref.start_seconds, ref.end_seconds) == where
    assert texts(record)[1] == ("assistant", "A dog.")
    assert texts(record)[0][1].startswith("<video>\nDescribe")
    assert record.tags == ["youtube:a"]


def test_captions_never_bind_by_order(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in range(30)]
    lines = [f"clips/{name},y{n},{n},{n + 1}" for n, name in enumerate(names)]
    (tmp_path / "m.csv").write_text("\n".join(["dst_path,youtube_id,start_time,end_time", *lines[::-1]]) + "\n")
    captions = [{"video": f"clips/{name}", "caption": f"clip {name}"} for name in names]
    path = write_json_lines(tmp_path / "c.jsonl", captions[7:] + captions[:7])
    for record in records(read("captions", path, mapping=str(tmp_path / "m.csv"), cut=False)):
        start = record.media[0].start_seconds
        assert start is not None
        assert texts(record)[1][1] == f"clip {int(start)}.mp4"
        assert record.tags == [f"youtube:y{int(start)}"]


def test_captions_without_their_clip_and_bad_mapping_rows_fall(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        MAPPING
        + "clips/c.mp4,c,soon,9\nclips/d.mp4,d,9,3\nclips/a_0_30.mp4,other,1,2\n,e,1,2\nx\nclips/b_30_60.mp4,b,30,60\n"
        + "one/t.mp4,t,0,1\ntwo/t.mp4,t,1,2\n"
    )
    rows = [
        {"video": "clips/nobody.mp4", "caption": "x"},
        {"video": "elsewhere/a_0_30.mp4", "caption": "by its last part"},
        {"video": "t.mp4", "caption": "two have this name"},
        {"video": "one/t.mp4", "caption": "one of them"},
        {"caption": "no path"},
        {"video": ["a", "b"], "caption": "two paths"},
        {"video": "clips/b_30_60.mp4"},
        {"video": "clips/b_30_60.mp4", "caption": "  "},
        {"video": "clips/b_30_60.mp4", "caption": "says <video>"},
    ]
    path = write_json_lines(tmp_path / "c.jsonl", rows)
    items = read("captions", path, mapping=str(tmp_path / "m.csv"))
    assert [texts(record)[1][1] for record in records(items)] == ["by its last part", "one of them"]
    mapping = [(row.line, row.reason) for row in fallen(items) if "m.csv:" in row.message]
    assert mapping == [
        (3, "malformed_row"),
        (4, "malformed_row"),
        (5, "duplicate_id"),
        (6, "malformed_row"),
        (7, "malformed_row"),
    ]
    assert [(row.line, row.reason) for row in fallen(items) if "c.jsonl:" in row.message] == [
        (1, "unbound_media"),
        (3, "unbound_media"),
        (5, "malformed_row"),
        (6, "malformed_row"),
        (7, "malformed_row"),
        (8, "invalid_text"),
        (9, "invalid_text"),
    ]


def test_captions_without_text_say_where_it_may_stand(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "split_30s.jsonl", [{"video": "a.mp4"}])
    (item,) = open_importer("captions", str(path))
    assert item.quarantined is not None
    assert item.quarantined.message.endswith("no text in any of caption, text, messages, conversations")


def test_captions_without_a_mapping(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "c.jsonl", [{"video": "a.mp4", "caption": "x"}])
    (record,) = records(read("captions", path))
    assert record.media[0].uri == f"{tmp_path}/a.mp4"
    with pytest.raises(ValueError, match="needs `mapping`"):
        list(open_importer("captions", str(path), cut=False))


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=2)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(
                ["id", "video", "image", "conversations", "messages", "start", "end", "caption", "data_source"]
            ),
            VALUES | st.just(conversation("<image>Q")) | st.just("a.mp4"),
            max_size=7,
        ),
        max_size=6,
    ),
    importer=st.sampled_from(["llava-video", "captions"]),
)
def test_any_json_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], importer: str
) -> None:
    path = write_json_lines(tmp_path_factory.mktemp("fuzz") / "a.json", rows or [{}])
    items = read(importer, path)
    assert [item.row for item in items] == list(range(1, max(len(rows), 1) + 1))
    assert {row.reason for row in fallen(items)} <= {"malformed_row", "invalid_text", "refused_uri", "duplicate_id"}
