"""Tracking: reading of answers, matching and HOTA against naive references, J and F against definitions written out."""

import itertools
import math
import random

import numpy as np
import pytest
from answer_noise import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.data.tracking import TrackPoint, format_tracks, parse_tracks
from ov2_core.evals.masks import ColourPropagator, boundary_f, boundary_of, region_iou, score_masks
from ov2_core.evals.tracking import (
    TrackTruth,
    by_frame,
    frame_of,
    hota,
    match_points,
    parse_truth,
    prompt,
    prompts_of,
    read_tracks,
    score_answer,
    score_points,
    score_with_masks,
)

pytest.importorskip("scipy")


def truth_of(points):
    return TrackTruth(points=points, frames=frozenset(points))


@st.composite
def tracks(draw):
    """Points of up to three objects in up to five frames."""
    found = {}
    for frame in range(draw(st.integers(0, 5))):
        ids = draw(st.sets(st.integers(1, 3), min_size=1))
        found[frame] = {id_: (draw(st.integers(0, 20)) * 20.0, draw(st.integers(0, 20)) * 20.0) for id_ in sorted(ids)}
    return found


# -------------------------------------------------------------------------------- answers


POINTS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 4), st.integers(0, 1000), st.integers(0, 1000)), max_size=12,
    unique_by=lambda entry: entry[:2],
).map(lambda entries: [TrackPoint(t / 10, id_, x, y) for t, id_, x, y in entries])  # fmt: skip


@given(POINTS)
@settings(max_examples=100, deadline=None)
def test_sound_answers_are_read_as_the_strict_reader_reads_them(points):
    text = format_tracks(points)
    assert read_tracks(f"Here: {text}") == (sorted(parse_tracks(text)), 0)


@pytest.mark.parametrize(
    ("text", "points", "bad"),
    [
        ('<tracks coords="">target objects</tracks>', [], 0),
        (
            '<tracks coords="0.0 1 520 431;0.5 1 522 4',
            [(0.0, 1, 520, 431), (0.5, 1, 522, 4)],
            0,
        ),  # cut off within a number
        ('<tracks coords="0.0 1 520 431;0.5 1 522', [(0.0, 1, 520, 431)], 1),
        ('<tracks coords="0.0 1 520 431 2 9', [(0.0, 1, 520, 431)], 1),
        ('<tracks coords="0.0 1 520 1431">', [], 1),
        ('<tracks coords="x 1 2 3;-1 1 2 3;nan 1 2 3;1 1.5 2 3">', [], 4),
        ('<tracks coords="0 1 2 3;0 1 5 6">', [(0.0, 1, 2, 3)], 1),
        ('<tracks coords="0 1 2 3"></tracks><tracks coords="1 1 2 3">', [(0.0, 1, 2, 3), (1.0, 1, 2, 3)], 0),
    ],
)
def test_damaged_answers_keep_what_can_be_read(text, points, bad):
    found = read_tracks(text)
    assert found == ([TrackPoint(*point) for point in points], bad)


def test_answers_without_coords_are_unreadable():
    assert read_tracks("the dog runs") is None
    assert read_tracks("") is None


def test_the_published_prompt_and_frames():
    assert prompt({"expression": "brown dog"}) == "Track the brown dog"
    assert [frame_of(t) for t in (0.0, 0.5, 0.1, 1.0)] == [0, 3, 1, 6]
    with pytest.raises(ValueError, match="expression"):
        prompt({})


@pytest.mark.parametrize("row", [{"answer": "none"}, {"answer": '<tracks coords="0 1 2">'}, {"answer": 3}])
def test_truth_that_is_no_tracks_is_refused(row):
    with pytest.raises(ValueError, match="tracks coords"):
        parse_truth(row)
    with pytest.raises(ValueError, match="seconds"):
        parse_truth({"answer": '<tracks coords="0 1 2 3">', "seconds": ["x"]})


# -------------------------------------------------------------------------------- matching, F1, HOTA


def _naive_matches(predicted, truth, tolerance=50.0):
    """Most pairs, then least distance, over all injections."""
    best = (0, 0.0)
    small, large = (predicted, truth) if len(predicted) <= len(truth) else (truth, predicted)
    for chosen in itertools.permutations(range(len(large)), len(small)):
        distances = [math.dist(a, large[i]) for a, i in zip(small, chosen, strict=True)]
        kept = [d for d in distances if d <= tolerance + 1e-9]
        best = max(best, (len(kept), -sum(kept)))
    return best


