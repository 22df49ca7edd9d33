"""Truth and prediction files, whole evaluations and their intervals."""

import gzip
import json
import random

import numpy as np
import pytest

from ov2_core.evals.answers import Predictions, read_predictions, read_truth, video_of
from ov2_core.evals.bootstrap import mean_interval
from ov2_core.evals.evaluate import evaluate
from ov2_core.evals.item import TruthItem
from ov2_core.evals.suites import SUITES, suite_named
from ov2_core.evals.token_times import duration_of

JUMPSCORE = SUITES["jumpscore"]


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def truth(tmp_path):
    rows = [{"id": "a", "answer": "[1.0, 2.0]"}, {"id": 7, "answer": [0.5]}, {"id": "empty", "answer": "[]"}]
    return read_truth(write_lines(tmp_path / "truth.jsonl", rows), JUMPSCORE.parse_truth)


def test_missing_answers_count_as_wrong_and_oddities_are_named(tmp_path, truth):
    rows = [
        {"id": "a", "prediction": "[1.0, 2.0]"},
        {"id": "a", "prediction": "[9]"},
        {"id": "other", "prediction": "[1]"},
        "no json",
        {"id": "empty"},
    ]
    found = evaluate(JUMPSCORE, truth, read_predictions(write_lines(tmp_path / "p.jsonl", rows)))
    assert found.metrics["mAP"].value == pytest.approx(1 / 3)
    assert found.metrics["mAP"].num_items == 3
    assert found.missing_ids == ["7", "empty"]
    assert found.unknown_ids == ["other"]
    assert found.duplicate_ids == ["a (2 times)"]
    assert [line.split(":")[0] for line in found.bad_lines] == ["line 4", "line 5"]
    as_json = json.loads(json.dumps(found.to_json()))
    assert (as_json["num_items"], as_json["num_answered"], as_json["num_missing"]) == (3, 1, 2)
    assert [item["status"] for item in as_json["items"]] == ["read", "missing", "missing"]


def test_predictions_that_are_lists_are_taken_as_their_json(tmp_path, truth):
    rows = [{"id": "a", "prediction": [1.0, 2.0]}, {"id": 7, "prediction": None}, {"id": "empty", "prediction": []}]
    found = evaluate(JUMPSCORE, truth, read_predictions(write_lines(tmp_path / "p.jsonl", rows)))
    assert [item.metrics["mAP"] for item in found.items.values()] == [1.0, 0.0, 1.0]
    assert found.unreadable_ids == ["7"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "answer": "[2]"}, "line 2.*earlier row"),
        ({"id": "b", "answer": "soon"}, "line 2.*'b'.*list of seconds"),
        ({"id": "b"}, "line 2.*no `answer`"),
        ({"answer": "[2]"}, "line 2.*no `id`; it has 'answer'"),
        ({"id": 1.5, "answer": "[2]"}, "line 2.*expected an `id`.*1.5"),
        ({"id": "\ud800", "answer": "[2]"}, "line 2.*surrogate"),
        ("nonsense", "line 2: is no JSON"),
        ("[1]", "line 2.*object"),
    ],
)
def test_bad_truth_rows_are_errors_that_name_them(tmp_path, row, message):
    path = write_lines(tmp_path / "truth.jsonl", [{"id": "a", "answer": "[1]"}, row])
    with pytest.raises(ValueError, match=message):
        read_truth(path, JUMPSCORE.parse_truth)


def test_absent_and_empty_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened"):
        read_truth(tmp_path / "none.jsonl", JUMPSCORE.parse_truth)
    with pytest.raises(ValueError, match="no rows"):
        read_truth(write_lines(tmp_path / "t.jsonl", []), JUMPSCORE.parse_truth)
    with pytest.raises(ValueError, match="cannot be opened"):
        read_predictions(tmp_path / "none.jsonl")


