"""Spatial measures: hand-worked cases, naive references, malformed answers."""

import itertools
import random

import numpy as np
import pytest
from answer_noise import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ov2_core.evals.spatial import (
    box_iou,
    frechet_distance,
    mean_relative_accuracy,
    parse_letter,
    parse_number,
    parse_truth,
    points_inside,
    resampled,
    score_answer,
)


def score(row, answer, folder=""):
    return score_answer(row, parse_truth(row), answer, folder=folder)


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        (2.0, 2.0, 1.0),
        (2.2, 2.0, 0.9),  # 10 % off: all but the threshold .95
        (2.7, 2.0, 0.3),  # 35 % in words, a hair more in binary fractions, as the published scorer counts
        (1.0, 2.0, 0.1),  # 50 % off: the threshold .5 alone
        (3.02, 2.0, 0.0),
        (2.1, 2.0, 1.0),  # 5 % off is just within .95
        (0.0, 0.0, 1.0),
        (0.1, 0.0, 0.0),
        (-2.0, 2.0, 0.0),
    ],
)
def test_mean_relative_accuracy_by_hand(predicted, truth, expected):
    assert mean_relative_accuracy(predicted, truth) == pytest.approx(expected)


@given(st.integers(0, 4000).map(lambda n: n / 100), st.integers(1, 2000).map(lambda n: n / 100))
@settings(max_examples=300, deadline=None)
def test_mean_relative_accuracy_equals_counting_thresholds(predicted, truth):
    within = abs(predicted - truth) / truth <= 1 - np.linspace(0.5, 0.95, 10)
    assert mean_relative_accuracy(predicted, truth) == pytest.approx(float(within.mean()), abs=1e-12)


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(0.01, 100))
def test_mean_relative_accuracy_does_not_change_with_the_unit_and_falls_with_the_error(predicted, truth, scale):
    here = mean_relative_accuracy(predicted, truth)
    assert 0 <= here <= 1
    assert mean_relative_accuracy(predicted * scale, truth * scale) == pytest.approx(here, abs=0.1001)
    assert mean_relative_accuracy(truth, truth) == 1.0
    assert mean_relative_accuracy(truth + 2 * (predicted - truth), truth) <= here + 1e-12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5 m", 3.5), ("about 3.5 metres", 3.5), ("1,234.5", 1234.5), ("The answer is 2.", 2.0), ("-4", -4.0), ("1e2", 100.0),
        ("3 of 5", 3.0), ("none", None), ("", None), ("1e999", None),
    ],
)  # fmt: skip
def test_numbers_are_read_from_answers(text, expected):
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"), ("(B)", "B"), ("b", "B"), ("B.", "B"), ("B. left", "B"), ("The answer is B.", "B"), ("Answer: (C)", "C"),
        ("left", "B"), ("It is to the left.", "B"), ("left or right", None), ("A chair", None), ("E", None), ("", None),
        ("I think it is C", "C"),
    ],
)  # fmt: skip
def test_choices_are_read_from_answers(text, expected):
    assert parse_letter(text, ["front", "left", "right", "behind"]) == expected


def test_kinds_are_told_by_the_answer():
    rows = {
        "choice": [
            {"answer": "B"},
            {"answer": "left", "choices": ["left", "right"]},
            {"answer": 1, "choices": ["a", "b"]},
        ],
        "number": [{"answer": 3}, {"answer": "2.5"}],
        "text": [{"answer": "the red chair"}],
        "box": [{"answer": [0, 0, 10, 10]}, {"answer": "[1, 2, 3, 4]"}],
        "trace": [{"answer": "[(1, 2, 0.5), (3, 4, 0.6)]"}, {"answer": [[1, 2], [3, 4]]}],
        "point": [{"answer": "[(1, 2)]", "box": [0, 0, 10, 10]}, {"answer": None, "mask": "m.png"}],
    }
    for kind, examples in rows.items():
        assert {parse_truth(row).kind for row in examples} == {kind}


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "x", "kind": "sphere"}, {"answer": "z", "choices": ["a", "b"]}, {"answer": "far", "kind": "number"},
        {"answer": "[(1, 2)]", "kind": "point"}, {"answer": [1, 2], "kind": "box"}, {"answer": "", "kind": "trace"},
        {"answer": float("nan")}, {"answer": "[(1, 2), (3, 4, 5)]"}, {"answer": ""},
    ],
)  # fmt: skip
def test_truth_that_fits_no_kind_is_refused(row):
    with pytest.raises(ValueError, match=r"kind|answer|needs"):
        parse_truth(row)


def test_items_are_scored_by_their_kind():
    assert score({"answer": "B", "choices": ["left", "right"], "type": "direction"}, "right").metrics == {
        "score": 1.0,
        "accuracy": 1.0,
    }
    assert score({"answer": 2.0, "type": "distance"}, "2.2 m").metrics == {"score": 0.9, "MRA": 0.9}
    assert score({"answer": 2.0, "type": "distance"}, "2.2 m").groups == ("distance",)
    assert score({"answer": "The red chair"}, "red chair.").metrics["accuracy"] == 1.0
    assert score({"answer": None, "box": [0, 0, 100, 100]}, "[(50, 50), (500, 500)]").metrics["point_in_mask"] == 0.5
    assert score({"answer": [0, 0, 10, 10]}, "[5, 0, 15, 10]").metrics["box_iou"] == pytest.approx(1 / 3)


