"""Temporal grounding and counting: hand-worked cases, a naive reference, annotation files, malformed answers."""

import json
import random

import numpy as np
import pytest
from answer_noise import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.evals import counting
from ov2_core.evals.grounding import convert, interval_iou, parse_intervals, parse_truth, score_answer, union_iou

INTERVALS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair) / 2, max(pair) / 2)),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 5 / 15),
        ((0, 10), (10, 20), 0.0),
        ((0, 10), (20, 30), 0.0),
        ((2, 4), (0, 10), 0.2),
        ((3, 3), (3, 3), 1.0),
        ((3, 3), (4, 4), 0.0),
        ((3, 3), (0, 6), 0.0),
    ],
)
def test_iou_by_hand(a, b, expected):
    assert interval_iou(a, b) == pytest.approx(expected)
    assert interval_iou(b, a) == pytest.approx(expected)


@given(INTERVALS, INTERVALS)
@settings(max_examples=200, deadline=None)
def test_iou_of_unions_equals_one_on_a_fine_grid(a, b):
    grid = np.arange(0, 31, 0.25) + 0.125
    on_a, on_b = (np.any([(start < grid) & (grid < end) for start, end in part], axis=0) for part in (a, b))
    if (on_a | on_b).any():
        assert union_iou(a, b) == pytest.approx((on_a & on_b).sum() / (on_a | on_b).sum())


@given(INTERVALS, INTERVALS, st.integers(0, 100))
def test_iou_of_itself_is_one_and_it_does_not_change_when_time_shifts(a, b, shift):
    assert union_iou(a, a) == 1.0
    moved = [[(start + shift, end + shift) for start, end in part] for part in (a, b)]
    assert union_iou(*moved) == pytest.approx(union_iou(a, b), abs=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[12.3, 15.0]", [(12.3, 15.0)]),
        ("From 12.3 to 15 seconds.", [(12.3, 15.0)]),
        ("12.3 - 15.0", [(12.3, 15.0)]),
        ("12.3s - 15.0s", [(12.3, 15.0)]),
        ("between 3 and 4.5 s", [(3.0, 4.5)]),
        ("1:02 - 1:05.5", [(62.0, 65.5)]),
        ("[[1, 2], [3, 4]]", [(1.0, 2.0), (3.0, 4.0)]),
        ("(15, 12)", [(12.0, 15.0)]),
        ("It starts at 12.3 seconds and ends at 15.6 seconds.", [(12.3, 15.6)]),
        ('{"start": 12.3, "end": 15.6}', [(12.3, 15.6)]),
        ("12.3, 15.6", [(12.3, 15.6)]),
        ("**12.3** → **15.6**", [(12.3, 15.6)]),
        ("from second 1:02 to second 1:05", [(62.0, 65.0)]),
        ("at 3, 5, 7 s", None),  # three times are no interval
        ("step2 of v1.5", None),
        ("at 12.3", None),
        ("", None),
        ("never", None),
    ],
)
def test_intervals_are_read_from_answers(text, expected):
    assert parse_intervals(text) == expected


def test_one_true_interval_is_held_against_the_first_and_several_against_the_union():
    item = score_answer({}, [(0.0, 10.0)], "[0, 5] or [5, 10]")
    assert item.metrics == {"mIoU": 0.5, "R@0.3": 1.0, "R@0.5": 1.0, "R@0.7": 0.0}
    both = score_answer({}, [(0.0, 5.0), (5.0, 10.0)], "[0, 5] or [5, 10]")
    assert both.metrics["mIoU"] == 1.0


def test_charades_sta_lines_become_truth():
    text = "AO8RW 0.0 6.9##a person is putting a book on a shelf.\n\nY6R7T 20.8 13.1##person puts it down.\n"
    first, second = convert(text, "charades-sta")
    assert first == {
        "id": "AO8RW_1",
        "video": "AO8RW.mp4",
        "query": "a person is putting a book on a shelf.",
        "answer": [[0.0, 6.9]],
    }
    assert second["answer"] == [[13.1, 20.8]]
    with pytest.raises(ValueError, match=r"line 1.*start end##sentence"):
        convert("AO8RW 0.0##a", "charades-sta")


