"""Proofs of places: points, boxes, matches between frames, traces and tracks. Each returns nothing, or raises UnprovableError."""

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ov2_core.data.tracking import parse_tracks
from ov2_core.spatial.checker.evidence import F64, Evidence, UnprovableError, stands_nearer
from ov2_core.spatial.checker.measures import in_sight, window
from ov2_core.spatial.checker.parse import Asked
from ov2_core.spatial.formats import parse_box, parse_points, parse_trace

_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_PAIR = re.compile(r"\((\d{1,3}), (\d{1,3})\)")
BOX_TOLERANCE = 4
"""Thousandths that a side of a box may be off, beside a pixel."""
MATCH_TOLERANCE = 10
"""Thousandths that a matched point may be off, beside a pixel."""
NEAR_M, FAR_M = 0.06, 0.12
"""A frame shows a place if a pixel's point lies so near to it; it does not if none lies within FAR_M."""
TRACE_TOLERANCE_M = 0.06


def point_object(asked: Asked) -> None:
    """Each point on its object's mask with its neighbours, and, where there is a box, in it."""
    (frame,) = asked.named_frames
    evidence = asked.evidence
    points = parse_points(asked.answer)
    if "'" not in asked.text:
        wanted = asked.things
    else:
        group = [t.id for t in evidence.record.objects if t.label == asked.quoted and len(evidence.pixels(frame, t.id))]
        if any(len(evidence.pixels(frame, n)) < evidence.scene.min_visible_px for n in group):
            raise UnprovableError("an instance is hardly seen")
        wanted = group
        if re.search(r"\bfrom the (left|right)\b", asked.text):
            columns = {n: float(np.median(evidence.pixels(frame, n) % evidence.record.width_px)) for n in group}
            ordered = sorted(group, key=lambda n: columns[n], reverse="from the right" in asked.text)
            gaps = np.diff(sorted(columns.values()))
            if len(group) < 2 or gaps.min() < 0.02 * evidence.record.width_px:
                raise UnprovableError("side by side")
            nth = _ORDINALS.index(asked.has(*_ORDINALS))
            if nth >= len(ordered):
                raise UnprovableError("there are not so many")
            wanted = [ordered[nth]]
    if len(points) != len(wanted):
        raise UnprovableError("not as many points as objects")
    hit = {_object_at(asked, frame, x, y) for x, y in points}
    if hit != set(wanted):
        raise UnprovableError("a point misses its object")


def _object_at(asked: Asked, frame: int, x: int, y: int) -> int:
    """The one object whose mask holds a point and the pixels around it; with geometry, its box must hold the point too."""
    evidence = asked.evidence
    assert evidence.scene.masks_FHW is not None
    row, column = window(asked, frame, x, y)
    around = np.unique(evidence.scene.masks_FHW[frame, row - 1 : row + 2, column - 1 : column + 2])
    if len(around) != 1:
        raise UnprovableError("a point lies on an edge")
    number = int(around[0])
    thing = evidence.scene.objects.get(number)
    if thing is not None and thing.box is not None and evidence.scene.has_geometry and not thing.moving:
        point = evidence.world_at(frame, [row], [column])
        if not evidence.holds(evidence.corners(number), point)[0]:
            raise UnprovableError("a point lies outside its object's box")
    return number


def box_object(asked: Asked) -> None:
    """Each side against the first and last row and column that hold a pixel of the object."""
    (frame,), (thing,) = asked.named_frames, asked.things
    evidence = asked.evidence
    assert evidence.scene.masks_FHW is not None
    height, width = evidence.scene.masks_FHW[frame].shape
    rows, columns = np.divmod(evidence.pixels(frame, thing), width)
    if not len(rows):
        raise UnprovableError("never in sight")
    exact = (
        columns.min() / width,
        rows.min() / height,
        (columns.max() + 1) / width,
        (rows.max() + 1) / height,
    )
    pixel = (1 / width, 1 / height) * 2
    for written, true, one in zip(parse_box(asked.answer), exact, pixel, strict=True):
        if abs(written / 1000 - min(true, 0.999)) > BOX_TOLERANCE / 1000 + one:
            raise UnprovableError("a side is off")


