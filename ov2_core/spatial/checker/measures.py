"""Proofs of numbers: depths, distances, sizes, counts. Each returns the value and how far an answer may be from it."""

import re
from itertools import combinations

import numpy as np

from ov2_core.spatial.checker.evidence import Evidence, UnprovableError
from ov2_core.spatial.checker.parse import Asked

Value = tuple[float, float]
"""(value, tolerance). The tolerance is half a rounding step and the noise that is allowed for."""
HALF_STEP_M, NOISE_M = 0.05, 0.01


def window(asked: Asked, frame: int, x: int, y: int) -> tuple[int, int]:
    """(row, column) of a point 0-999, off the image's border."""
    record = asked.evidence.record
    row, column = int((y + 0.5) * record.height_px / 1000), int((x + 0.5) * record.width_px / 1000)
    if not (2 <= row < record.height_px - 2 and 2 <= column < record.width_px - 2):
        raise UnprovableError("a point lies at the border")
    return row, column


def depth_point(asked: Asked) -> Value:
    """Along the forward axis, from 25 back-projected neighbours; they must not lie on a step."""
    (frame,), ((x, y),) = asked.named_frames, asked.points
    row, column = window(asked, frame, x, y)
    rows, columns = (grid.ravel() for grid in np.mgrid[row - 2 : row + 3, column - 2 : column + 3])
    evidence = asked.evidence
    depths = (evidence.world_at(frame, rows, columns) - evidence.eye(frame)) @ evidence.axis(frame, 2)
    if not np.isfinite(depths).all() or np.ptp(depths) > 0.05 + 0.05 * depths.max():
        raise UnprovableError("depth steps at the point")
    value = float(np.median(depths))
    return value, HALF_STEP_M + NOISE_M + 0.01 * value


