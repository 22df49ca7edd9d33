"""Tracking by points: `<tracks coords="t id x y ...; ...">` read from answers, point precision, recall, F1, HOTA at 0.5, and J&F.

Enters: answers as text; true points over time, and where masks are known, masks. Leaves: `point_F1`, `point_precision`,
`point_recall`, `HOTA@0.5`, `DetA@0.5`, `AssA@0.5`, and with masks and a propagator `J&F`, `J`, `F`.

Instants are frames at 6 a second (frame = round(6 t)). In each, predicted and true points are matched one to one (Hungarian) within
the tolerance, 50 thousandths of the frame on both axes taken together. HOTA follows Luiten et al. 2021 as TrackEval computes it, at
the one threshold, with the similarity max(0, 1 - distance / (2 x tolerance)), so that 0.5 is the tolerance. (How the published
model's evaluation matches points to objects no file showed.) Scored are the instants that the truth has, `seconds` of the row adds
instants at which nothing is to be seen; predictions at other instants are counted in detail and not scored, unless the truth has no
instant at all: then every point is false.

K predicted and G true points of an instant, I and J ids.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.data.tracking import COORDINATE_MAX, TrackPoint
from ov2_core.evals.item import ItemScore, Mark
from ov2_core.evals.masks import TRACK_FPS, Mask, MaskPropagator, PointPrompt, score_masks

TOLERANCE = 50.0
"""Thousandths of the frame."""
ALPHA = 0.5
MAX_CHARACTERS = 400_000
MAX_POINTS = 20_000
_EPSILON = float(np.finfo(np.float64).eps)
_COORDS = re.compile(r"coords\s{0,4}=\s{0,4}[\"']?([^\"'<>]*)")

Points = dict[int, dict[int, tuple[float, float]]]
"""Frame -> object -> (x, y) in thousandths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackTruth:
    """A row's answer."""

    points: Points
    frames: frozenset[int]
    """Instants that are scored."""


def prompt(row: Mapping[str, Any]) -> str:
    """The published prompt about a row's `expression`.

    Raises:
        ValueError: the row has none.
    """
    expression = row.get("expression")
    if not isinstance(expression, str):
        raise ValueError("no `question` and no `expression`: add what is to be tracked")
    return f"Track the {expression.strip()}"


def read_tracks(text: str) -> tuple[list[TrackPoint], int] | None:
    """Points of an answer, and how many pieces of it are none; None where there is no coords attribute. Never raises.

    What can be read is kept: an instant that is cut off loses its last point, a point outside of 0-1000 is dropped, of two points
    of one object at one time the first stands.
    """
    blocks = _COORDS.findall(text[:MAX_CHARACTERS])
    if not blocks:
        return None
    points: list[TrackPoint] = []
    seen: set[tuple[float, int]] = set()
    bad = 0
    for instant in ";".join(blocks).split(";"):
        fields = instant.split()
        if not fields:
            continue
        seconds = _number(fields[0])
        if seconds is None or seconds < 0 or (len(fields) - 1) % 3:
            bad += 1
        if seconds is None or seconds < 0:
            continue
        for i in range(1, len(fields) - 2, 3):
            id_, x, y = (_number(field) for field in fields[i : i + 3])
            inside = x is not None and y is not None and 0 <= x <= COORDINATE_MAX and 0 <= y <= COORDINATE_MAX
            if id_ is None or id_ != int(id_) or not inside or (seconds, int(id_)) in seen:
                bad += 1
                continue
            seen.add((seconds, int(id_)))
            points.append(TrackPoint(seconds, int(id_), round(x or 0), round(y or 0)))
            if len(points) == MAX_POINTS:
                return sorted(points), bad
    return sorted(points), bad


def parse_truth(row: Mapping[str, Any]) -> TrackTruth:
    """True points of a row: `answer` is a tracks element, and `seconds` all instants that were looked at.

    Raises:
        ValueError: the answer is none, or a piece of it cannot be read.
    """
    answer = row.get("answer")
    found = read_tracks(answer) if isinstance(answer, str) else None
    if found is None or found[1]:
        raise ValueError(f'the answer must be <tracks coords="t id x y;...">, whole, got {str(answer)!r:.100}')
    points = by_frame(found[0])
    try:
        others = {frame_of(float(second)) for second in row.get("seconds") or ()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"seconds must be a list of numbers, got {row.get('seconds')!r:.100}") from None
    return TrackTruth(points=points, frames=frozenset(points) | others)