def free_space(asked: Asked) -> None:
    """At the floor's height, and no surface point or box footprint of any frame within the gap: a search over all of them."""
    (frame,) = asked.named_frames
    evidence = asked.evidence
    ((x, y),) = parse_points(asked.answer)
    row, column = window(asked, frame, x, y)
    assert evidence.scene.masks_FHW is not None
    assert evidence.record.room is not None
    place = evidence.world_at(frame, [row], [column])[0]
    if not abs(place[2] - evidence.record.room.floor_z_m) <= 0.05:
        raise UnprovableError("the point is not on the floor")
    found = re.search(r"(\d+\.\d+) m", asked.text)
    if found is None:
        raise UnprovableError("the question is not understood")
    _check_clear(evidence, place[None, :2], float(found[1]))
    if asked.things:
        (thing,) = asked.things
        columns = evidence.pixels(frame, thing) % evidence.record.width_px
        side = asked.has("left", "right")
        if not len(columns) or not (column < columns.min() if side == "left" else column > columns.max()):
            raise UnprovableError("the point is not on that side")


def _check_clear(evidence: Evidence, places_N2: F64, gap: float) -> None:
    for cloud in (evidence.object_points, evidence.footprints):
        if stands_nearer(np.ascontiguousarray(places_N2), cloud, gap - 0.03):
            raise UnprovableError("something stands in the way")


def correspondence(asked: Asked) -> None:
    """The pixel of the second frame whose point lies nearest to the first frame's point, of all pixels."""
    i, j = in_text_order(asked)
    evidence = asked.evidence
    (x, y) = asked.points[0]
    row, column = window(asked, i, x, y)
    place = evidence.world_at(i, [row], [column])[0]
    best_row, best_column, distance = evidence.nearest_pixel(j, place)
    if not distance <= NEAR_M:
        raise UnprovableError("the second frame does not show it")
    right = []
    for text in asked.choices or [asked.answer]:
        ((u, v),) = [(int(a), int(b)) for a, b in _PAIR.findall(text)]
        off_x = abs((u + 0.5) / 1000 - (best_column + 0.5) / evidence.record.width_px)
        off_y = abs((v + 0.5) / 1000 - (best_row + 0.5) / evidence.record.height_px)
        slack_x = MATCH_TOLERANCE / 1000 + 1 / evidence.record.width_px
        slack_y = MATCH_TOLERANCE / 1000 + 1 / evidence.record.height_px
        if off_x <= slack_x and off_y <= slack_y:
            right.append(text)
        elif asked.choices is not None and off_x <= 2 * slack_x and off_y <= 2 * slack_y:
            raise UnprovableError("a wrong choice is nearly right")
    if right != [asked.answer]:
        raise UnprovableError("the point is off")


def in_text_order(asked: Asked) -> tuple[int, int]:
    """The frame of the point asked about, and the other: by which is named next to it."""
    first, second = asked.named_frames[:2]
    text = asked.text
    match = _PAIR.search(text)
    if match is None:
        raise UnprovableError("no point is named")
    names = list(re.finditer(r"\bframe \d+\b|\bthe frame at \d+(?:\.\d+)? s\b", text))
    nearest = min(range(2), key=lambda k: min(abs(names[k].start() - match.end()), abs(match.start() - names[k].end())))
    return (first, second) if nearest == 0 else (second, first)


def visible_occluded(asked: Asked) -> None:
    """Yes if some pixel of the other frame shows that very place, no if none shows anything near it."""
    i, j = in_text_order(asked)
    evidence = asked.evidence
    ((x, y),) = asked.points
    row, column = window(asked, i, x, y)
    distance = evidence.nearest_pixel(j, evidence.world_at(i, [row], [column])[0])[2]
    if NEAR_M < distance < FAR_M or not np.isfinite(distance):
        raise UnprovableError("it may be seen or not")
    if asked.answer != ("yes" if distance <= NEAR_M else "no"):
        raise UnprovableError("wrong")


def same_object(asked: Asked) -> None:
    """The masks at both points."""
    frames = asked.named_frames[:2]
    points = asked.points
    if len(points) != 2 or len(frames) != 2:
        raise UnprovableError("the question is not understood")
    ids = [_object_at(asked, frame, x, y) for frame, (x, y) in zip(frames, points, strict=True)]
    if 0 in ids:
        raise UnprovableError("a point lies on no object")
    if asked.answer != ("yes" if ids[0] == ids[1] else "no"):
        raise UnprovableError("wrong")


def trace_3d(asked: Asked) -> None:
    """Waypoints taken back to the world: along a borne-out track, or over free floor."""
    evidence = asked.evidence
    frame = asked.named_frames[0]
    waypoints = parse_trace(asked.answer)
    record = evidence.record
    world = evidence.world_from(
        frame,
        np.array([x for x, _, _ in waypoints]) / 1000 * record.width_px,
        np.array([y for _, y, _ in waypoints]) / 1000 * record.height_px,
        np.array([d for _, _, d in waypoints]),
    )
    if len(asked.things) == 1:
        _follows(asked, world)
    else:
        _keeps_clear(asked, world)


