"""Truth and prediction files, whole evaluations and their intervals."""

import json

import numpy as np
import pytest

from ov2_core.evals.answers import Predictions, read_predictions, read_truth, video_of
from ov2_core.evals.bootstrap import mean_interval
from ov2_core.evals.evaluate import evaluate
from ov2_core.evals.suites import SUITES, suite_named

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
        ({"answer": "[2]"}, "line 2.*expected an `id`"),
        ("nonsense", "line 2"),
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


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
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