@given(st.integers(0, 100_000), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_matching_is_the_best_of_all_injections(seed, num_a, num_b):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 150, (num_a, 2)), rng.uniform(0, 150, (num_b, 2))
    pairs = match_points(a, b)
    count, total = _naive_matches(a.tolist(), b.tolist())
    assert len(pairs) == count
    assert -sum(math.dist(a[k], b[g]) for k, g in pairs) == pytest.approx(total)


def test_point_metrics_by_hand():
    truth = {0: {1: (100, 100)}, 1: {1: (100, 100), 2: (500, 500)}}
    predicted = {0: {1: (130, 140)}, 1: {1: (100, 100), 2: (800, 800), 3: (900, 900)}}  # 50 away is within
    found = score_points(predicted, truth_of(truth))
    assert found["point_precision"] == pytest.approx(2 / 4)
    assert found["point_recall"] == pytest.approx(2 / 3)
    assert found["point_F1"] == pytest.approx(4 / 7)
    # Two hits by one pair of ids, three true points, four predicted ones.
    assert found["DetA@0.5"] == pytest.approx(2 / 5)
    assert found["AssA@0.5"] == pytest.approx(1.0)
    assert found["HOTA@0.5"] == pytest.approx(math.sqrt(2 / 5))


def test_hota_of_an_identity_switch_by_hand():
    """Perfect places; the id changes half way. AssA: each hit's pair has 2 of 4 + 2 - 2 frames: 1/2."""
    truth = {frame: {1: (100.0, 100.0)} for frame in range(4)}
    predicted = {frame: {1 if frame < 2 else 2: (100.0, 100.0)} for frame in range(4)}
    assert hota(predicted, truth, range(4)) == pytest.approx((math.sqrt(0.5), 1.0, 0.5))


def test_hota_of_swapped_objects_by_hand():
    """Two objects change ids in the last of four frames: each pair keeps 3 hits of 4 + 4 - 3, the two swapped pairs 1 of 7."""
    truth = {frame: {1: (100.0, 100.0), 2: (900.0, 900.0)} for frame in range(4)}
    predicted = {frame: dict(at) for frame, at in truth.items()}
    predicted[3] = {1: (900.0, 900.0), 2: (100.0, 100.0)}
    expected = (6 * 3 / 5 + 2 * 1 / 7) / 8
    assert hota(predicted, truth, range(4)) == pytest.approx((math.sqrt(expected), 1.0, expected))


def _naive_hota(predicted, truth, frames):
    """Luiten et al. 2021, pair by pair with dictionaries; assignments by trying all."""

    def similarity(a, b):
        return max(0.0, 1 - math.dist(a, b) / 100)

    overlap, num_mine, num_real = {}, {}, {}
    for frame in frames:
        mine, real = predicted.get(frame, {}), truth.get(frame, {})
        for i in mine:
            num_mine[i] = num_mine.get(i, 0) + 1
        for j in real:
            num_real[j] = num_real.get(j, 0) + 1
        for i, j in itertools.product(mine, real):
            s = similarity(mine[i], real[j])
            rest = (
                sum(similarity(mine[i], b) for b in real.values())
                + sum(similarity(a, real[j]) for a in mine.values())
                - s
            )
            overlap[i, j] = overlap.get((i, j), 0) + (s / rest if rest > 1e-12 else 0)
    matches = {}
    for frame in frames:
        mine, real = list(predicted.get(frame, {}).items()), list(truth.get(frame, {}).items())
        best, best_gain = [], -1.0
        swap = len(mine) > len(real)
        small, large = (real, mine) if swap else (mine, real)
        for chosen in itertools.permutations(large, len(small)):
            pairs = [(b, a) if swap else (a, b) for a, b in zip(small, chosen, strict=True)]
            gain = sum(
                overlap[i, j] / (num_mine[i] + num_real[j] - overlap[i, j]) * similarity(a, b)
                for (i, a), (j, b) in pairs
            )
            if gain > best_gain + 1e-12:
                best, best_gain = pairs, gain
        for (i, a), (j, b) in best:
            if similarity(a, b) >= 0.5 - 1e-9:
                matches[i, j] = matches.get((i, j), 0) + 1
    hits = sum(matches.values())
    misses, false = sum(num_real.values()) - hits, sum(num_mine.values()) - hits
    detection = hits / max(1, hits + misses + false)
    association = sum(c * c / (num_mine[i] + num_real[j] - c) for (i, j), c in matches.items()) / max(1, hits)
    return detection, association


