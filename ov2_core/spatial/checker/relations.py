"""Proofs of words: which object, which side, which way, yes or no. Each returns the right answer's text."""

from collections.abc import Callable

import numpy as np

from ov2_core.spatial.checker.evidence import F64, Evidence, UnprovableError
from ov2_core.spatial.checker.measures import volume
from ov2_core.spatial.checker.parse import Asked

_EIGHT = ("front", "front-left", "left", "back-left", "back", "back-right", "right", "front-right")


def order_depth(asked: Asked) -> str:
    """By comparing all pairs of surface points: one object is nearer if 95 % of the pairs say so."""
    (frame,) = asked.named_frames
    things = asked.things
    depths = {thing: np.sort(asked.evidence.depths(frame, thing)) for thing in things}
    if len(depths) != 3 or min(map(len, depths.values())) < 12:
        raise UnprovableError("hardly seen")
    nearer = {}
    for a in things:
        for b in things:
            if a != b:
                before = np.searchsorted(depths[b], depths[a])  # points of b nearer than each of a
                nearer[a, b] = float(1 - before.mean() / len(depths[b]))
    if any(0.05 < share < 0.95 for share in nearer.values()):
        raise UnprovableError("depths overlap")
    ordered = sorted(things, key=lambda a: sum(nearer[b, a] for b in things if b != a))
    if asked.has("nearest first", "farthest first") == "farthest first":
        ordered.reverse()
    right = [c for c in asked.choices or [] if [asked.thing(part) for part in c.split(", ")] == ordered]
    return _only(right)


def nearest_object(asked: Asked) -> str:
    """Least or greatest distance over the choices."""
    (anchor,) = asked.things
    middle = asked.evidence.middle(anchor)
    distances = [
        (float(np.abs(np.linalg.norm(asked.evidence.middle(asked.thing(c)) - middle))), c) for c in asked.choices or []
    ]
    return _extreme(distances, least=asked.has("nearest to", "farthest from") == "nearest to", margin=0.25)


def compare_volumes(asked: Asked) -> str:
    """Triple products of edges."""
    evidence = asked.evidence
    for thing in asked.things:
        if not evidence.scene.objects[thing].moving:
            evidence.middle(thing)
    sizes = [(float(np.log(volume(evidence, asked.thing(c)))), c) for c in asked.choices or []]
    return _extreme(sizes, least=asked.has("larger", "smaller") == "smaller", margin=float(np.log(1.3)))


def relation_camera(asked: Asked) -> str:
    """Medians of surface points along the camera's axes; heights from corners."""
    evidence = asked.evidence
    (frame,), (a, b) = asked.named_frames, asked.things
    choices = set(asked.choices or [])
    if choices == {"above", "below"}:
        rise = float(evidence.middle(a)[2] - evidence.middle(b)[2])
        return _sign(rise, 0.15, "above", "below")
    points = [evidence.points(frame, thing) - evidence.eye(frame) for thing in (a, b)]
    if min(map(len, points)) < 12:
        raise UnprovableError("hardly seen")
    axis = evidence.axis(frame, 0 if choices == {"left", "right"} else 2)
    first, second = (float(np.median(p @ axis)) for p in points)
    if choices == {"left", "right"}:
        columns = [np.median(evidence.pixels(frame, thing) % evidence.record.width_px) for thing in (a, b)]
        if (columns[0] < columns[1]) != (first < second):
            raise UnprovableError("left in the image is not left in the room")
        return _sign(second - first, 0.1, "left", "right")
    return _sign(second - first, 0.2, "in front", "behind")


def direction_standpoint(asked: Asked) -> str:
    """Signs along the heading and to its left, the same when the object is turned by 6 degrees either way."""
    a, b, c = (asked.evidence.middle(thing)[:2] for thing in asked.things)
    choices = asked.choices or []

    def name(point: F64) -> str:
        ahead, left = _local(a, b - a, point)
        if any("-" in choice for choice in choices):
            return ("front-" if ahead > 0 else "back-") + ("left" if left > 0 else "right")
        if "behind" in choices and ahead < 0 and abs(left) < -ahead:
            return "behind"
        return "left" if left > 0 else "right"

    return _steady(name, a, c)