def test_points_are_held_against_the_mask(tmp_path):
    mask = np.zeros((50, 200), np.uint8)
    mask[:25, 100:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    row = {"answer": None, "mask": "m.png"}
    found = [
        score(row, text, str(tmp_path)).metrics["score"]
        for text in ("[(750, 250)]", "[(250, 250)]", "[(1000, 0)]", "[(9999, 1)]")
    ]
    assert found == [1.0, 0.0, 1.0, 0.0]
    assert points_inside([(499, 0), (500, 499), (500, 500)], mask > 0) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="cannot be read"):
        score({"answer": None, "mask": "none.png"}, "[(1, 2)]", str(tmp_path))


def test_traces_score_one_minus_the_frechet_distance():
    row = {"answer": "[(0, 0, 1.0), (100, 0, 1.5), (200, 0, 2.0)]"}
    assert score(row, row["answer"]).metrics["trace"] == pytest.approx(1.0)
    assert score(row, "[(0, 0, 1), (50, 0, 1), (200, 0, 1)]").metrics["trace"] == pytest.approx(
        1.0
    )  # waypoints lie elsewhere
    shifted = score(row, "[(0, 50, 1.0), (200, 50, 2.0)]")
    assert shifted.metrics["trace"] == pytest.approx(0.75)
    assert shifted.detail["frechet_thousandths"] == pytest.approx(50)
    assert shifted.detail["rmse_thousandths"] == pytest.approx(50)
    assert shifted.detail["depth_error_metres"] == pytest.approx(0.0, abs=1e-6)
    assert score(row, "[(200, 0, 2), (0, 0, 1)]").metrics["trace"] == 0.0  # the other way round
    assert score(row, "[(0, 0), (200, 0)]").status == "unreadable"  # depth was asked for


def _naive_frechet(a, b):
    """The least, over all monotone couplings, of the longest leash: by enumeration."""
    best = np.inf
    moves = [(1, 0), (0, 1), (1, 1)]
    stack = [((0, 0), np.hypot(*(a[0] - b[0])))]
    while stack:
        (i, j), leash = stack.pop()
        if (i, j) == (len(a) - 1, len(b) - 1):
            best = min(best, leash)
        for di, dj in moves:
            if i + di < len(a) and j + dj < len(b):
                stack.append(((i + di, j + dj), max(leash, np.hypot(*(a[i + di] - b[j + dj])))))
    return best


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_frechet_distance_equals_that_of_all_couplings(seed, num_a, num_b):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 100, (num_a, 2)), rng.uniform(0, 100, (num_b, 2))
    assert frechet_distance(a, b) == pytest.approx(_naive_frechet(a, b))


def test_resampling_keeps_ends_and_equal_steps():
    trace = np.array([[0.0, 0.0, 1.0], [30.0, 0.0, 2.0], [30.0, 0.0, 2.0], [30.0, 40.0, 3.0]])
    found = resampled(trace, 8)
    np.testing.assert_allclose(found[[0, -1]], trace[[0, -1]])
    np.testing.assert_allclose(np.abs(np.diff(found[:, :2], axis=0)).sum(axis=1), 10.0)
    assert resampled(np.array([[5.0, 5.0]]), 4).tolist() == [[5.0, 5.0]] * 4


@given(st.tuples(*[st.integers(0, 20)] * 4), st.tuples(*[st.integers(0, 20)] * 4))
@settings(max_examples=200, deadline=None)
def test_box_iou_equals_counting_cells(a, b):
    def cells(box):
        (x0, x1), (y0, y1) = sorted(box[::2]), sorted(box[1::2])
        return set(itertools.product(range(x0, x1), range(y0, y1)))

    if cells(a) | cells(b):
        assert box_iou(a, b) == pytest.approx(len(cells(a) & cells(b)) / len(cells(a) | cells(b)))


def test_three_thousand_malformed_answers_score_as_wrong_and_not_as_missing():
    rng = random.Random(13)
    rows = [
        {"answer": "Y", "choices": [f"choice {i} of many" for i in range(26)]},
        {"answer": 7.77e60},
        {"answer": None, "box": [997.5, 997.5, 998.5, 998.5]},
        {"answer": [900, 900, 910, 910]},
        {"answer": [[900, 900], [990, 990]]},
        {"answer": "a purple wardrobe"},
    ]
    truths = [parse_truth(row) for row in rows]
    statuses = set()
    for _ in range(3000):
        text = noise(rng)
        for row, truth in zip(rows, truths, strict=True):
            item = score_answer(row, truth, text)
            statuses.add(item.status)
            assert item.metrics["score"] == 0.0 or (truth.value == "Y" and "Y" in text.upper())  # by chance
    assert statuses == {"read", "unreadable"}
