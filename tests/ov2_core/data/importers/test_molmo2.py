from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from importer_fixtures import fallen, read, records, texts, write_json_lines, write_parquet

from ov2_core.data.tracking import TrackPoint, parse_tracks


def track(**changes: Any) -> dict[str, Any]:
    """Two objects over 13 frames at 6 fps; the second appears in frame 6 only."""
    row: dict[str, Any] = {
        "id": "mose_1",
        "video": "full",
        "clip": "full_60_72",
        "video_dataset": "mose",
        "fps": 6,
        "start_frame": 60,
        "end_frame": 72,
        "w": 640,
        "h": 360,
        "exp": "the red car",
        "mask_id": ["7", "3"],
        "points": [
            {"object_id": "3", "points": [[]] * 6 + [[640.0, 360.0]] + [[]] * 6},
            {"object_id": "7", "points": [[frame * 10.0, 180.0] for frame in range(13)]},
        ],
    }
    return {**row, **changes}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tracks_become_text(tmp_path: Path, kind: str) -> None:
    rows = [track(), track(id="mose_2", exp=" it ")]
    write = write_json_lines if kind == "jsonl" else write_parquet
    one, two = records(read("molmo2-track", write(tmp_path / f"a.{kind}", rows), media_root="/videos"))
    assert texts(one) == [
        ("user", "<video>\nTrack the the red car"),
        (
            "assistant",
            '<tracks coords="0.0 1 0 500;0.5 1 47 500;1.0 1 94 500 2 1000 1000;1.5 1 141 500;2.0 1 188 500">'
            "target objects</tracks>",
        ),
    ]
    assert texts(two)[0] == ("user", "<video>\nTrack the it")
    assert (one.media[0].uri, one.media[0].start_seconds) == ("/videos/mose/full_60_72.mp4", None)
    assert one.media == two.media
    assert one.tags == ["source:mose"]


def test_tracks_of_whole_videos_carry_the_range(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [track()])
    (record,) = records(read("molmo2-track", path, cut=False, media_template="{video}.mp4"))
    ref = record.media[0]
    assert (ref.uri, ref.start_seconds, ref.end_seconds) == (f"{tmp_path}/full.mp4", 10.0, pytest.approx(73 / 6))
    assert parse_tracks(texts(record)[1][1])[0].seconds == 0.0


@settings(max_examples=60, deadline=None)
@given(
    fps=st.sampled_from([1, 5, 6, 7.5, 24, 30]),
    num_frames=st.integers(1, 80),
    sampling_fps=st.sampled_from([1.0, 2.0, 3.0, 6.0]),
    hidden=st.sets(st.integers(0, 80)),
)
def test_written_points_are_those_of_their_frames(
    tmp_path_factory: pytest.TempPathFactory, fps: float, num_frames: int, sampling_fps: float, hidden: set[int]
) -> None:
    places = [[] if frame in hidden - {0} else [float(frame), 80.0 - frame] for frame in range(num_frames)]
    row = track(
        fps=fps,
        start_frame=0,
        end_frame=num_frames - 1,
        w=80,
        h=80,
        mask_id=["a"],
        points=[{"object_id": "a", "points": places}],
    )
    path = write_json_lines(tmp_path_factory.mktemp("tracks") / "a.jsonl", [row])
    (record,) = records(read("molmo2-track", path, sampling_fps=sampling_fps))
    points = parse_tracks(texts(record)[1][1])
    frames = [round(point.seconds * fps) for point in points]
    assert [(point.x, point.y) for point in points] == [
        (int(f * 12.5 + 0.5), int(1000 - f * 12.5 + 0.5)) for f in frames
    ]
    if sampling_fps <= fps:
        steps = {round(k * fps / sampling_fps) for k in range(1000)}
        assert frames == [f for f in range(num_frames) if f in steps and places[f]]


TRACK_FAULTS: dict[str, dict[str, Any]] = {
    "lies outside": {"points": [{"object_id": "7", "points": [[641.0, 0.0]]}]},
    "not in mask_id": {"points": [{"object_id": "9", "points": [[1.0, 1.0]]}]},
    "stands there twice": {"points": [{"object_id": "7", "points": [[1.0, 1.0]]}] * 2},
    "but the clip has 13": {"points": [{"object_id": "7", "points": [[1.0, 1.0]] * 14}]},
    "expected [x, y]": {"points": [{"object_id": "7", "points": [[1.0]]}]},
    "no object has a point": {"points": [{"object_id": "7", "points": [[], [1.0, 1.0]]}]},
    "fps": {"fps": 0},
    "w: ": {"w": None},
    "exp": {"exp": ""},
    "lies before start_frame": {"end_frame": 3},
    "names an object twice": {"mask_id": ["7", "7"]},
    "clip: expected text": {"clip": None},
    "points.0.points": {"points": [{"object_id": "7", "points": "x"}]},
}


