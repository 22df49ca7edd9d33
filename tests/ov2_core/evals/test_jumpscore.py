"""JumpScore: hand-worked cases, independent average precision, properties, and answers that no model should give."""

import math
import random
import re

import numpy as np
import pytest
from answer_noise import noise
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ov2_core.evals.jumpscore import (
    MAX_CHARACTERS,
    bracketed_lists,
    format_times,
    match_times,
    parse_times,
    parse_truth,
    score_answer,
    score_times,
)

TIMES = st.lists(st.integers(0, 400).map(lambda n: n / 20), max_size=12)
TOLERANCES = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 0.7])


@pytest.mark.parametrize(
    ("predicted", "truth", "tolerance", "expected"),
    [
        ([0.28, 4.44], [0.28, 4.44], 0.1, 1.0),
        ([], [], 0.1, 1.0),
        ([1.0], [], 0.1, 0.0),
        ([], [1.0], 0.1, 0.0),
        # Found second and third of three: precision 1/2 and 2/3, each a step of 1/2 in recall.
        ([0.0, 1.0, 2.0], [1.0, 2.0], 0.1, (1 / 2 + 2 / 3) / 2),
        # False alarm last: costs nothing. False alarm first: costs.
        ([1.0, 9.0], [1.0], 0.1, 1.0),
        ([0.0, 1.0], [1.0], 0.1, 0.5),
        # A repeat of a found time is false; half of the truth is not found.
        ([1.0, 1.0], [1.0, 2.0], 0.1, 0.5),
        # The nearest, not the first: 1.1 goes to 1.15, and 1.0 stays for nobody.
        ([1.1, 1.2], [1.0, 1.15], 0.1, 0.5),
        # Equally near: the earlier.
        ([1.5, 1.9], [1.0, 2.0], 0.5, 1.0),
        # The border in binary fractions: 0.38 - 0.28 < 0.1, but 0.4 - 0.3 > 0.1.
        ([0.38], [0.28], 0.1, 1.0),
        ([0.4], [0.3], 0.1, 0.0),
        ([0.401], [0.3], 0.1, 0.0),
        # Two late answers to one early truth, then a truth in between that only the second can have.
        ([1.2, 1.3], [1.1, 1.45], 0.2, 1.0),
        # Order of writing does not matter.
        ([2.0, 0.0, 1.0], [1.0, 2.0], 0.1, (1 / 2 + 2 / 3) / 2),
    ],
)
def test_average_precision_by_hand(predicted, truth, tolerance, expected):
    assert match_times(predicted, truth, tolerance).average_precision == pytest.approx(expected, abs=1e-12)


def test_map_is_the_mean_over_three_tolerances_by_hand():
    scores = score_times([0.05, 1.15, 2.25], [0.0, 1.0, 2.0])
    assert scores["AP@0.1"] == pytest.approx(1 / 3)
    assert scores["AP@0.2"] == pytest.approx(2 / 3)
    assert scores["AP@0.3"] == pytest.approx(1.0)
    assert scores["mAP"] == pytest.approx(2 / 3)
    assert scores["recall@0.2"] == pytest.approx(2 / 3) == scores["precision@0.2"]


def _naive_average_precision(predicted: list[float], truth: list[float], tolerance: float) -> float:
    """As scikit-learn defines it, from labels in order of confidence: sum of (R_n - R_n-1) P_n; positives that were never
    retrieved are in the denominator of recall. Matching over a full distance matrix."""
    if not truth:
        return float(not predicted)
    distance = np.abs(np.subtract.outer(np.sort(predicted), truth)) if predicted else np.zeros((0, len(truth)))
    labels = []
    for row in distance:
        column = int(np.argmin(row))
        hit = bool(row[column] <= tolerance)
        labels.append(hit)
        if hit:
            distance[:, column] = np.inf
    true_positives = np.cumsum(labels)
    precision = true_positives / np.arange(1, len(labels) + 1)
    recall = np.concatenate([[0.0], true_positives / len(truth)])
    return float(np.sum(np.diff(recall) * precision))