def depth_object(asked: Asked) -> Value:
    """Median over its back-projected surface points."""
    (frame,), (thing,) = asked.named_frames, asked.things
    depths = asked.evidence.depths(frame, thing)
    if len(depths) < 12:
        raise UnprovableError("hardly seen")
    ordered = np.sort(depths)
    value = float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
    spread = float(ordered[len(ordered) * 6 // 10] - ordered[len(ordered) * 4 // 10])
    if spread > 0.2:
        raise UnprovableError("its depth has no clear middle")
    return value, HALF_STEP_M + NOISE_M + 0.25 * spread


def distance_objects(asked: Asked) -> Value:
    """Between the middles of the corners of two boxes that depth bears out."""
    a, b = asked.things
    return float(np.sqrt(((asked.evidence.middle(a) - asked.evidence.middle(b)) ** 2).sum())), HALF_STEP_M + NOISE_M


def distance_camera(asked: Asked) -> Value:
    """From where all rays meet to the middle of the corners."""
    (frame,), (thing,) = asked.named_frames, asked.things
    offset = asked.evidence.middle(thing) - asked.evidence.eye(frame)
    return float(np.sqrt(offset @ offset)), HALF_STEP_M + NOISE_M


def size_object(asked: Asked) -> Value:
    """From distances between corners: a box's edges are the differences of corners that no shorter sum explains."""
    (thing,) = asked.things
    asked.evidence.middle(thing) if not asked.evidence.scene.objects[thing].moving else _any_middle(asked, thing)
    corners = asked.evidence.corners(thing)
    if asked.has("height", "longest side") == "height":
        return 100 * float(np.ptp(corners[:, 2])), 2.5 + 1.0
    edges = [corners[k] - corners[0] for k in (1, 2, 4)]
    return 100 * float(max(np.sqrt(edge @ edge) for edge in edges)), 2.5 + 1.0


def _any_middle(asked: Asked, thing: int) -> None:
    """A moving object's box must be borne out where it is seen."""
    for frame in asked.frames:
        if len(asked.evidence.points(frame, thing)) >= 12:
            asked.evidence.middle_at(thing, frame)
            return
    raise UnprovableError("hardly seen")


def volume(evidence: Evidence, thing: int) -> float:
    """Triple product of the edges at a corner."""
    corners = evidence.corners(thing)
    return float(abs(np.linalg.det(np.stack([corners[k] - corners[0] for k in (1, 2, 4)]))))


def count_objects(asked: Asked) -> Value:
    """Ids of the label that masks show; each must show well in a frame, none may only peep out."""
    evidence, label = asked.evidence, asked.quoted
    count = 0
    for thing in evidence.record.objects:
        if thing.label != label:
            continue
        most = max(len(evidence.pixels(frame, thing.id)) for frame in asked.frames)
        if 0 < most < evidence.scene.min_visible_px:
            raise UnprovableError("an instance is hardly seen")
        count += most > 0
    if set(asked.frames) != set(range(len(evidence.record.frames))):
        raise UnprovableError("not all frames are shown")
    return float(count), 0.25


def room_size(asked: Asked) -> Value:
    """Walls, floor and ceiling where back-projected points end; the annotated outline is only what they are held against."""
    evidence = asked.evidence
    room = evidence.record.room
    assert room is not None
    points = evidence.cloud
    outline = np.array(room.floor_polygon_xy_m)
    measure = asked.has("floor area", "longer wall", "shorter wall", "height")
    if measure == "height":
        low, high = np.quantile(points[:, 2], [0.0005, 0.9995])
        top = room.ceiling_z_m
        if top is None or abs(high - top) > 0.03 or abs(low - room.floor_z_m) > 0.03:
            raise UnprovableError("floor and ceiling are not both seen")
        return float(high - low), HALF_STEP_M + 0.02
    beyond, seen = evidence.walls
    if beyond:
        raise UnprovableError("points lie beyond a wall")
    if seen < len(outline) - 1:
        raise UnprovableError("walls are not seen")
    if measure == "floor area":
        return _area_by_grid(outline), 0.5 + 0.15
    if len(outline) != 4:
        raise UnprovableError("the room has more than four walls")
    sides = sorted(float(np.sqrt(((a - b) ** 2).sum())) for a, b in combinations(outline, 2))[:4]
    return sides[-1] if measure == "longer wall" else sides[0], HALF_STEP_M + NOISE_M


def _area_by_grid(outline: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> float:
    """Points of a grid that a ray to the right leaves an odd number of times."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    num = 240
    xs = low[0] + (np.arange(num) + 0.5) / num * (high[0] - low[0])
    ys = low[1] + (np.arange(num) + 0.5) / num * (high[1] - low[1])
    x, y = np.meshgrid(xs, ys)
    inside = np.zeros(x.shape, np.bool_)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return float(inside.mean() * np.prod(high - low))


def track_count(asked: Asked) -> Value:
    """Tracked objects that masks, or where there are none the tracks, show."""
    evidence = asked.evidence
    wanted = None if "moving objects" in asked.text else asked.quoted
    named = re.search(r"\bframe (\d+)\b|\bthe frame at (\d+(?:\.\d+)?) s\b", asked.text)
    frames = asked.frames if named is None else [asked.frame_of(named)]
    count = 0
    for track in evidence.record.tracks:
        if wanted is not None and evidence.scene.objects[track.object_id].label != wanted:
            continue
        count += any(in_sight(evidence, track.object_id, frame) for frame in frames)
    return float(count), 0.25


def track_time(asked: Asked) -> Value:
    """First or last frame in sight."""
    (thing,) = asked.things
    shown = [frame for frame in asked.frames if in_sight(asked.evidence, thing, frame)]
    if not shown:
        raise UnprovableError("never in sight")
    frame = shown[0] if asked.has("first", "last") == "first" else shown[-1]
    return asked.evidence.record.frames[frame].time_seconds, 0.06


def in_sight(evidence: Evidence, thing: int, frame: int) -> bool:
    """A frame shows a tracked object. Raises UnprovableError where it shows too little to tell."""
    if evidence.scene.masks_FHW is not None:
        pixels = len(evidence.pixels(frame, thing))
        if 0 < pixels < 12:
            raise UnprovableError("hardly seen")
        return pixels > 0
    places = [track.places[frame] for track in evidence.record.tracks if track.object_id == thing]
    return any(place is not None and place.xy_px is not None for place in places)
