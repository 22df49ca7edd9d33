"""Spatial questions: choices, numbers, points, boxes, traces, each with its own measure; accuracy by type of question.

Enters: answers as text; truth as rows {id, answer, type, kind, ...}. Leaves: `score` of every item, and beside it the measure of
its kind. `kind` decides the measure and is told by the row, or by its answer:

- choice: the letter of `choices` (or its text) is right: `accuracy`.
- number: mean relative accuracy as VSI-Bench defines it (Yang et al. 2024): the mean over thresholds q = .5, .55 ... .95 of
  |p - t| / t <= 1 - q, in binary fractions as the published scorer computes it (2.7 for 2.0 is not within .65): `MRA`. A true 0
  asks for 0.
- point: `[(x, y)]`, 0-1000, inside the row's `mask` (a PNG, white is inside) or `box` (x1, y1, x2, y2, half-open): `point_in_mask`,
  the share of the predicted points that are.
- box: `[x1, y1, x2, y2]`, 0-999: `box_iou`.
- trace: `[(x, y, d), ...]`: after resampling both by arc length, `trace` = max(0, 1 - discrete Frechet distance / tolerance), the
  distance in thousandths of the frame and the tolerance 200 of them; depth does not enter the score, its mean error is in detail.
- text: equal, but for case, blanks, articles and the last stop: `accuracy`.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.evals.item import ItemScore

Kind = Literal["choice", "number", "point", "box", "trace", "text"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MRA_THRESHOLDS = tuple(float(threshold) for threshold in np.linspace(0.5, 0.95, 10))
TRACE_TOLERANCE = 200.0
TRACE_WAYPOINTS = 32
MAX_CHARACTERS = 20_000
MAX_POINTS = 2000
MAX_COORDINATE = 1e9
"""Larger ones are no coordinates: their brackets are not read."""
MAX_NUMBER = 1e300

_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?(?:e[+-]?\d{1,3})?", re.ASCII)
_TUPLE = re.compile(r"[(\[]([^()\[\]]{1,400})[)\]]")
_LETTER = re.compile(r"(?:^|[^A-Za-z])\(?([A-Z])\)?(?:$|[^A-Za-z])", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialTruth:
    """A row's answer in the form of its kind."""

    kind: Kind
    value: Any
    choices: tuple[str, ...] = ()


# -------------------------------------------------------------------------------- measures


def mean_relative_accuracy(predicted: float, truth: float) -> float:
    """VSI-Bench: share of the thresholds .5, .55, ..., .95 at which the relative error is at most 1 - threshold."""
    error = abs(predicted - truth) / abs(truth) if truth else (0.0 if predicted == 0 else math.inf)
    return sum(error <= 1 - threshold for threshold in MRA_THRESHOLDS) / len(MRA_THRESHOLDS)


def points_inside(points_xy: Sequence[tuple[float, float]], mask_HW: npt.NDArray[np.bool_]) -> float:
    """Share of the points, in thousandths of width and height, whose pixel is inside; 0 for none. 1000 is the last pixel."""
    height, width = mask_HW.shape
    inside = 0
    for x, y in points_xy:
        if 0 <= x <= 1000 and 0 <= y <= 1000:
            inside += bool(mask_HW[min(int(y / 1000 * height), height - 1), min(int(x / 1000 * width), width - 1)])
    return inside / len(points_xy) if points_xy else 0.0


def box_iou(a_xyxy: Sequence[float], b_xyxy: Sequence[float]) -> float:
    """Of areas; corners in any order; two boxes without area: 1 if equal, else 0."""
    ax0, ax1 = sorted((a_xyxy[0], a_xyxy[2]))
    ay0, ay1 = sorted((a_xyxy[1], a_xyxy[3]))
    bx0, bx1 = sorted((b_xyxy[0], b_xyxy[2]))
    by0, by1 = sorted((b_xyxy[1], b_xyxy[3]))
    both = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - both
    if union <= 0:
        return float((ax0, ay0, ax1, ay1) == (bx0, by0, bx1, by1))
    return both / union


def resampled(trace_PK: npt.NDArray[np.float64], num_waypoints: int = TRACE_WAYPOINTS) -> npt.NDArray[np.float64]:
    """Waypoints at equal steps of the arc length in (x, y); first and last stay."""
    steps = np.hypot(*np.diff(trace_PK[:, :2], axis=0).T) if len(trace_PK) > 1 else np.zeros(0)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if along[-1] == 0:
        return np.repeat(trace_PK[:1], num_waypoints, axis=0)
    keep = np.concatenate([[True], steps > 0])
    wanted = np.linspace(0, along[-1], num_waypoints)
    return np.stack([np.interp(wanted, along[keep], column) for column in trace_PK[keep].T], axis=1)


