from pathlib import Path
from typing import Any

import pytest
from importer_fixtures import fallen, read, records, texts, write_json_lines


def question(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scene_id": "room-1",
        "type": "order_by_depth",
        "question": "Which is nearer?",
        "choices": ["the chair", "the lamp"],
        "answer": "the lamp",
        "frames": ["room-1/0.png", {"path": "room-1/8.png"}],
    }
    return {**row, **changes}


def test_questions_become_records(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [question(id="q7", difficulty="easy", tags=["indoor"])])
    (record,) = records(read("spatial-qa", path, media_root="/scenes"))
    assert texts(record) == [
        ("user", "<image>\n<image>\nWhich is nearer?\nA. the chair\nB. the lamp"),
        ("assistant", "B"),
    ]
    assert [ref.uri for ref in record.media] == ["/scenes/room-1/0.png", "/scenes/room-1/8.png"]
    assert record.tags == ["scene:room-1", "type:order_by_depth", "difficulty:easy", "indoor"]
    assert (record.modality, record.id.startswith("q7_")) == ("images", True)


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (None, 2.5, "2.5"),
        (None, 3, "3"),
        ([], "[(120, 88)]", "[(120, 88)]"),
        (["x", "y"], "B", "B"),
        (["x", "y"], "(a)".upper(), "A"),
        (["x", "y"], 1, "B"),
        (["x", "y"], "y", "B"),
        ([3, 1], 1, "B"),
        ({"A": "x", "B": "y"}, "x", "A"),
        (["B", "A"], "A", "B"),
    ],
)
def test_answers(tmp_path: Path, choices: Any, answer: Any, expected: str) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [question(choices=choices, answer=answer)])
    (record,) = records(read("spatial-qa", path))
    assert texts(record)[1] == ("assistant", expected)


def test_video_instead_of_frames(tmp_path: Path) -> None:
    row = question(frames=None, video="room.mp4", start=1, end=4.5)
    (record,) = records(read("spatial-qa", write_json_lines(tmp_path / "a.jsonl", [row])))
    assert (record.modality, record.media[0].start_seconds, record.media[0].end_seconds) == ("video", 1.0, 4.5)
    assert texts(record)[0][1].startswith("<video>\nWhich")


FAULTS: dict[str, dict[str, Any]] = {
    "scene_id": {"scene_id": None},
    "type": {"type": ""},
    "question": {"question": 1.5},
    "is none of the 2 choices": {"answer": "C"},
    "'the sofa' is none": {"answer": "the sofa"},
    "two are alike": {"choices": ["x", "x"]},
    "choices: expected": {"choices": ["x"]},
    "the letters from A on": {"choices": {"A": "x", "C": "y"}},
    "answer: expected": {"choices": None, "answer": None},
    "one of 'frames'": {"frames": []},
    "frames: expected a list": {"frames": "a.png"},
    "image: expected a path": {"frames": [{"name": "a"}]},
}


def test_bad_questions_fall_alone(tmp_path: Path) -> None:
    rows = [row for i, fault in enumerate(FAULTS.values()) for row in (question(**fault), question(scene_id=f"r{i}"))]
    items = read("spatial-qa", write_json_lines(tmp_path / "a.jsonl", rows))
    assert len(records(items)) == len(FAULTS)
    assert [row.line for row in fallen(items)] == list(range(1, len(rows), 2))
    for row, message in zip(fallen(items), FAULTS, strict=True):
        assert (row.reason, message in row.message) == ("malformed_row", True), row.message
