"""Temporal grounding: when does what a sentence says happen? Intervals read from answers, IoU, mIoU, recall at IoU.

Enters: answers as text; truth as intervals, or the annotation files of Charades-STA, ActivityNet Captions and QVHighlights.
Leaves: `mIoU`, `R@0.3`, `R@0.5`, `R@0.7` (shares of items whose IoU reaches the threshold), and where an item has several true
intervals the IoU of unions. The prompt and the formats of answers are this project's own choice: no file of the published model's
evaluation shows them. Read are, first that finds something: pairs in brackets, "12.3 to 15", "12.3 - 15 s", and where the whole
answer holds just two times, these ("starts at 12.3 s, ends at 15", {"start": 12.3, "end": 15}). Times may be clock times, 1:02.5.

An answer may hold several intervals. With one true interval the first is scored (R1@IoU); with several, the union is scored
against the union (QVHighlights annotates so).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ov2_core.evals.item import ItemScore, Mark

Interval = tuple[float, float]
THRESHOLDS = (0.3, 0.5, 0.7)
MAX_CHARACTERS = 20_000

_TIME = r"\d{1,3}:\d{1,2}(?::\d{1,2})?(?:\.\d{1,9})?|\d{1,9}(?:\.\d{1,9})?"
_UNIT = r"\s{0,3}(?:seconds|second|secs|sec|s)?\s{0,3}"
_PAIR = re.compile(rf"[\[(]\s{{0,4}}({_TIME}){_UNIT},\s{{0,4}}({_TIME}){_UNIT}[\])]", re.ASCII)
_RANGE = re.compile(rf"(?<![\d.:])({_TIME}){_UNIT}(?:-|–|—|to|until|and|~)\s{{0,4}}({_TIME})(?![\d:])", re.ASCII)
_ALONE = re.compile(rf"(?<![\w.:\-])(?:{_TIME})(?![\d:])", re.ASCII)


def prompt(row: Mapping[str, Any]) -> str:
    """The question about a row's `query` (or `caption`, `sentence`).

    Raises:
        ValueError: the row has none of them.
    """
    query = next((row[name] for name in ("query", "caption", "sentence") if isinstance(row.get(name), str)), None)
    if query is None:
        raise ValueError("no `question` and no `query`: add the sentence whose time is asked for")
    text = query.strip().rstrip(".")
    return f'When does "{text}" happen in the video? Answer with start and end in seconds, e.g. [12.3, 15.0].'


def parse_intervals(text: str) -> list[Interval] | None:
    """Intervals of an answer in the order of writing, ends in order; None where there is none. Never raises."""
    head = text[:MAX_CHARACTERS].lower()
    found = _PAIR.findall(head) or _RANGE.findall(head)
    if not found:
        times = _ALONE.findall(head)
        found = [(times[0], times[1])] if len(times) == 2 else []
    intervals = [(min(pair), max(pair)) for pair in ((_seconds(a), _seconds(b)) for a, b in found)]
    return intervals or None


def parse_truth(answer: Any) -> list[Interval]:
    """True intervals: [start, end], a list of such, or text that holds them.

    Raises:
        ValueError: it is none of these, or an end lies before its start.
    """
    value = answer
    if isinstance(answer, str):
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            value = parse_intervals(answer)
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and not any(isinstance(part, list | tuple) for part in value)
    ):
        value = [value]
    try:
        intervals = [(float(start), float(end)) for start, end in value] if value else []
    except (TypeError, ValueError, OverflowError):
        intervals = []
    if not intervals or not all(0 <= start <= end < math.inf for start, end in intervals):
        raise ValueError(f"the answer must be [start, end] in seconds, or a list of such, got {str(answer)!r:.100}")
    return intervals


def interval_iou(a: Interval, b: Interval) -> float:
    """Length of the intersection over that of the union; two equal intervals of no length: 1."""
    return union_iou([a], [b])


def union_iou(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """The same for the unions of two sets of intervals. Of two sets without length, 1 if their ends are equal, else 0."""
    a_parts, b_parts = _merged(a), _merged(b)
    both = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in a_parts
        for other_start, other_end in b_parts
    )
    union = sum(end - start for start, end in a_parts) + sum(end - start for start, end in b_parts) - both
    if union <= 0:
        return float(a_parts == b_parts and bool(a_parts))
    return both / union


def score_answer(row: Mapping[str, Any], truth: Sequence[Interval], answer: str | None) -> ItemScore:
    """One question. `answer` None: there is none."""
    predicted = None if answer is None else parse_intervals(answer)
    shown = (predicted or [])[: 1 if len(truth) == 1 else None]
    iou = union_iou(shown, truth) if shown else 0.0
    tone_ok = iou >= THRESHOLDS[1]
    return ItemScore(
        metrics={"mIoU": iou} | {f"R@{threshold:g}": float(iou >= threshold) for threshold in THRESHOLDS},
        status="missing" if answer is None else "unreadable" if predicted is None else "read",
        detail={"predicted_intervals": shown, "truth_intervals": list(truth), "num_read": len(predicted or [])},
        truth_marks=tuple(
            Mark(start_seconds=start, end_seconds=end, tone="truth" if tone_ok else "miss") for start, end in truth
        ),
        predicted_marks=tuple(
            Mark(start_seconds=start, end_seconds=end, tone="hit" if tone_ok else "false") for start, end in shown
        ),
    )


# -------------------------------------------------------------------------------- annotation files


def read_charades_sta(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Truth rows of Charades-STA: `AO8RW 0.0 6.9##a person is putting a book on a shelf.`

    Raises:
        ValueError: a line that is not so; it is named.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        head, hashes, sentence = line.strip().partition("##")
        fields = head.split()
        try:
            if not hashes or len(fields) != 3:
                raise ValueError
            start, end = sorted((float(fields[1]), float(fields[2])))  # some of its rows have them the wrong way round
        except ValueError:
            raise ValueError(f"line {number}: expected 'video start end##sentence', got {line.strip()!r:.80}") from None
        yield _row(f"{fields[0]}_{number}", f"{fields[0]}.mp4", sentence, [(start, end)])


def read_activitynet_captions(videos: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Truth rows of ActivityNet Captions: {video: {duration, timestamps: [[start, end]], sentences: [...]}}.

    Raises:
        ValueError: a video whose timestamps and sentences do not fit; it is named.
    """
    for video, entry in videos.items():
        try:
            pairs = list(zip(entry["timestamps"], entry["sentences"], strict=True))
            for number, ((a, b), sentence) in enumerate(pairs):
                start, end = sorted((float(a), float(b)))
                row = _row(f"{video}_{number}", f"{video}.mp4", sentence, [(start, end)])
                yield row | ({"duration_seconds": float(entry["duration"])} if "duration" in entry else {})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{video}: expected timestamps and sentences, as many of each ({error})") from None


