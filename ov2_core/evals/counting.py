"""Event counting: how often? Exact, off by one, and relative accuracy, as repetition counting measures them.

Enters: answers as text. Leaves: `exact`, `off_by_one` (|p - t| <= 1), `relative` (max(0, 1 - |p - t| / max(t, 1)): 1 minus the
usual normalised error, which alone is unbounded). An answer's count is its last whole number that is no time ("12 jumps in 8 s"
says 12); a list of times counts its entries. Number words up to twenty are read.
"""

import re
from collections.abc import Mapping
from typing import Any

from ov2_core.evals.item import ItemScore
from ov2_core.evals.jumpscore import parse_times

MAX_COUNT = 10**9
_WORDS = [
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
    ),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
_NUMBER = re.compile(rf"(?<![\d.])(\d{{1,10}})(?:\.0+)?(?![\d.]*\d)|\b({'|'.join(_WORDS)}|none|once|twice)\b", re.ASCII)
_TIME = re.compile(r"(?<![\w.])\d{1,10}(?:\.\d{1,10})?\s{0,3}(?:s|secs?|seconds?|mins?|minutes?|ms)\b", re.ASCII)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))", re.ASCII)
_OTHERS = {"none": 0, "once": 1, "twice": 2}


def prompt(row: Mapping[str, Any]) -> str:
    """The question about a row's `event`.

    Raises:
        ValueError: the row has none.
    """
    event = row.get("event")
    if not isinstance(event, str):
        raise ValueError("no `question` and no `event`: add what is counted")
    return f"How many times does this happen in the video: {event.strip()}? Answer with a whole number."


def parse_count(text: str) -> int | None:
    """The count of an answer: entries of a list, else its last whole number; None where there is none. Never raises."""
    head = text[:20_000].lower()
    if head.count("[") == 1 and "]" in head and "," in head:
        times = parse_times(head[head.index("[") :])
        if times is not None:
            return len(times)
    found = _NUMBER.findall(_THOUSANDS.sub("", _TIME.sub(" ", head)))
    if not found:
        return None
    digits, word = found[-1]
    count = int(digits) if digits else _OTHERS[word] if word in _OTHERS else _WORDS.index(word)
    return count if count <= MAX_COUNT else None


def parse_truth(answer: Any) -> int:
    """The true count: a whole number, text that is one, or a list whose entries are counted.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(answer, list):
        return len(answer)
    if isinstance(answer, str) and answer.strip().isascii() and answer.strip().isdigit():
        return int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and answer >= 0:
        return answer
    raise ValueError(f"the answer must be a whole number >= 0, got {str(answer)!r:.100}")


def score_answer(row: Mapping[str, Any], truth: int, answer: str | None) -> ItemScore:
    """One question. `answer` None: there is none."""
    count = None if answer is None else parse_count(answer)
    error = abs(count - truth) if count is not None else None
    return ItemScore(
        metrics={
            "exact": float(error == 0),
            "off_by_one": float(error is not None and error <= 1),
            "relative": 0.0 if error is None else max(0.0, 1 - error / max(truth, 1)),
        },
        status="missing" if answer is None else "unreadable" if count is None else "read",
        groups=(str(row["type"]),) if "type" in row else (),
        detail={"predicted_count": count, "truth_count": truth},
    )
