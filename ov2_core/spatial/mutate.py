"""Wrong answers that are nearly right: each shipped question with its answer moved just over the margin.

Enters: a proven question and its evidence. Leaves: questions whose answers the checker must reject: numbers shifted by twice the
tolerance either way, each other letter, points and waypoints moved off, boxes with a side moved, tracks with a point lost or moved.
"""

from collections.abc import Iterator

import numpy as np

from ov2_core.data.tracking import COORDINATE_MAX, TrackPoint, format_tracks, parse_tracks
from ov2_core.spatial.checker import Evidence, margin_of
from ov2_core.spatial.checker.places import BOX_TOLERANCE, MATCH_TOLERANCE, TRACE_TOLERANCE_M
from ov2_core.spatial.formats import LETTERS, box_text, parse_box, parse_points, parse_trace, points_text, trace_text
from schemas.spatial import SpatialQuestion


def mutations(evidence: Evidence, question: SpatialQuestion) -> Iterator[SpatialQuestion]:
    """Wrong variants of a right question."""
    for answer in _answers(evidence, question):
        yield question.model_copy(update={"answer": answer})


def _answers(evidence: Evidence, question: SpatialQuestion) -> Iterator[str]:
    if question.choices is not None:
        yield from (letter for letter in LETTERS[: len(question.choices)] if letter != question.answer)
        return
    margin = margin_of(evidence, question)
    if margin is not None:
        value = float(question.answer)
        yield from (f"{value + sign * 2.001 * margin:.4f}" for sign in (-1, 1) if value + sign * 2.001 * margin >= 0)
    elif question.type == "box_object":
        pixel = 1000 / evidence.record.width_px, 1000 / evidence.record.height_px
        box = parse_box(question.answer)
        for side in range(4):
            # Twice over the tolerance, for the right answer may lie at its other end; outwards, or inwards at the border.
            shift = int(2 * (BOX_TOLERANCE + pixel[side % 2])) + 2
            moved = list(box)
            moved[side] += shift if (side >= 2) == (box[side] + shift <= 999) else -shift
            if 0 <= moved[side] <= 999 and moved[0] < moved[2] and moved[1] < moved[3]:
                yield box_text(moved)
    elif question.type == "correspondence":
        ((x, y),) = parse_points(question.answer)
        shift_x = int(2 * (MATCH_TOLERANCE + 1000 / evidence.record.width_px)) + 2
        shift_y = int(2 * (MATCH_TOLERANCE + 1000 / evidence.record.height_px)) + 2
        for dx, dy in ((shift_x, 0), (-shift_x, 0), (0, shift_y), (0, -shift_y)):
            if 0 <= x + dx <= 999 and 0 <= y + dy <= 999:
                yield points_text([(x + dx, y + dy)])
    elif question.type in ("point_object", "free_space"):
        yield from _points_off(evidence, question)
    elif question.type == "trace_3d":
        yield from _traces_off(question)
    elif question.type == "track_object":
        yield from _tracks_off(evidence, question)


def _points_off(evidence: Evidence, question: SpatialQuestion) -> Iterator[str]:
    """The first point moved onto the nearest pixel of something else: off its object, or from the floor onto one."""
    assert evidence.scene.masks_FHW is not None
    points = parse_points(question.answer)
    (frame,) = question.frame_indices
    mask = evidence.scene.masks_FHW[frame]
    height, width = mask.shape
    x, y = points[0]
    row, column = int((y + 0.5) * height / 1000), int((x + 0.5) * width / 1000)
    rows, columns = np.nonzero(mask != mask[row, column])
    if not len(rows):
        return
    nearest = int(np.argmin((rows - row) ** 2 + (columns - column) ** 2))
    moved = int((columns[nearest] + 0.5) / width * 1000), int((rows[nearest] + 0.5) / height * 1000)
    yield points_text([moved, *points[1:]])
    if len(points) > 1:
        yield points_text(points[1:])


def _traces_off(question: SpatialQuestion) -> Iterator[str]:
    waypoints = parse_trace(question.answer)
    middle = len(waypoints) // 2
    x, y, depth = waypoints[middle]
    for factor in (-1, 1):
        shift = factor * (2.5 * TRACE_TOLERANCE_M + 0.02 * depth)
        yield trace_text([*waypoints[:middle], (x, y, max(0.01, depth + shift)), *waypoints[middle + 1 :]])
    if len(waypoints) > 5:
        yield (
            trace_text([*waypoints[:2], waypoints[0], *waypoints[3:]])
            if "follow" in question.question
            else trace_text([(a, max(0, b - 150), d) for a, b, d in waypoints])
        )


def _tracks_off(evidence: Evidence, question: SpatialQuestion) -> Iterator[str]:
    points = parse_tracks(question.answer)
    yield format_tracks(points[1:])
    for dx, dy in ((400, 0), (-400, 0)):
        first = points[0]
        if 0 <= first.x + dx <= COORDINATE_MAX and 0 <= first.y + dy <= COORDINATE_MAX:
            yield format_tracks([TrackPoint(first.seconds, 1, first.x + dx, first.y + dy), *points[1:]])