def frame_of(seconds: float) -> int:
    """Index of the instant, at 6 a second."""
    return round(seconds * TRACK_FPS)


def by_frame(points: Sequence[TrackPoint]) -> Points:
    """Points by frame; of two of one object in one frame the first."""
    found: Points = {}
    for point in sorted(points):
        found.setdefault(frame_of(point.seconds), {}).setdefault(point.object_id, (point.x, point.y))
    return found


def match_points(
    predicted_K2: npt.NDArray[np.float64], truth_G2: npt.NDArray[np.float64], *, tolerance: float = TOLERANCE
) -> list[tuple[int, int]]:
    """Pairs (predicted, true) within the tolerance: as many as can be, and of those the nearest together (Hungarian)."""
    if not len(predicted_K2) or not len(truth_G2):
        return []
    distance = np.hypot(*(predicted_K2[:, None] - truth_G2[None]).transpose(2, 0, 1))
    within = distance <= tolerance + 1e-9
    # Any pair within counts more than all distances together, so their number comes first.
    gain = np.where(within, 2.0 * (min(distance.shape) + 1) - distance / max(tolerance, 1e-9), 0.0)
    return [(int(k), int(g)) for k, g in zip(*assign(gain), strict=True) if within[k, g]]


def assign(gain_KG: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the one-to-one assignment of the largest sum (scipy's linear_sum_assignment).

    Raises:
        ValueError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ValueError("tracking needs scipy: pip install 'ov2-pipeline[eval]'") from None
    rows, columns = linear_sum_assignment(gain_KG, maximize=True)
    return rows, columns


def score_points(predicted: Points, truth: TrackTruth) -> dict[str, float]:
    """Precision, recall and F1 over all points, and HOTA, DetA, AssA at 0.5. Nothing true and nothing predicted: 1; one
    alone: 0."""
    frames = sorted(truth.frames or predicted.keys())
    num_predicted = sum(len(predicted.get(frame, {})) for frame in frames)
    num_true = sum(len(truth.points.get(frame, {})) for frame in frames)
    names = ("point_F1", "point_precision", "point_recall", "HOTA@0.5", "DetA@0.5", "AssA@0.5")
    if not num_predicted or not num_true:
        return dict.fromkeys(names, float(num_predicted == num_true))
    hits = sum(
        len(match_points(_array(predicted.get(frame, {})), _array(truth.points.get(frame, {})))) for frame in frames
    )
    precision, recall = hits / num_predicted, hits / num_true
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return dict(zip(names, (f1, precision, recall, *hota(predicted, truth.points, frames)), strict=True))


def hota(
    predicted: Points, truth: Points, frames: Sequence[int], *, alpha: float = ALPHA, tolerance: float = TOLERANCE
) -> tuple[float, float, float]:
    """HOTA, DetA and AssA at one threshold of similarity."""
    predicted_ids = {id_: i for i, id_ in enumerate(sorted({id_ for f in frames for id_ in predicted.get(f, {})}))}
    true_ids = {id_: j for j, id_ in enumerate(sorted({id_ for f in frames for id_ in truth.get(f, {})}))}
    if not predicted_ids or not true_ids:
        empty = float(not predicted_ids and not true_ids)
        return empty, empty, empty
    overlap_IJ = np.zeros((len(predicted_ids), len(true_ids)))
    count_I, count_J = np.zeros(len(predicted_ids)), np.zeros(len(true_ids))
    steps = []
    for frame in frames:
        mine, real = predicted.get(frame, {}), truth.get(frame, {})
        rows = np.array([predicted_ids[id_] for id_ in mine], np.int64)
        columns = np.array([true_ids[id_] for id_ in real], np.int64)
        count_I[rows] += 1
        count_J[columns] += 1
        if len(rows) and len(columns):
            distance = np.hypot(*(_array(mine)[:, None] - _array(real)[None]).transpose(2, 0, 1))
            similarity = np.maximum(0.0, 1 - distance * (1 - alpha) / tolerance)
            share = similarity.sum(0, keepdims=True) + similarity.sum(1, keepdims=True) - similarity
            part = np.divide(similarity, share, out=np.zeros_like(similarity), where=share > _EPSILON)
            overlap_IJ[np.ix_(rows, columns)] += part
            steps.append((rows, columns, similarity))
    alignment_IJ = overlap_IJ / (count_I[:, None] + count_J[None, :] - overlap_IJ)
    matches_IJ = np.zeros_like(overlap_IJ)
    for rows, columns, similarity in steps:
        picked, chosen = assign(alignment_IJ[np.ix_(rows, columns)] * similarity)
        good = similarity[picked, chosen] >= alpha - 1e-9
        np.add.at(matches_IJ, (rows[picked[good]], columns[chosen[good]]), 1)
    hits = float(matches_IJ.sum())
    detection = hits / (count_I.sum() + count_J.sum() - hits)
    union_IJ = count_I[:, None] + count_J[None, :] - matches_IJ
    association = float((matches_IJ * matches_IJ / np.maximum(union_IJ, 1)).sum() / max(hits, 1.0))
    return math.sqrt(detection * association), float(detection), association


def score_answer(row: Mapping[str, Any], truth: TrackTruth, answer: str | None) -> ItemScore:
    """One video. `answer` None: there is none."""
    read = None if answer is None else read_tracks(answer)
    predicted = by_frame(read[0]) if read else {}
    metrics = score_points(predicted, truth)
    if read is None:
        metrics = dict.fromkeys(metrics, 0.0)
    num_hits = {
        frame: len(match_points(_array(predicted.get(frame, {})), _array(at))) for frame, at in truth.points.items()
    }
    return ItemScore(
        metrics=metrics,
        status="missing" if answer is None else "unreadable" if read is None else "read",
        detail={
            "num_predicted_points": sum(map(len, predicted.values())),
            "num_true_points": sum(map(len, truth.points.values())),
            "num_points_at_other_instants": sum(len(at) for f, at in predicted.items() if f not in truth.frames),
            "num_bad_pieces": read[1] if read else 0,
        },
        truth_marks=tuple(
            _mark(frame, "truth" if num_hits[frame] == len(at) else "miss")
            for frame, at in sorted(truth.points.items())
        ),
        predicted_marks=tuple(
            _mark(frame, "hit" if num_hits.get(frame, 0) == len(at) else "false")
            for frame, at in sorted(predicted.items())
        ),
    )


# -------------------------------------------------------------------------------- masks


def prompts_of(points: Points, *, num_frames: int, width_px: int, height_px: int) -> list[PointPrompt]:
    """Points as positive prompts of a video's frames at 6 a second; those behind its end are left out."""
    return [
        PointPrompt(
            frame=frame,
            object_id=object_id,
            x_px=min(x / COORDINATE_MAX * width_px, width_px - 1),
            y_px=min(y / COORDINATE_MAX * height_px, height_px - 1),
        )
        for frame, at in sorted(points.items())
        if frame < num_frames
        for object_id, (x, y) in sorted(at.items())
    ]


def score_with_masks(
    answer: str | None,
    frames_THW3: npt.NDArray[np.uint8],
    truth_THW: npt.NDArray[np.integer[Any]],
    propagator: MaskPropagator,
) -> dict[str, float]:
    """`J&F`, `J`, `F` of all target objects together: the expression asks for them as one ("target objects").

    Args:
        frames_THW3: the video at 6 frames a second.
        truth_THW: its true masks, 0 for the background, any other number for an object.

    Raises:
        ValueError: frames and masks do not fit.
    """
    if frames_THW3.shape[:3] != truth_THW.shape:
        raise ValueError(f"expected a mask for each frame, got {truth_THW.shape} for frames {frames_THW3.shape}")
    read = None if answer is None else read_tracks(answer)
    union: Mask = np.zeros(truth_THW.shape, np.bool_)
    if read is not None and read[0]:
        num_frames, height, width = truth_THW.shape
        prompts = prompts_of(by_frame(read[0]), num_frames=num_frames, width_px=width, height_px=height)
        if prompts:
            for mask_THW in propagator.propagate(frames_THW3, prompts).values():
                union |= mask_THW
    elif read is None:
        return dict.fromkeys(("J&F", "J", "F"), 0.0)
    return score_masks(union, truth_THW != 0)


def _array(points: Mapping[int, tuple[float, float]]) -> npt.NDArray[np.float64]:
    return np.array(list(points.values()), np.float64).reshape(-1, 2)


def _mark(frame: int, tone: Any) -> Mark:
    return Mark(start_seconds=frame / TRACK_FPS, end_seconds=frame / TRACK_FPS, tone=tone)


def _number(text: str) -> float | None:
    """A finite number below a billion written in plain digits."""
    if len(text) > 24 or not text.isascii():
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e9 else None