def read_qvhighlights(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Truth rows of QVHighlights: JSON lines {qid, query, vid, duration, relevant_windows: [[start, end]]}.

    Raises:
        ValueError: a line that is not so, or that has no windows (its test split has none); it is named.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            windows = [(float(a), float(b)) for a, b in entry["relevant_windows"]]
            row = _row(str(entry["qid"]), f"{entry['vid']}.mp4", entry["query"], windows)
            yield row | ({"duration_seconds": float(entry["duration"])} if "duration" in entry else {})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"line {number}: expected qid, query, vid and relevant_windows ({error!r})") from None


def convert(text: str, kind: str) -> list[dict[str, Any]]:
    """Truth rows of a whole annotation file. `kind`: charades-sta, activitynet-captions or qvhighlights.

    Raises:
        ValueError: an unknown kind, a file that is not of it or holds nothing, or an id that comes twice.
    """
    if kind == "charades-sta":
        rows = list(read_charades_sta(text.split("\n")))
    elif kind == "activitynet-captions":
        videos = json.loads(text)
        if not isinstance(videos, dict):
            raise ValueError("expected one JSON object {video: {timestamps, sentences}}")
        rows = list(read_activitynet_captions(videos))
    elif kind == "qvhighlights":
        rows = list(read_qvhighlights(text.split("\n")))
    else:
        raise ValueError(f"unknown annotations {kind!r}; there are charades-sta, activitynet-captions, qvhighlights")
    twice = [id_ for id_, count in Counter(row["id"] for row in rows).items() if count > 1]
    if not rows or twice:
        raise ValueError(
            f"{', '.join(twice[:5])}: more than one question of this id" if twice else "no annotations in it"
        )
    return rows


def _row(id_: str, video: str, query: str, intervals: Sequence[Interval]) -> dict[str, Any]:
    answer = [list(interval) for interval in intervals]
    parse_truth(answer)
    return {"id": id_, "video": video, "query": query.strip(), "answer": answer}


def _seconds(text: str) -> float:
    """12.5, 1:02.5 or 1:00:02."""
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total


def _merged(intervals: Sequence[Interval]) -> list[Interval]:
    """Disjoint intervals of the same union, ascending."""
    parts: list[Interval] = []
    for start, end in sorted(intervals):
        if parts and start <= parts[-1][1]:
            parts[-1] = (parts[-1][0], max(end, parts[-1][1]))
        else:
            parts.append((start, end))
    return parts
