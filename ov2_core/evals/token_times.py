"""Tokens of an evaluation's clips without any model: when they are, and how many of the known events they show.

Enters: items of truth with `event_seconds` and `event_boxes_xyxy_px` (ov2 eval-data writes both), and their tokens: a finished
token run, or a recipe to tokenize with. Leaves: an Evaluation of the suite "evidence" (`event_recall`, `strict_event_recall` as
evidence.py defines them, means over clips that have events), and the tokens over time of every clip for the report's timelines.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.config import TokenizerConfig
from ov2_core.data.keys import key_of
from ov2_core.errors import BadItemError
from ov2_core.evals.answers import Predictions, video_of
from ov2_core.evals.evaluate import Evaluation, Suite, evaluate
from ov2_core.evals.evidence import BlockEvidence, block_evidence, evidence_of, score_events
from ov2_core.evals.item import ItemScore, Mark, TruthItem
from ov2_core.storage.reader import ShardReader
from ov2_core.tokenize_video import tokenize_video

TIMELINE_BINS = 160
MAX_SECONDS = 1e9
"""A longer duration is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTokens:
    """Tokens of one clip."""

    evidence: BlockEvidence
    fps: float

    @property
    def seconds_E(self) -> npt.NDArray[np.float64]:
        return self.evidence.t_E / self.fps


def tokens_of_run(run: str, truth: Sequence[TruthItem]) -> Iterator[tuple[TruthItem, ClipTokens | str]]:
    """Each item with its tokens in a finished run, found by its id; or why there are none.

    Raises:
        ValueError: the run has no index.
    """
    try:
        reader = ShardReader(run)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    with reader:
        for item in truth:
            key = item.id if item.id in reader else key_of(item.id)
            if key not in reader:
                yield item, f"{run} has no sample of {item.id}"
                continue
            stored = reader.read(key)
            record = stored.record
            if record.media != "video" or not record.fps:
                yield item, f"{item.id} is no video in {run}"
                continue
            found = block_evidence(
                stored.images_NHW3, stored.positions_NP3, patch_px=record.patch_px, merge=record.merge
            )
            yield item, ClipTokens(evidence=found, fps=record.fps)


def tokens_of_recipe(
    config: TokenizerConfig, truth: Sequence[TruthItem]
) -> Iterator[tuple[TruthItem, ClipTokens | str]]:
    """Each item with the tokens that a recipe makes of its video; or why there are none."""
    for item in truth:
        try:
            video = tokenize_video(video_of(item), config)
        except BadItemError as error:
            yield item, f"{item.id}: {error}"
            continue
        yield item, ClipTokens(evidence=evidence_of(video), fps=video.fps or 1.0)


def time_bins(tokens: ClipTokens, duration_seconds: float, *, num_bins: int = TIMELINE_BINS) -> list[int]:
    """Tokens by equal parts of the clip; those behind its end are in the last."""
    places = np.floor(tokens.seconds_E / max(duration_seconds, 1e-9) * num_bins).astype(np.int64)
    return [int(count) for count in np.bincount(np.clip(places, 0, num_bins - 1), minlength=num_bins)]


def events_of(row: Mapping[str, Any]) -> tuple[list[float], list[list[float]], int, int]:
    """Event times, their boxes, width and height of a row.

    Raises:
        ValueError: the row has none, or they do not fit together.
    """
    try:
        seconds = [float(second) for second in row["event_seconds"]]
        boxes = [[float(part) for part in box] for box in row["event_boxes_xyxy_px"]]
        width, height = int(row["width_px"]), int(row["height_px"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the suite evidence needs event_seconds, event_boxes_xyxy_px, width_px and height_px ({error!r})"
        ) from None
    if len(seconds) != len(boxes) or any(len(box) != 4 for box in boxes):
        raise ValueError(f"expected a box for each event, got {len(boxes)} for {len(seconds)}")
    if not all(map(math.isfinite, [*seconds, *(part for box in boxes for part in box)])) or min(width, height) < 1:
        raise ValueError("event times and boxes must be finite, width_px and height_px > 0")
    return seconds, boxes, width, height


def score_evidence(item: TruthItem, tokens: ClipTokens | str) -> ItemScore:
    """Event recall of one clip; a clip without tokens has found nothing, one without events no recall."""
    seconds, boxes, width, height = events_of(item.row)
    if isinstance(tokens, str):
        metrics = {"event_recall": 0.0, "strict_event_recall": 0.0} if seconds else {}
        marks = tuple(Mark(start_seconds=second, end_seconds=second, tone="miss") for second in seconds)
        return ItemScore(metrics=metrics, status="missing", detail={"problem": tokens}, truth_marks=marks)
    score = score_events(
        tokens.evidence,
        fps=tokens.fps,
        event_seconds=seconds,
        event_boxes_xyxy_px=boxes,
        source_width_px=width,
        source_height_px=height,
    )
    metrics = {"event_recall": score.recall, "strict_event_recall": score.strict_recall} if seconds else {}
    return ItemScore(
        metrics=metrics,
        groups=(f"camera:{item.row['camera']}",) if "camera" in item.row and seconds else (),
        detail={"num_events": len(seconds), "num_tokens": tokens.evidence.num_tokens},
        truth_marks=tuple(
            Mark(start_seconds=second, end_seconds=second, tone="truth" if shown else "miss")
            for second, shown in zip(seconds, score.shown, strict=True)
        ),
    )


def evaluate_tokens(
    truth: Sequence[TruthItem],
    clips: Iterator[tuple[TruthItem, ClipTokens | str]],
    *,
    seed: int = 0,
    notes: Mapping[str, Any] | None = None,
) -> tuple[Evaluation, dict[str, list[int]]]:
    """The evaluation, and tokens over time by id.

    Raises:
        ValueError: no clip has an event, or none has tokens.
    """
    if not any(events_of(item.row)[0] for item in truth):
        raise ValueError("none of the clips has an event, so there is no recall; give truth with event_seconds")
    scores: dict[str, ItemScore] = {}
    bins: dict[str, list[int]] = {}
    for item, tokens in clips:
        scores[item.id] = score_evidence(item, tokens)
        if isinstance(tokens, ClipTokens):
            bins[item.id] = time_bins(tokens, duration_of(item.row, tokens))
    if scores and not bins:
        raise ValueError(f"none of the {len(scores)} clips has tokens; {next(iter(scores.values())).detail['problem']}")
    counts = [item.detail["num_tokens"] for item in scores.values() if "num_tokens" in item.detail]
    suite = Suite(
        name="evidence",
        main_metric="event_recall",
        prompt=json.dumps,
        parse_truth=events_of,
        score=lambda item, answer: scores[item.id],
    )
    told = {**(notes or {}), "mean_tokens": sum(counts) / len(counts) if counts else None}
    return evaluate(suite, truth, Predictions(), seed=seed, notes=told), bins


def token_bins(truth: Sequence[TruthItem], clips: Iterator[tuple[TruthItem, ClipTokens | str]]) -> dict[str, list[int]]:
    """Tokens over time by id, for any suite."""
    return {
        item.id: time_bins(tokens, duration_of(item.row, tokens))
        for item, tokens in clips
        if isinstance(tokens, ClipTokens)
    }


def duration_of(row: Mapping[str, Any], tokens: ClipTokens | None = None) -> float:
    """A row's `duration_seconds`, else up to its last token."""
    given = row.get("duration_seconds")
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < MAX_SECONDS:
        return float(given)
    return float(tokens.seconds_E[-1]) if tokens is not None and len(tokens.evidence.t_E) else 1.0