def test_activitynet_captions_become_truth():
    videos = {"v_1": {"duration": 9.5, "timestamps": [[0, 4.1], [3, 9.5]], "sentences": ["A man runs.", " He falls."]}}
    rows = convert(json.dumps(videos), "activitynet-captions")
    assert [row["id"] for row in rows] == ["v_1_0", "v_1_1"]
    assert rows[1] == {
        "id": "v_1_1", "video": "v_1.mp4", "query": "He falls.", "answer": [[3.0, 9.5]], "duration_seconds": 9.5
    }  # fmt: skip
    with pytest.raises(ValueError, match="v_2"):
        convert(json.dumps({"v_2": {"timestamps": [[0, 1]], "sentences": []}}), "activitynet-captions")


def test_qvhighlights_lines_become_truth():
    line = {
        "qid": 9769,
        "query": "some military patriots",
        "vid": "j7rJ",
        "duration": 150,
        "relevant_windows": [[72, 82], [84, 94]],
    }
    [row] = convert(json.dumps(line), "qvhighlights")
    assert (row["id"], row["video"], row["answer"]) == ("9769", "j7rJ.mp4", [[72.0, 82.0], [84.0, 94.0]])
    with pytest.raises(ValueError, match=r"line 1.*relevant_windows"):
        convert(json.dumps({"qid": 1, "query": "x", "vid": "y"}), "qvhighlights")


def test_annotations_of_wrong_types_or_with_an_id_twice_are_refused():
    with pytest.raises(ValueError, match="v: expected timestamps"):
        convert(json.dumps({"v": {"timestamps": [[0, 1]], "sentences": [3]}}), "activitynet-captions")
    line = json.dumps({"qid": 1, "query": "x", "vid": "y", "relevant_windows": [[1, 2]]})
    with pytest.raises(ValueError, match="1: more than one question"):
        convert(f"{line}\n{line}", "qvhighlights")
    with pytest.raises(ValueError, match="line 1"):
        convert('{"qid": 1, "query": 3, "vid": "y", "relevant_windows": [[1, 2]]}', "qvhighlights")


def test_unknown_annotations_are_refused():
    with pytest.raises(ValueError, match="charades-sta"):
        convert("", "coco")


@pytest.mark.parametrize("answer", ["", "soon", [], [3], [5, 4], [[1, 2, 3]], [float("nan"), 1], None, {"a": 1}, True])
def test_truth_that_is_no_interval_is_refused(answer):
    with pytest.raises(ValueError, match="start, end"):
        parse_truth(answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12), ("There are 12 jumps.", 12), ("twelve", 12), ("none", 0), ("3.0", 3), ("[0.2, 0.6, 1.1]", 3),
        ("1, 2, 3... 5", 5), ("twice", 2), ("I count 12 jumps in 8 seconds.", 12),
        ("5 times, at 1s, 2s and 5.5s", 5), ("1,234", 1234), ("4 s", None), ("", None), ("2.5", None), ("many", None),
        ("9" * 30, None),
    ],
)  # fmt: skip
def test_counts_are_read_from_answers(text, expected):
    assert counting.parse_count(text) == expected


def test_counting_metrics_by_hand():
    metrics = [counting.score_answer({}, 10, answer).metrics for answer in ("10", "11", "15", "30", None)]
    assert [m["exact"] for m in metrics] == [1, 0, 0, 0, 0]
    assert [m["off_by_one"] for m in metrics] == [1, 1, 0, 0, 0]
    assert [m["relative"] for m in metrics] == pytest.approx([1, 0.9, 0.5, 0, 0])
    assert counting.score_answer({}, 0, "0").metrics["relative"] == 1.0
    assert counting.parse_truth([1, 2]) == 2 == counting.parse_truth("2")
    for bad in ("two", -1, True, 1.5, None):
        with pytest.raises(ValueError, match="whole number"):
            counting.parse_truth(bad)


def test_three_thousand_malformed_answers_score_as_wrong_and_not_as_missing():
    rng = random.Random(11)
    statuses = set()
    for _ in range(3000):
        text = noise(rng)
        for item in (score_answer({}, [(1e6, 1e6 + 1)], text), counting.score_answer({}, 654_321, text)):
            assert set(item.metrics.values()) == {0.0} or max(item.metrics.values()) < 0.5
            statuses.add(item.status)
    assert statuses == {"read", "unreadable"}