@given(st.integers(0, 100_000))
@settings(max_examples=150, deadline=None)
def test_hota_equals_a_naive_one(seed):
    rng = np.random.default_rng(seed)  # places without ties, so that the best assignment is one
    frames = range(4)
    truth = {f: {j: tuple(rng.uniform(0, 150, 2)) for j in range(1, 4) if rng.random() < 0.8} for f in frames}
    predicted = {f: {i: tuple(rng.uniform(0, 150, 2)) for i in range(1, 4) if rng.random() < 0.8} for f in frames}
    if any(truth.values()) and any(predicted.values()):
        _, detection, association = hota(predicted, truth, frames)
        assert (detection, association) == pytest.approx(_naive_hota(predicted, truth, frames))


@given(tracks())
@settings(max_examples=60, deadline=None)
def test_perfect_tracks_score_one_whatever_the_ids_are_called(points):
    renamed = {frame: {id_ + 10: place for id_, place in at.items()} for frame, at in points.items()}
    apart = all(math.dist(a, b) > 100 for at in points.values() for a, b in itertools.combinations(at.values(), 2))
    found = score_points(renamed, truth_of(points))
    assert found["point_F1"] == 1.0
    if apart:
        assert found["HOTA@0.5"] == pytest.approx(1.0)


@given(tracks(), tracks(), st.tuples(st.floats(1, 200), st.floats(1, 200)).map(sorted))
@settings(max_examples=60, deadline=None)
def test_matches_grow_with_the_tolerance(predicted, truth, tolerances):
    for frame in truth:
        a, b = (np.array(list(part.get(frame, {}).values())).reshape(-1, 2) for part in (predicted, truth))
        low, high = (len(match_points(a, b, tolerance=t)) for t in tolerances)
        assert low <= high


def test_empty_rules():
    one = {0: {1: (1.0, 1.0)}}
    assert set(score_points({}, truth_of({})).values()) == {1.0}
    assert set(score_points(one, truth_of({})).values()) == {0.0}
    assert set(score_points({}, truth_of(one)).values()) == {0.0}
    assert score_answer({}, truth_of({}), '<tracks coords="">').metrics["point_F1"] == 1.0
    for answer, status in ((None, "missing"), ("no idea", "unreadable")):
        item = score_answer({}, truth_of({}), answer)
        assert (item.status, set(item.metrics.values())) == (status, {0.0})


def test_instants_that_were_looked_at_count_and_others_are_told():
    row = {"answer": '<tracks coords="0.0 1 100 100">', "seconds": [0.0, 0.5]}
    text = '<tracks coords="0.0 1 100 100;0.5 1 100 100;1.0 1 100 100">'
    item = score_answer(row, parse_truth(row), text)
    assert item.metrics["point_precision"] == 0.5
    assert item.detail["num_points_at_other_instants"] == 1


def test_three_thousand_malformed_answers_score_as_wrong_and_not_as_missing():
    rng = random.Random(17)
    truth = truth_of({600 + frame: {1: (777.0, 888.0)} for frame in range(5)})
    statuses = set()
    for _ in range(3000):
        item = score_answer({}, truth, noise(rng))
        statuses.add(item.status)
        assert set(item.metrics.values()) == {0.0}
    assert statuses == {"read", "unreadable"}


# -------------------------------------------------------------------------------- masks


def _square(height=40, width=60, top=10, left=10, side=12):
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def _naive_boundary_f(predicted, truth):
    """DAVIS, written out: boundary pixels, disks drawn pixel by pixel."""

    def boundary(mask):
        height, width = mask.shape
        found = np.zeros_like(mask)
        for y, x in itertools.product(range(height), range(width)):
            right = mask[y, x + 1] if x + 1 < width else None
            down = mask[y + 1, x] if y + 1 < height else None
            diagonal = mask[y + 1, x + 1] if x + 1 < width and y + 1 < height else None
            found[y, x] = any(other is not None and other != mask[y, x] for other in (right, down, diagonal))
        return found

    reach = math.ceil(0.008 * math.hypot(*predicted.shape))

    def near(places, others):
        others = np.argwhere(others)
        return sum(bool((((others - place) ** 2).sum(axis=1) <= reach**2).any()) for place in np.argwhere(places))

    a, b = boundary(predicted), boundary(truth)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision, recall = near(a, b) / a.sum(), near(b, a) / b.sum()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("shift", [0, 1, 2, 5, 30])