def test_bad_track_rows_fall_alone(tmp_path: Path) -> None:
    rows = [row for fault in TRACK_FAULTS.values() for row in (track(**fault), track(id=str(fault)))]
    rows = [row if i % 2 == 0 else {**row, "exp": f"number {i}"} for i, row in enumerate(rows)]
    items = read("molmo2-track", write_json_lines(tmp_path / "a.jsonl", rows))
    assert len(records(items)) == len(TRACK_FAULTS)
    assert [row.line for row in fallen(items)] == list(range(1, len(rows), 2))
    for row, message in zip(fallen(items), TRACK_FAULTS, strict=True):
        assert (row.reason, message in row.message) == ("malformed_row", True), row.message


def point(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "video_id": "abc",
        "video_source": "youtube",
        "category": "animal",
        "clip_start": 10.0,
        "clip_end": 40.0,
        "label": "red fish",
        "question": "How many red fish are there?",
        "count": 3,
        "points": [[{"x": 50.0, "y": 25.0}], [{"x": 99.9, "y": 0.0}, {"x": 10.0, "y": 100.0}]],
        "two_fps_timestamps": [10.5, 12.0],
        "raw_timestamps": [10.51, 12.01],
        "raw_frames": [315, 360],
        "annotator_unsure": False,
    }
    return {**row, **changes}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_points_become_text_and_a_count(tmp_path: Path, kind: str) -> None:
    write = write_json_lines if kind == "jsonl" else write_parquet
    (record,) = records(read("molmo2-point", write(tmp_path / f"a.{kind}", [point()]), media_root="/v"))
    assert texts(record) == [
        ("user", "<video>\nPoint to the red fish"),
        ("assistant", '<tracks coords="0.5 1 500 250;2.0 2 100 1000 3 999 0">target objects</tracks>'),
        ("user", "How many red fish are there?"),
        ("assistant", "3"),
    ]
    ref = record.media[0]
    assert (ref.uri, ref.start_seconds, ref.end_seconds) == ("/v/abc.mp4", 10.0, 40.0)
    assert record.tags == ["source:youtube", "category:animal"]


def test_point_options_and_tags(tmp_path: Path) -> None:
    rows = [
        point(annotator_unsure=True, clip_start=None, clip_end=None),
        point(label="differs", count=5),
        point(label="none", count=0, points=[], two_fps_timestamps=[]),
        point(label="raw", two_fps_timestamps=None, raw_timestamps=[10.51, 12.01]),
    ]
    unsure, differs, none, raw = records(read("molmo2-point", write_json_lines(tmp_path / "a.jsonl", rows)))
    assert "annotator_unsure" in unsure.tags
    assert parse_tracks(texts(unsure)[1][1])[0] == TrackPoint(10.5, 1, 500, 250)
    assert "count_differs" in differs.tags
    assert len(differs.messages) == 2
    assert [answer for _, answer in texts(none)[1::2]] == ['<tracks coords="">target objects</tracks>', "0"]
    assert parse_tracks(texts(raw)[1][1])[0].seconds == 0.5
    unit = [point(points=[[{"x": 0.5, "y": 0.25}]], two_fps_timestamps=[10.5], count=1)]
    path = write_json_lines(tmp_path / "b.jsonl", unit)
    (record,) = records(read("molmo2-point", path, scale=1, count_round=False, cut=True))
    assert texts(record)[1:] == [("assistant", '<tracks coords="0.5 1 500 250">target objects</tracks>')]
    assert record.media[0].start_seconds is None


POINT_FAULTS: dict[str, dict[str, Any]] = {
    "see the importer's option `scale`": {"points": [[{"x": 320, "y": 1}], []]},
    "2 lists of points for 1 timestamps": {"two_fps_timestamps": [10.5]},
    "lies outside the clip": {"two_fps_timestamps": [9.5, 12]},
    "neither two_fps_timestamps": {"two_fps_timestamps": None, "raw_timestamps": None},
    "points.0.0.y": {"points": [[{"x": 3}], []]},
    "label": {"label": None},
    "video_id": {"video_id": ""},
}


def test_bad_point_rows_fall_alone(tmp_path: Path) -> None:
    rows = [row for i, fault in enumerate(POINT_FAULTS.values()) for row in (point(**fault), point(label=f"fish {i}"))]
    items = read("molmo2-point", write_json_lines(tmp_path / "a.jsonl", rows))
    assert len(records(items)) == len(POINT_FAULTS)
    assert [row.line for row in fallen(items)] == list(range(1, len(rows), 2))
    for row, message in zip(fallen(items), POINT_FAULTS, strict=True):
        assert (row.reason, message in row.message) == ("malformed_row", True), row.message
