"""JumpScore: the start of every jump of a rope, to within 0.1-0.3 s (arXiv page of LLaVA-OneVision-2; FORMATS of this project).

Enters: answers as text, true times. Leaves: average precision at each tolerance, their mean, counts. The prompt asks for a list
of seconds. The reading of answers follows the published scorer (the task "jumpscore" of lmms-eval), first that finds something:

1. numbers with an s behind them: "at 0.28s and 4.44 s";
2. the longest bracketed list, in a json fence or bare (then up to the first closing bracket), a trailing comma allowed: its
   numbers, and texts that are numbers (with an s or without); where it is no JSON, whatever numbers stand between the brackets;
3. all numbers of the text.

Tolerances are held in binary fractions, as the published scorer holds them: 0.38 is within 0.1 of 0.28, 0.4 is not of 0.3.
Departures, each without effect on a list that a model gives as asked for: numbers that are not finite are left out; true and
false are no numbers; and an answer without any number and without an empty list is unreadable and scores 0, also where no jump
is true (the published scorer gives it 1).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ov2_core.evals.item import ItemScore, Mark

PROMPT = (
    "List the start timestamps in s of each jump rope the main character does in the video.\n"
    "The start is defined as the moment the rope is behind the legs.\nExample [0.06, 0.47,...]"
)
TOLERANCES_SECONDS = (0.1, 0.2, 0.3)

MAX_CHARACTERS = 200_000
"""Of an answer that are read; a model that runs on is not allowed to stall the scorer."""

_WITH_UNIT = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)\s*s\b")
_OPENING = re.compile(r"```json\s*(?=\[)|\[")
_FENCE_END = re.compile(r"\]\s*```")
_EMPTY_LIST = re.compile(r"\[\s*\]")
_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")
_TRAILING_COMMA = re.compile(r",\s*\]")


@dataclass(frozen=True, slots=True)
class Match:
    """Greedy matching at one tolerance."""

    truth_of_prediction: tuple[int | None, ...]
    """For each prediction in ascending time, the index of its truth."""
    average_precision: float


def format_times(seconds: Sequence[float], *, decimals: int = 2) -> str:
    """The answer: `[0.28, 4.44]`."""
    return "[" + ", ".join(f"{second:.{decimals}f}" for second in seconds) + "]"


def parse_times(text: str) -> list[float] | None:
    """Times of an answer, ascending, repeats kept; None where there is neither a number nor an empty list. Never raises."""
    lowered = text[:MAX_CHARACTERS].lower()
    if times := _finite(_WITH_UNIT.findall(lowered)):
        return times
    lists = bracketed_lists(lowered)
    if lists and (times := _of_list(max(lists, key=len))):
        return times
    if times := _finite(_NUMBER.findall(lowered)):
        return times
    return [] if _EMPTY_LIST.search(lowered) else None


def bracketed_lists(text: str) -> list[str]:
    """From each "[" to the next "]", or in a json fence to the "]" that stands before its end; none overlaps. In linear time."""
    found, at, fences_end = [], 0, True
    while opening := _OPENING.search(text, at):
        end = None
        if opening[0] != "[":
            end = _FENCE_END.search(text, opening.end()) if fences_end else None
            fences_end = end is not None
            at = opening.end()  # a fence that nothing closes: its list is a bare one
        if end is not None:
            found.append(text[opening.end() : end.start() + 1])
            at = end.end()
        elif opening[0] == "[":
            closing = text.find("]", opening.end())
            if closing < 0:
                break
            found.append(text[opening.start() : closing + 1])
            at = closing + 1
    return found


def parse_truth(answer: Any) -> list[float]:
    """True times, ascending: a list of numbers, or text that holds one.

    Raises:
        ValueError: it is neither, or a time is negative or not finite.
    """
    value = answer
    if isinstance(answer, str):
        try:
            value = json.loads(answer[answer.index("[") : answer.rindex("]") + 1])
        except (ValueError, RecursionError):
            value = None
    try:
        times = sorted(_true_time(item) for item in value) if isinstance(value, list) else None
    except (ValueError, TypeError, OverflowError):
        times = None
    if times is None or not all(0 <= time < math.inf for time in times):
        raise ValueError(f"the answer must be a list of seconds >= 0 such as [0.28, 4.44], got {str(answer)!r:.100}")
    return times


def match_times(predicted: Sequence[float], truth: Sequence[float], tolerance_seconds: float) -> Match:
    """Matches predictions, in ascending time, each to the nearest truth that is still free, of equally near ones the first.

    AP = sum over predictions of precision x step in recall, not interpolated; both lists empty: 1; one alone: 0.

    Raises:
        ValueError: a tolerance below 0, or not finite.
    """
    if not 0 <= tolerance_seconds < math.inf:
        raise ValueError(f"tolerance_seconds must be >= 0 and finite, got {tolerance_seconds}")
    if not truth:
        return Match((None,) * len(predicted), 0.0 if predicted else 1.0)
    free_T = np.array(truth, np.float64)  # infinite where taken
    found: list[int | None] = []
    precision_sum, hits = 0.0, 0
    for place, time in enumerate(sorted(predicted), 1):
        distance_T = np.abs(free_T - time)
        nearest = int(distance_T.argmin())
        if distance_T[nearest] <= tolerance_seconds:
            free_T[nearest] = np.inf
            hits += 1
            precision_sum += hits / place
            found.append(nearest)
        else:
            found.append(None)
    return Match(tuple(found), precision_sum / len(truth))


def score_times(
    predicted: Sequence[float], truth: Sequence[float], *, tolerances_seconds: Sequence[float] = TOLERANCES_SECONDS
) -> dict[str, float]:
    """`mAP` of one video, `AP@T` for each tolerance, and precision and recall of the same matching (`precision@T`, `recall@T`).

    Precision of no predictions and recall of no truth are 1 if both lists are empty, else 0.
    """
    scores: dict[str, float] = {f"AP@{tolerance:g}": 0.0 for tolerance in tolerances_seconds}
    empty = float(not predicted and not truth)
    for tolerance in tolerances_seconds:
        match = match_times(predicted, truth, tolerance)
        hits = sum(index is not None for index in match.truth_of_prediction)
        scores[f"AP@{tolerance:g}"] = match.average_precision
        scores[f"precision@{tolerance:g}"] = hits / len(predicted) if predicted else empty
        scores[f"recall@{tolerance:g}"] = hits / len(truth) if truth else empty
    mean = sum(scores[f"AP@{tolerance:g}"] for tolerance in tolerances_seconds) / len(tolerances_seconds)
    return {"mAP": mean, **scores}


def score_answer(row: Mapping[str, Any], truth: Sequence[float], answer: str | None) -> ItemScore:
    """One video. `answer` None: there is none."""
    predicted = None if answer is None else parse_times(answer)
    times = predicted or []
    if predicted is None:
        metrics = dict.fromkeys([*score_times([], [1.0]), "count_exact"], 0.0)
    else:
        metrics = {**score_times(times, truth), "count_exact": float(len(times) == len(truth))}
    match = match_times(times, truth, TOLERANCES_SECONDS[0])
    found = set(match.truth_of_prediction)
    return ItemScore(
        metrics=metrics,
        status="missing" if answer is None else "unreadable" if predicted is None else "read",
        groups=(f"camera:{row['camera']}",) if "camera" in row else (),
        detail={"predicted_seconds": times, "truth_seconds": list(truth)},
        truth_marks=tuple(
            Mark(start_seconds=time, end_seconds=time, tone="truth" if i in found else "miss")
            for i, time in enumerate(truth)
        ),
        predicted_marks=tuple(
            Mark(start_seconds=time, end_seconds=time, tone="false" if index is None else "hit")
            for time, index in zip(sorted(times), match.truth_of_prediction, strict=True)
        ),
    )


def _of_list(text: str) -> list[float]:
    """Numbers of a bracketed list."""
    try:
        items = json.loads(_TRAILING_COMMA.sub("]", text))
    except (ValueError, RecursionError):
        return _finite(_NUMBER.findall(text))
    return _finite(item.replace("s", "").strip() if isinstance(item, str) else item for item in items)


def _finite(items: Any) -> list[float]:
    """Those of the items that are, or write, finite numbers; ascending."""
    times = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float | str):
            continue
        try:
            time = float(item)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(time):
            times.append(time)
    return sorted(times)


def _true_time(item: Any) -> float:
    if isinstance(item, bool):
        raise ValueError(f"{item} is no time")
    return float(item.removesuffix("s")) if isinstance(item, str) else float(item)