def test_region_and_boundary_of_shifted_squares(shift):
    truth, predicted = _square(), _square(left=10 + shift)
    overlap = max(0, 12 - shift) * 12
    assert region_iou(predicted, truth) == pytest.approx(overlap / (288 - overlap))
    assert boundary_f(predicted, truth) == pytest.approx(_naive_boundary_f(predicted, truth))


@given(st.integers(0, 100_000), st.sampled_from([(17, 23), (40, 40), (9, 200), (130, 90)]))
@settings(max_examples=40, deadline=None)
def test_boundary_measure_equals_the_definition_written_out(seed, shape):
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = np.zeros(shape, np.bool_)
        for _ in range(3):
            y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
            mask[y : y + rng.integers(1, 12), x : x + rng.integers(1, 12)] ^= True
        masks.append(mask)
    assert boundary_f(*masks) == pytest.approx(_naive_boundary_f(*masks))
    assert boundary_f(*masks) == pytest.approx(boundary_f(*masks[::-1]))


def test_empty_masks_follow_davis():
    empty, some = np.zeros((20, 30), np.bool_), _square(20, 30, 2, 2, 8)
    assert (region_iou(empty, empty), boundary_f(empty, empty)) == (1.0, 1.0)
    assert (region_iou(empty, some), boundary_f(empty, some)) == (0.0, 0.0)
    assert (region_iou(some, some), boundary_f(some, some)) == (1.0, 1.0)
    assert not boundary_of(np.ones((5, 5), np.bool_)).any()
    with pytest.raises(ValueError, match="one shape"):
        region_iou(empty, np.zeros((4, 4), np.bool_))


def test_j_and_f_are_means_over_frames():
    truth = np.stack([_square(), _square()])
    predicted = np.stack([_square(), np.zeros((40, 60), np.bool_)])
    assert score_masks(predicted, truth) == {"J": 0.5, "F": 0.5, "J&F": 0.5}


def _discs(num_frames=7, height=60, width=90):
    """Two coloured discs that move, and their masks."""
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    masks = np.zeros((num_frames, height, width), np.uint8)
    ys, xs = np.indices((height, width))
    for t in range(num_frames):
        for id_, (x, y, colour) in enumerate([(15 + 5 * t, 20, (220, 40, 40)), (70 - 4 * t, 44, (40, 60, 220))], 1):
            disc = np.hypot(xs - x, ys - y) <= 8
            frames[t][disc], masks[t][disc] = colour, id_
    return frames, masks


def test_points_on_the_objects_prompt_masks_that_score_one():
    frames, masks = _discs()
    first = TrackPoint(0.0, 1, round(15 / 90 * 1000), round(20 / 60 * 1000))
    second = TrackPoint(0.5, 2, round(58 / 90 * 1000), round(44 / 60 * 1000))
    answer = format_tracks([first, second])
    found = score_with_masks(answer, frames, masks, ColourPropagator())
    assert found == {"J": 1.0, "F": 1.0, "J&F": 1.0}
    one = format_tracks([first])
    assert 0.4 < score_with_masks(one, frames, masks, ColourPropagator())["J"] < 0.6
    off = format_tracks([TrackPoint(0.0, 1, 900, 100)])
    assert score_with_masks(off, frames, masks, ColourPropagator())["J"] < 0.1


def test_answers_without_points_have_no_mask():
    frames, masks = _discs()
    for answer in (None, "no idea", '<tracks coords="">', '<tracks coords="99.0 1 5 5">'):
        assert score_with_masks(answer, frames, masks, ColourPropagator())["J&F"] == 0.0
    assert score_with_masks('<tracks coords="">', frames, masks * 0, ColourPropagator())["J&F"] == 1.0
    assert score_with_masks("no idea", frames, masks * 0, ColourPropagator())["J&F"] == 0.0
    with pytest.raises(ValueError, match="a mask for each frame"):
        score_with_masks(None, frames, masks[:3], ColourPropagator())


def test_prompts_are_pixels_of_frames_at_six_a_second():
    points = by_frame([TrackPoint(0.5, 1, 1000, 500), TrackPoint(9.0, 1, 0, 0)])
    [prompt_] = prompts_of(points, num_frames=10, width_px=200, height_px=100)
    assert (prompt_.frame, prompt_.object_id, prompt_.x_px, prompt_.y_px) == (3, 1, 199, 50)