def imagined_viewpoint(asked: Asked) -> str:
    """The heading turned by swapping its coordinates; then as above, or the best of eight unit vectors."""
    evidence = asked.evidence
    frame = next(iter(asked.named_frames))
    eye = evidence.eye(frame)[:2]
    things = [evidence.middle(thing)[:2] for thing in asked.things]
    if "turn" not in asked.text:
        a, c = things
        return _steady(lambda point: "left" if _local(a, eye - a, point)[1] > 0 else "right", a, c)
    (c,) = things
    x, y = evidence.axis(frame, 2)[:2]
    turn = asked.has("90 degrees to the left", "90 degrees to the right", "by 180 degrees")
    heading = np.array({"90 degrees to the left": (-y, x), "90 degrees to the right": (y, -x)}.get(turn, (-x, -y)))

    def name(point: F64) -> str:
        ahead, left = _local(eye, heading, point)
        scores = [ahead * np.cos(k * np.pi / 4) + left * np.sin(k * np.pi / 4) for k in range(8)]
        return _EIGHT[int(np.argmax(scores))]

    return _steady(name, eye, c)


def birds_eye(asked: Asked) -> str:
    """The nearest of the written places; it must be within 0.12 m and all others beyond half a metre."""
    evidence = asked.evidence
    (frame, *_), (thing,) = asked.named_frames, asked.things
    ahead, left = _local(evidence.eye(frame)[:2], evidence.axis(frame, 2)[:2], evidence.middle(thing)[:2])
    distances = []
    for choice in asked.choices or []:
        x, y = (float(part) for part in choice.strip("()").split(", "))
        distances.append((float(np.hypot(x + left, y - ahead)), choice))
    distances.sort()
    if distances[0][0] > 0.12 or distances[1][0] < 0.5:
        raise UnprovableError("no choice, or two, fit")
    return distances[0][1]


def support_containment(asked: Asked) -> str:
    """From samples of the carried box's bottom, or of its whole, against the corners of the other."""
    evidence = asked.evidence
    things = asked.things
    if any(word in asked.text for word in ("inside", "contain")):
        test = _is_inside
    elif any(word in asked.text for word in ("stand on", "on top of", "carries", "carry", "on its top")):
        test = _is_on
    else:
        raise UnprovableError("the question is not understood")
    for thing in things:
        evidence.middle(thing)
    if asked.choices is not None and set(asked.choices) == {"yes", "no"}:
        # "does Y carry X", "does Y contain X": the carrier is named first there.
        x, y = things[::-1] if any(word in asked.text for word in ("carry", "contain")) else things
        return "yes" if test(evidence, x, y) else "no"
    (x,) = things
    return _only([c for c in asked.choices or [] if test(evidence, x, asked.thing(c))])


def _grid(corners_83: F64, heights: tuple[float, ...]) -> F64:
    edges = np.stack([corners_83[k] - corners_83[0] for k in (4, 2, 1)])
    shares = np.array([(u, v, h) for u in (0.1, 0.5, 0.9) for v in (0.1, 0.5, 0.9) for h in heights])
    return np.asarray(corners_83[0] + shares @ edges)


def _is_on(evidence: Evidence, x: int, y: int) -> bool:
    """Most of x's bottom lies over y's footprint, at y's top."""
    bottom, other = _grid(evidence.corners(x), (0.0,)), evidence.corners(y)
    gap = float(bottom[:, 2].min() - other[:, 2].max())
    lowered = bottom.copy()
    lowered[:, 2] = other[:, 2].mean()
    over = float(evidence.holds(other, lowered, slack=0.01).mean())
    if 0.06 < abs(gap) < 0.1 and over > 0.3:
        raise UnprovableError("it may touch or not")
    return abs(gap) <= 0.06 and over >= 0.6


def _is_inside(evidence: Evidence, x: int, y: int) -> bool:
    """All of x lies in y."""
    share = float(evidence.holds(evidence.corners(y), _grid(evidence.corners(x), (0.1, 0.5, 0.9)), slack=0.02).mean())
    if 0.1 < share < 0.95:
        raise UnprovableError("it is partly inside")
    return share >= 0.95