@given(TIMES, TIMES.map(lambda times: sorted(set(times))), TOLERANCES)
@settings(max_examples=300, deadline=None)
def test_average_precision_equals_an_independent_one(predicted, truth, tolerance):
    found = match_times(predicted, truth, tolerance).average_precision
    assert found == pytest.approx(_naive_average_precision(predicted, truth, tolerance), abs=1e-12)


@given(TIMES, TIMES.map(sorted), TOLERANCES)
@settings(max_examples=100, deadline=None)
def test_average_precision_equals_that_of_scikit_learn(predicted, truth, tolerance):
    """Its recall ends at what was retrieved, so its sum is a share of ours: times found / true."""
    from sklearn import metrics

    match = match_times(predicted, truth, tolerance)
    labels = [index is not None for index in match.truth_of_prediction]
    if any(labels):
        found = metrics.average_precision_score(labels, -np.arange(len(labels)))
        assert match.average_precision == pytest.approx(found * sum(labels) / len(truth), abs=1e-12)


@given(TIMES)
def test_perfect_answer_scores_one(truth):
    assert score_times(truth, truth)["mAP"] == 1.0


@given(TIMES, TIMES.map(sorted), st.tuples(TOLERANCES, TOLERANCES).map(sorted))
@settings(max_examples=400, deadline=None)
@example(predicted=[1.11, 1.29], truth=[1.0, 1.2], tolerances=[0.1, 0.3])
def test_average_precision_is_monotone_in_tolerance(predicted, truth, tolerances):
    low, high = (match_times(predicted, truth, tolerance).average_precision for tolerance in tolerances)
    assert low <= high + 1e-12


SIXTY_FOURTHS = st.lists(st.integers(0, 1000).map(lambda n: n / 64), max_size=12)
"""Their differences are exact, so that a shift moves no border."""


@given(SIXTY_FOURTHS, SIXTY_FOURTHS.map(sorted), st.integers(0, 100_000).map(lambda n: n / 64))
@settings(max_examples=200, deadline=None)
def test_scores_do_not_change_when_all_times_shift(predicted, truth, shift):
    here = score_times(predicted, truth)
    there = score_times([time + shift for time in predicted], [time + shift for time in truth])
    assert there == pytest.approx(here, abs=1e-12)


@given(TIMES, TIMES.map(sorted), TOLERANCES)
def test_matches_are_one_to_one_and_within_the_tolerance(predicted, truth, tolerance):
    match = match_times(predicted, truth, tolerance)
    used = [index for index in match.truth_of_prediction if index is not None]
    assert len(used) == len(set(used))
    for time, index in zip(sorted(predicted), match.truth_of_prediction, strict=True):
        assert index is None or abs(truth[index] - time) <= tolerance


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.28, 4.44]", [0.28, 4.44]),
        ("[4.44, 0.28]", [0.28, 4.44]),
        ("[]", []),
        ("[ ]", []),
        ("The jumps start at [0.28, 4.44].", [0.28, 4.44]),
        ("```json\n[0.28,\n 4.44]\n```", [0.28, 4.44]),
        ("[0.28, 4.44,]", [0.28, 4.44]),
        ('["0.28", "4.44"]', [0.28, 4.44]),
        ('["0.28s", "4.44"]', [0.28]),  # the first reading finds something, so the others are not tried
        ("[0.28s, 4.44s]", [0.28, 4.44]),
        ("0.28s and then 4.44 s", [0.28, 4.44]),
        ("Example [1] gives [0.5, 1.0, 1.5]", [0.5, 1.0, 1.5]),  # the longest list
        ("[0.28, about 4.44]", [0.28, 4.44]),  # no JSON
        ("[0.28, 4.44", [0.28, 4.44]),  # cut off: all numbers
        ("0.28, 4.44", [0.28, 4.44]),
        ("[true, 2.5]", [2.5]),
        ("[NaN, Infinity, 2.5]", [2.5]),
        ("[0.28, 0.28]", [0.28, 0.28]),
        ("[[0.28, 4.44]]", [0.28, 4.44]),
        (
            "```json\n[[1, 2], [3, 4]]\n```",
            [1.0, 2.0, 3.0, 4.0],
        ),  # the whole fence; it holds no number itself: all numbers
        ("see [of [0.5, 1.0, 2.0]: [3, 4, 5, 6, 7]", [0.5, 1.0, 2.0]),  # from the first bracket on it is the longest
        ("[-0.5, 1.5]", [-0.5, 1.5]),
        ("[[]]", []),
        ("", None),
        ("I cannot tell.", None),
        ("null", None),
    ],
)
def test_answers_are_read_as_the_published_scorer_reads_them(text, expected):
    assert parse_times(text) == expected