def frechet_distance(a_P2: npt.NDArray[np.float64], b_Q2: npt.NDArray[np.float64]) -> float:
    """Discrete Frechet distance (Eiter and Mannila 1994) of two polylines' points."""
    distance = np.hypot(a_P2[:, None, 0] - b_Q2[None, :, 0], a_P2[:, None, 1] - b_Q2[None, :, 1])
    reach = np.empty_like(distance)
    for i in range(distance.shape[0]):
        for j in range(distance.shape[1]):
            before = [reach[x, y] for x, y in ((i - 1, j), (i - 1, j - 1), (i, j - 1)) if x >= 0 and y >= 0]
            reach[i, j] = max(distance[i, j], min(before)) if before else distance[i, j]
    return float(reach[-1, -1])


# -------------------------------------------------------------------------------- answers


def parse_number(text: str) -> float | None:
    """The number that an answer opens with, else its last; thousands may be written 1,234. None where there is none. Never raises.

    (The published scorers of VSI-Bench read the first word alone; an answer as asked for is read the same.)
    """
    head = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text[:MAX_CHARACTERS].strip().lower())
    if (opening := _NUMBER.match(head)) and math.isfinite(float(opening[0])):
        return float(opening[0])
    numbers = [value for value in map(float, _NUMBER.findall(head)) if math.isfinite(value)]
    return numbers[-1] if numbers else None