def camera_motion(asked: Asked) -> str:
    """The rigid motion that best maps points as one camera has them to the same points as the other has them (Kabsch)."""
    evidence = asked.evidence
    i, j = asked.named_frames[:2]
    places = np.linspace(0, evidence.record.width_px * evidence.record.height_px - 1, 97).astype(np.int64)
    points = evidence.world_at(i, *np.divmod(places, evidence.record.width_px))
    points = points[np.isfinite(points[:, 0])]
    if len(points) < 10:
        raise UnprovableError("too few points")
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    first, second = (np.linalg.solve(evidence.pose_F44[f], homogeneous)[:3].T for f in (i, j))
    mean_first, mean_second = first.mean(axis=0), second.mean(axis=0)
    u, _, vt = np.linalg.svd((first - mean_first).T @ (second - mean_second))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))])
    rotation = vt.T @ flip @ u.T
    place = rotation.T @ -(mean_second - rotation @ mean_first)  # the second camera, as the first sees it
    heading = rotation.T @ np.array([0.0, 0.0, 1.0])
    choices = set(asked.choices or [])
    if choices == {"forward", "backward"}:
        return _sign(float(place[2]), 0.2, "forward", "backward")
    if "turn" in asked.text:
        return _sign(float(heading[0]), 0.1, "right", "left")
    return _sign(float(place[0]), 0.2, "right", "left")


def object_motion_word(asked: Asked) -> str:
    """From surface points seen in both frames, held in the first camera's axes."""
    evidence = asked.evidence
    (i, j), (thing, *_) = asked.named_frames[:2], asked.things
    start, end = (np.median(evidence.points(frame, thing), axis=0) for frame in (i, j))
    boxes = evidence.middle_at(thing, i), evidence.middle_at(thing, j)
    if set(asked.choices or []) == {"left", "right"}:
        move, exact = (float((b - a) @ evidence.axis(i, 0)) for a, b in ((start, end), boxes))
        words = "right", "left"
    else:
        eye = evidence.eye(i)
        move, exact = (float(np.linalg.norm(b - eye) - np.linalg.norm(a - eye)) for a, b in ((start, end), boxes))
        words = "away", "towards"
    if move * exact <= 0:
        raise UnprovableError("surface and box move apart")
    return _sign(exact, 0.25, *words)


def order_appearance(asked: Asked) -> str:
    """First frame whose mask has any pixel of an object; or the side on which a route's end lies of its first leg."""
    evidence = asked.evidence
    choices = asked.choices or []
    if set(choices) == {"left", "right"}:
        a, b, c = (evidence.middle(thing)[:2] for thing in dict.fromkeys(asked.things))
        leg, rest = b - a, c - b
        angle = np.degrees(np.arctan2(leg[0] * rest[1] - leg[1] * rest[0], leg @ rest))
        if not 12 <= abs(angle) <= 168:
            raise UnprovableError("hardly a turn")
        return "left" if angle > 0 else "right"

    def first(thing: int) -> int:
        for frame in asked.frames:
            pixels = len(evidence.pixels(frame, thing))
            if 0 < pixels < evidence.scene.min_visible_px:
                raise UnprovableError("hardly seen at first")
            if pixels:
                return frame
        raise UnprovableError("never in sight")

    if not any(choice.startswith(("frame ", "the frame ")) for choice in choices):
        ranked = [(float(first(asked.thing(choice))), choice) for choice in choices]
        return _extreme(ranked, least=True, margin=0.5)
    (thing,) = asked.things
    return _only([choice for choice in choices if asked.frame_named(choice) == first(thing)])


def _local(origin: F64, heading: F64, point: F64) -> tuple[float, float]:
    """(ahead, to the left) in metres; the heading need not be of length one."""
    unit = heading / np.sqrt(heading @ heading)
    offset = point - origin
    return float(offset @ unit), float(unit[0] * offset[1] - unit[1] * offset[0])


def _steady(name: Callable[[F64], str], origin: F64, point: F64) -> str:
    """The name, if a turn of 6 degrees about the origin does not change it."""
    words = set()
    for degrees in (-6.0, 0.0, 6.0):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        x, y = point - origin
        words.add(name(origin + np.array([c * x - s * y, s * x + c * y])))
    if len(words) != 1:
        raise UnprovableError("near a boundary")
    return str(words.pop())


def _sign(value: float, margin: float, positive: str, negative: str) -> str:
    if abs(value) < margin:
        raise UnprovableError("values too close")
    return positive if value > 0 else negative


def _only(right: list[str]) -> str:
    if len(right) != 1:
        raise UnprovableError("no choice, or two, fit")
    return right[0]


def _extreme(ranked: list[tuple[float, str]], *, least: bool, margin: float) -> str:
    if len(ranked) < 2:
        raise UnprovableError("no choices")
    ranked = sorted(ranked, reverse=not least)
    if abs(ranked[0][0] - ranked[1][0]) < margin:
        raise UnprovableError("values too close")
    return ranked[0][1]