PIECES = ["[", "]", "]", "```json", "```", "\n", " ", "1.5", ",", '"2s"', "```json\n[", "]\n```", "x", "[]"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=400, deadline=None)
def test_lists_are_cut_out_as_one_pattern_would(text):
    pattern = re.compile(r"```json\s*(?P<fenced>\[.*?\])\s*```|(?P<bare>\[.*?\])", re.DOTALL)
    assert bracketed_lists(text) == [match["fenced"] or match["bare"] for match in pattern.finditer(text)]


@given(TIMES.map(sorted))
def test_format_and_parse_are_inverse(times):
    assert parse_times(format_times(times)) == pytest.approx(times)


def test_three_thousand_malformed_answers_are_read_without_raising_and_score_as_wrong():
    rng = random.Random(7)
    statuses = {"read": 0, "unreadable": 0, "missing": 0}
    for _ in range(3000):
        text = noise(rng)
        item = score_answer({}, [1000.25, 2000.5], text)  # times that no fragment can write
        statuses[item.status] += 1
        assert set(item.metrics.values()) == {0.0} or item.metrics["count_exact"] == 1.0
        assert item.metrics["mAP"] == 0.0
        assert all(math.isfinite(time) for time in item.detail["predicted_seconds"])
    assert statuses["missing"] == 0
    assert min(statuses["read"], statuses["unreadable"]) > 300


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_without_raising(text):
    times = parse_times(text)
    assert times is None or times == sorted(times)


@pytest.mark.parametrize("piece", ["1.5, ", "[", "```json[", "[]", "9", "1 ", ", ", "```json []"])
def test_of_an_answer_that_runs_on_only_the_head_is_read(piece):
    """As if the rest were not there; quadratic search would not end (the suite's time-out)."""
    item = score_answer({}, [index / 7 for index in range(300)], "[" + piece * 1_000_000)
    assert len(item.detail["predicted_seconds"]) < 110_000
    head = ("[" + piece * 1_000_000)[:MAX_CHARACTERS]
    assert item.detail["predicted_seconds"] == (parse_times(head) or [])


def test_unreadable_and_missing_answers_are_wrong_also_where_nothing_is_true():
    assert score_answer({}, [], "[]").metrics["mAP"] == 1.0
    for answer, status in (("no idea", "unreadable"), (None, "missing")):
        item = score_answer({}, [], answer)
        assert item.status == status
        assert set(item.metrics.values()) == {0.0}


@pytest.mark.parametrize("answer", ["", "none", [True], ["x"], {"a": 1}, None, [-1.0], [float("nan")], "[1, [2]]", 3])
def test_truth_that_is_no_list_of_times_is_refused(answer):
    with pytest.raises(ValueError, match="list of seconds"):
        parse_truth(answer)


def test_truth_is_read_from_lists_and_from_text():
    assert parse_truth("[4.44, 0.28]") == parse_truth([0.28, 4.44]) == parse_truth('["0.28s", 4.44]') == [0.28, 4.44]
    assert parse_truth("[]") == parse_truth([]) == []