def _follows(asked: Asked, world_N3: F64) -> None:
    evidence = asked.evidence
    (thing,) = asked.things
    borne_out = 0
    places = []
    for track in evidence.record.tracks:
        if track.object_id == thing:
            for frame, place in enumerate(track.places):
                if place is None or place.center_xyz_m is None:
                    continue
                places.append(np.array(place.center_xyz_m))
                if len(evidence.points(frame, thing)) >= 12:
                    evidence.middle_at(thing, frame)  # raises where depth says otherwise
                    borne_out += 1
    if borne_out < 3 or len(places) < 5:
        raise UnprovableError("the track is hardly seen")
    path = np.array(places)
    at = -1.0
    for point in world_N3:
        along, off = _on_path(path, point)
        if off > TRACE_TOLERANCE_M or along < at - 0.05:
            raise UnprovableError("the trace leaves the track")
        at = along
    if np.linalg.norm(world_N3[0] - path[0]) > 0.1 or np.linalg.norm(world_N3[-1] - path[-1]) > 0.1:
        raise UnprovableError("the trace does not span the track")


def _on_path(path_N3: F64, point: F64) -> tuple[float, float]:
    """(steps along a path, distance from it) of the nearest of 20 places a step."""
    shares = np.linspace(0, 1, 21)
    dense = (path_N3[:-1, None] + shares[None, :, None] * (path_N3[1:] - path_N3[:-1])[:, None]).reshape(-1, 3)
    distances = np.linalg.norm(dense - point, axis=1)
    best = int(np.argmin(distances))
    return best // 21 + float(shares[best % 21]), float(distances[best])


def _keeps_clear(asked: Asked, world_N3: F64) -> None:
    evidence = asked.evidence
    room = evidence.record.room
    assert room is not None
    a, b = asked.things
    found = re.search(r"(\d+\.\d+) m", asked.text)
    if found is None:
        raise UnprovableError("the question is not understood")
    if np.abs(world_N3[:, 2] - room.floor_z_m).max() > 0.05:
        raise UnprovableError("a waypoint is not on the floor")
    shares = np.linspace(0, 1, 9)[:, None]
    dense = np.concatenate([p + shares * (q - p) for p, q in pairwise(world_N3)])[:, :2]
    _check_clear(evidence, dense, float(found[1]))
    outline = np.array(room.floor_polygon_xy_m)
    if (dense < outline.min(axis=0)).any() or (dense > outline.max(axis=0)).any():
        raise UnprovableError("the way leaves the room")
    for end, thing in ((world_N3[0], a), (world_N3[-1], b)):
        middle, corners = evidence.middle(thing), evidence.corners(thing)
        radius = float(np.linalg.norm((corners - middle)[:, :2], axis=1).max())
        if np.linalg.norm(end[:2] - middle[:2]) > radius + 0.9:
            raise UnprovableError("the way does not reach its end")


def track_object(asked: Asked) -> None:
    """Each point on the object's mask at its time, one at each time at which it is in sight; without masks, against the track."""
    evidence = asked.evidence
    (thing,) = asked.things
    record = evidence.record
    times = [f"{frame.time_seconds:.1f}" for frame in record.frames]
    by_frame: dict[int, tuple[int, int]] = {}
    for point in parse_tracks(asked.answer):
        if point.object_id != 1 or f"{point.seconds:.1f}" not in times:
            raise UnprovableError("a time or an object is unknown")
        by_frame[times.index(f"{point.seconds:.1f}")] = point.x, point.y
    for frame in asked.frames:
        if in_sight(evidence, thing, frame) != (frame in by_frame):
            raise UnprovableError("points and times in sight differ")
    for frame, (x, y) in by_frame.items():
        column = min(record.width_px - 1, x / 1000 * record.width_px)
        row = min(record.height_px - 1, y / 1000 * record.height_px)
        if evidence.scene.masks_FHW is not None:
            if evidence.scene.masks_FHW[frame, int(row), int(column)] != thing:
                raise UnprovableError("a point misses its object")
            continue
        places = [t.places[frame] for t in record.tracks if t.object_id == thing]
        if not any(
            place is not None
            and place.xy_px is not None
            and abs(place.xy_px[0] - column) <= 1 + record.width_px / 1000
            and abs(place.xy_px[1] - row) <= 1 + record.height_px / 1000
            for place in places
        ):
            raise UnprovableError("a point is off its track")


PLACES: dict[str, Callable[[Asked], None]] = {
    check.__name__: check
    for check in (
        point_object,
        box_object,
        free_space,
        correspondence,
        visible_occluded,
        same_object,
        trace_3d,
        track_object,
    )
}