def parse_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the chosen one: a letter alone or first, else "answer: B", else the only choice whose text occurs."""
    head = text[:MAX_CHARACTERS].strip()
    letters = LETTERS[: len(choices)] if choices else LETTERS
    opening = re.match(r"\(?([A-Za-z])\)?(?:[.:,)\s]|$)", head, re.ASCII)
    if opening and opening[1].upper() in letters and (opening[1].isupper() or len(head) <= 3):
        article = opening[1] in "AI" and re.match(r"[AI] [a-z]", head) is not None
        if not article:
            return opening[1].upper()
    named = re.search(r"(?:answer|option|choice)\b[^A-Za-z]{0,6}(?:is\s{1,4})?\(?([A-Z])\b", head, re.ASCII)
    if named and named[1] in letters:
        return named[1]
    plain = _plain(head)
    exact = [letter for letter, choice in zip(LETTERS, choices, strict=False) if _plain(choice) == plain]
    within = [letter for letter, choice in zip(LETTERS, choices, strict=False) if _contains(plain, _plain(choice))]
    if len(exact) == 1 or len(within) == 1:
        return (exact if len(exact) == 1 else within)[0]
    lone = {letter for letter in _LETTER.findall(head) if letter in letters and letter not in "AI"}
    return lone.pop() if len(lone) == 1 else None


def parse_tuples(text: str, sizes: Sequence[int]) -> list[tuple[float, ...]] | None:
    """Bracketed numbers of one of the given lengths, in order; None where there is none. Never raises."""
    found = []
    for inner in _TUPLE.findall(text[:MAX_CHARACTERS].lower()):
        numbers = tuple(map(float, _NUMBER.findall(inner)))
        if len(numbers) in sizes and all(abs(number) < MAX_COORDINATE for number in numbers):
            found.append(numbers)
        if len(found) == MAX_POINTS:
            break
    return found or None


def prompt(row: Mapping[str, Any]) -> str:
    """Spatial questions have no common prompt.

    Raises:
        ValueError: always; rows of this suite need a `question`.
    """
    raise ValueError("no `question`: rows of the suite spatial bring their own")


def parse_truth(row: Mapping[str, Any]) -> SpatialTruth:
    """Kind and answer of a row.

    Raises:
        ValueError: an unknown kind, or an answer that does not fit it.
    """
    answer, choices = row.get("answer"), _choices(row.get("choices"))
    kind = row.get("kind") or _kind_of(row, answer, choices)
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    value: Any = None
    if kind == "choice":
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
            value = LETTERS[answer]
        elif isinstance(answer, str):
            value = parse_letter(answer, choices)
    elif kind == "number":
        number = parse_number(answer) if isinstance(answer, str) else answer
        sound = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= MAX_NUMBER
        value = float(number) if number is not None and sound else None
    elif kind == "point":
        if not isinstance(row.get("mask"), str) and not _is_box(row.get("box")):
            raise ValueError("a point needs `mask`, a PNG, or `box`, [x1, y1, x2, y2] in thousandths")
        value = {"mask": row.get("mask"), "box": row.get("box")}
    elif kind == "box":
        boxes = parse_tuples(answer if isinstance(answer, str) else json.dumps(answer), (4,))
        value = boxes[0] if boxes else None
    elif kind == "trace":
        points = answer if isinstance(answer, str) else json.dumps(answer)
        value = parse_tuples(points, (2, 3))
        if value is not None and len({len(point) for point in value}) != 1:
            value = None
    elif isinstance(answer, str) and answer.strip():
        value = answer
    if value is None:
        raise ValueError(f"the answer does not fit the kind {kind!r}, got {str(answer)!r:.100}")
    return SpatialTruth(kind=kind, value=value, choices=choices)


def score_answer(row: Mapping[str, Any], truth: SpatialTruth, answer: str | None, *, folder: str = "") -> ItemScore:
    """One question. `answer` None: there is none. Masks are relative to the folder.

    Raises:
        ValueError: the mask cannot be read.
    """
    name, score, read, detail = _MEASURES[truth.kind](truth, answer or "", folder)
    kind = str(row.get("type") or row.get("question_type") or truth.kind)
    return ItemScore(
        metrics={"score": score, name: score},
        status="missing" if answer is None else "read" if read else "unreadable",
        groups=(kind,),
        detail={"type": kind, "kind": truth.kind, **detail},
    )


_Found = tuple[str, float, bool, dict[str, Any]]


def _choice(truth: SpatialTruth, answer: str, folder: str) -> _Found:
    letter = parse_letter(answer, truth.choices)
    return "accuracy", float(letter == truth.value), letter is not None, {"predicted": letter, "truth": truth.value}


def _text(truth: SpatialTruth, answer: str, folder: str) -> _Found:
    right = _plain(answer[:MAX_CHARACTERS]) == _plain(truth.value)
    return "accuracy", float(right), bool(answer.strip()), {"truth": truth.value}


def _number(truth: SpatialTruth, answer: str, folder: str) -> _Found:
    number = parse_number(answer)
    score = 0.0 if number is None else mean_relative_accuracy(number, truth.value)
    return "MRA", score, number is not None, {"predicted": number, "truth": truth.value}


def _point(truth: SpatialTruth, answer: str, folder: str) -> _Found:
    points = [(point[0], point[1]) for point in parse_tuples(answer, (2,)) or []]
    if truth.value["mask"] is not None:
        score = points_inside(points, _mask(os.path.join(folder, truth.value["mask"])))
    else:
        x0, y0, x1, y1 = truth.value["box"]
        score = sum(x0 <= x < x1 and y0 <= y < y1 for x, y in points) / len(points) if points else 0.0
    return "point_in_mask", score, bool(points), {"predicted": points}


def _box(truth: SpatialTruth, answer: str, folder: str) -> _Found:
    boxes = parse_tuples(answer, (4,))
    score = box_iou(boxes[0], truth.value) if boxes else 0.0
    return "box_iou", score, boxes is not None, {"predicted": boxes and boxes[0], "truth": truth.value}


def _trace(truth: SpatialTruth, answer: str, folder: str) -> _Found:
    size = len(truth.value[0])
    points = parse_tuples(answer, (size,))
    if points is None:
        return "trace", 0.0, False, {"truth": truth.value}
    a, b = (resampled(np.array(trace, np.float64)) for trace in (points, truth.value))
    distance = frechet_distance(a[:, :2], b[:, :2])
    detail = {"predicted": points, "truth": truth.value, "frechet_thousandths": distance}
    detail["rmse_thousandths"] = float(np.sqrt(np.mean(np.sum((a[:, :2] - b[:, :2]) ** 2, axis=1))))
    if size == 3:
        detail["depth_error_metres"] = float(np.mean(np.abs(a[:, 2] - b[:, 2])))
    return "trace", max(0.0, 1 - distance / TRACE_TOLERANCE), True, detail


_MEASURES = {"choice": _choice, "number": _number, "point": _point, "box": _box, "trace": _trace, "text": _text}


def _kind_of(row: Mapping[str, Any], answer: Any, choices: Sequence[str]) -> Kind:
    if choices:
        return "choice"
    if row.get("mask") is not None or row.get("box") is not None:
        return "point"
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return "number"
    if isinstance(answer, str):
        try:
            float(answer)
            return "number"
        except ValueError:
            pass
        if re.fullmatch(r"\(?[A-Z]\)?\.?", answer.strip(), re.ASCII):
            return "choice"
        tuples = parse_tuples(answer, (2, 3, 4))
        if tuples and answer.strip()[0] in "[(":
            return "box" if len(tuples) == 1 and len(tuples[0]) == 4 else "trace"
        return "text"
    if _is_box(answer):
        return "box"
    return "trace"


def _choices(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or len(given) > len(LETTERS):
        raise ValueError(f"choices must be a list of at most {len(LETTERS)}, got {given!r:.100}")
    return tuple(str(choice) for choice in given)


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(
            isinstance(part, int | float) and not isinstance(part, bool) and abs(part) < MAX_COORDINATE
            for part in value
        )
    )


def _plain(text: str) -> str:
    words = re.sub(r"[^\w.\-]+", " ", text.lower()).strip().rstrip(".").split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _contains(text: str, part: str) -> bool:
    return bool(part) and f" {part} " in f" {text} "


@lru_cache(maxsize=64)
def _mask(path: str) -> npt.NDArray[np.bool_]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) > 127
    except (OSError, ValueError) as error:
        raise ValueError(f"mask {path!r}: cannot be read: {error}") from None