def test_files_without_a_single_prediction_are_errors_that_say_what_is_expected(tmp_path):
    path = tmp_path / "p.jsonl"
    for text, message in (
        (
            '{"id": "a", "answer": "[1]"}\n',
            r"none of its 1 rows.*\{\"id\".*line 1: no `prediction`; it has 'id', 'answer'",
        ),
        ("id,prediction\na,[1]\n", r"none of its 2 rows.*line 1: is no JSON"),
        ('{"a": "[1]"}', "none of its 1 rows.*no `prediction`; it has 'a'"),
        ("[]", "none of its 1 rows.*object"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_predictions(path)
    for data, message in ((gzip.compress(b"{}"), "compressed"), ('{"id": "a"}'.encode("utf-16"), "no UTF-8")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_predictions(path)
    path.write_text('{"id": "a", "error": "OSError: timed out"}\n')  # all of a run failed: missing, not a bad file
    assert read_predictions(path).answers == {}
    path.write_text("")
    assert read_predictions(path).answers == {}


PREDICTIONS = [{"id": "a", "prediction": "[1.0, 2.0]"}, {"id": 7, "prediction": [0.5]}]


@pytest.mark.parametrize("form", ["lines", "crlf", "bom", "array", "indented array", "csv", "parquet"])
def test_predictions_are_read_from_every_format(tmp_path, form):
    path = tmp_path / {"csv": "p.csv", "parquet": "p.parquet"}.get(form, "p.json")
    lines = "".join(json.dumps(row) + "\n" for row in PREDICTIONS)
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": ["a", "7"], "prediction": ["[1.0, 2.0]", "[0.5]"]}), path)
    elif form == "csv":
        path.write_text('id,prediction\na,"[1.0, 2.0]"\n7,[0.5]\n')
    elif "array" in form:
        path.write_text(json.dumps(PREDICTIONS, indent=1 if "indented" in form else None))
    else:
        data = lines.replace("\n", "\r\n") if form == "crlf" else lines
        path.write_text(data, encoding="utf-8-sig" if form == "bom" else "utf-8")
    found = read_predictions(path)
    assert found.answers == {"a": "[1.0, 2.0]", "7": "[0.5]"}
    assert found.bad_lines == []


def test_text_that_is_no_utf8_is_named_by_its_record(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,answer\né,[1]\n".encode("latin-1"))
    with pytest.raises(ValueError, match="record 1: is no UTF-8"):
        read_truth(tmp_path / "t.csv", JUMPSCORE.parse_truth)


ODD = [
    None, True, -1, 1.5, float("nan"), float("inf"), 10**400, "", "a", "[1]", [], [1], [[1, 2]], {}, "9" * 5000, "\ud800",
    [1e308, 1.7e308], [[0, 1e308], [1e308, 1.7e308]], [[10**400, 1]], [float("nan")],
]  # fmt: skip
COLUMNS = ("kind", "choices", "mask", "box", "seconds", "type", "event_seconds", "event_boxes_xyxy_px", "width_px")


def test_odd_truth_is_refused_as_user_input_or_scored_within_bounds():
    """Two thousand rows of wrong types: ValueError, or metrics of sound numbers, which are JSON by the standard."""
    rng = random.Random(19)
    scored = 0
    for _ in range(2000):
        suite = SUITES[rng.choice(sorted(SUITES))]
        row = {"id": "a", "answer": rng.choice(ODD), "duration_seconds": rng.choice(ODD)}
        row |= {name: rng.choice(ODD) for name in COLUMNS if rng.random() < 0.2}
        try:
            item = TruthItem(id="a", answer=suite.parse_truth(row), row=row, folder="")
            found = evaluate(
                suite, [item], Predictions(answers={"a": rng.choice(["1", "[[0, 1], [2, 3]]", "B", "9" * 40])})
            )
        except ValueError:
            continue
        scored += 1
        duration_of(row)
        json.dumps(found.to_json(), allow_nan=False)
        assert all(0 <= metric.value <= 1 for metric in found.metrics.values())
    assert scored > 200


def test_what_truth_points_to_and_cannot_be_read_names_the_item():
    item = TruthItem(id="q7", answer=SUITES["spatial"].parse_truth({"mask": "m.png"}), row={}, folder="/none")
    with pytest.raises(ValueError, match=r"item q7: mask '/none/m\.png'"):
        evaluate(SUITES["spatial"], [item], Predictions(answers={"q7": "[(1, 2)]"}))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_published_columns_are_read_from_every_format(tmp_path, suffix):
    row = {
        "id": "v1",
        "video_path": "v1.mp4",
        "question": "<image>\nList the start timestamps",
        "answer": "[0.28, 4.44]",
    }
    path = tmp_path / f"JumpScore.{suffix}"
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), path)
    elif suffix == "csv":
        path.write_text(
            'id,video_path,question,answer\nv1,v1.mp4,"<image>\nList the start timestamps","[0.28, 4.44]"\n'
        )
    elif suffix == "json":
        path.write_text(json.dumps([row], indent=1))
    else:
        write_lines(path, [row])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v1.mp4").touch()
    [item] = read_truth(path, JUMPSCORE.parse_truth)
    assert item.answer == [0.28, 4.44]
    assert JUMPSCORE.question(item) == "List the start timestamps"
    assert video_of(item) == str(tmp_path / "videos" / "v1.mp4")


def test_item_without_video_is_named(truth):
    with pytest.raises(ValueError, match="item a: no `video`"):
        video_of(truth[0])


def test_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="jumpscore"):
        suite_named("golf")


def test_intervals_are_deterministic_hold_the_mean_and_narrow_with_items():
    rng = np.random.default_rng(3)
    few, many = rng.random(20), rng.random(2000)
    assert mean_interval(few, seed=1) == mean_interval(few, seed=1) != mean_interval(few, seed=2)
    for values in (few, many):
        low, high = mean_interval(values)
        assert low < values.mean() < high
    assert np.diff(mean_interval(many)) < np.diff(mean_interval(few)) / 5
    assert mean_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="expected values"):
        mean_interval([])


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        low, high = mean_interval(rng.random(60), seed=trial, num_resamples=400)
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 198


def test_interval_equals_the_normal_one_for_many_items():
    values = np.random.default_rng(0).normal(0.5, 0.1, 4000)
    low, high = mean_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1 / 4000**0.5, rel=0.1)


def test_evaluation_without_any_answer_is_all_wrong(truth):
    found = evaluate(JUMPSCORE, truth, Predictions())
    assert {metric.value for metric in found.metrics.values()} == {0.0}
    assert len(found.missing_ids) == 3
