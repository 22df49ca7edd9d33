"""25. A 3D trace `[(x, y, d), ...]` in one frame's view: the path that a moving object follows, or a way over the floor from one
object to another that keeps clear of everything."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.formats import trace_text
from ov2_core.spatial.scene import F64
from ov2_core.spatial.task import Draft, TaskContext

NAME = "trace_3d"
NEEDS = ("depth", "boxes", "room")
FOLLOWED = (
    "Give the 3D trace that the centre of {thing} follows over {views}, in the view of {frame}: 5 to 10 waypoints "
    "[(x, y, d), ...], x and y 0-1000, d depth in metres.",
    "Trace the centre of {thing} through {views} as seen from the camera of {frame}: [(x, y, d), ...], 5 to 10 waypoints, "
    "x and y 0-1000, d in metres.",
    "How does {thing} move over {views}? Answer with its centre's trace in {frame}: [(x, y, d), ...] with 5 to 10 "
    "waypoints, 0-1000 and metres.",
)
CLEAR = (
    "Plan a way over the floor from {a} to {b} that keeps {gap} m clear of all other objects, in the view of {image}: 5 to 10 "
    "waypoints [(x, y, d), ...], x and y 0-1000, d depth in metres.",
    "Give a collision-free 3D trace on the floor of {image} from beside {a} to beside {b}, {gap} m off everything else: "
    "[(x, y, d), ...], 5 to 10 waypoints, x and y 0-1000, d in metres.",
    "How can one walk from {a} to {b} in {image} and stay {gap} m away from other objects? Floor waypoints [(x, y, d), ...], 5 "
    "to 10 of them, 0-1000 and metres.",
)
CLEAR_GAP_M = 0.2
END_REACH_M = 0.9
"""From an end of the way to the centre of its object, at most, beyond half its diagonal."""
_SLACK_M = 0.08


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts(1):
        movers = [t.id for t in scene.record.objects if t.moving and t.id in scene.names]
        draft = (
            _followed(context, context.rng.choice(movers)) if movers and context.rng.random() < 0.4 else _clear(context)
        )
        if draft is not None:
            yield draft


def _followed(context: TaskContext, number: int) -> Draft | None:
    scene = context.scene
    centers = scene.track_centers(number)
    frames = context.all_frames()
    known = [k for k in frames if centers[k] is not None]
    if len(known) < 5 or sum(scene.visible(number, k) for k in frames) < 3:
        context.drop("hardly seen")
        return None
    chosen = [known[round(k)] for k in np.linspace(0, len(known) - 1, min(8, len(known)))]
    position = context.rng.randrange(len(frames))
    text = _trace(context, frames[position], np.array([centers[k] for k in chosen]))
    if text is None:
        return None
    question = context.say(
        FOLLOWED, thing=context.the(number), views=context.views, frame=context.frame(frames, position)
    )
    return Draft(question=question, answer=text, frames=frames, difficulty="hard")


def _clear(context: TaskContext) -> Draft | None:
    """A straight way, or one bent once, between free places beside two objects."""
    scene = context.scene
    room = scene.record.room
    assert room is not None
    frame = context.random_frame()
    ids = [n for n in context.named_visible(frame) if scene.kind_of.get(n) in ("standing", "container")]
    if len(ids) < 2:
        context.drop("too few objects")
        return None
    a, b = ids[:2]
    at = [scene.center(number)[:2] for number in (a, b)]
    reach = [float(np.hypot(*scene.objects[n].box.size_xyz_m[:2]) / 2) for n in (a, b)]  # type: ignore[union-attr]
    if np.linalg.norm(at[0] - at[1]) < sum(reach) + 0.6:
        context.drop("too close to one another")
        return None
    boxes = [t.box for t in scene.record.objects if t.box is not None and not t.moving and t.id not in scene.supports]
    centers = np.array([box.center_xyz_m[:2] for box in boxes])
    halves = np.array([box.size_xyz_m[:2] for box in boxes]) / 2
    turns = np.array([np.array(box.world_from_box)[:2, :2] for box in boxes])
    low = np.array(room.floor_polygon_xy_m).min(axis=0) + 0.15
    high = np.array(room.floor_polygon_xy_m).max(axis=0) - 0.15
    moving = [c[:2] for t in scene.record.objects if t.moving for c in scene.track_centers(t.id) if c is not None]
    for _ in range(10):
        angles = [context.rng.uniform(-np.pi, np.pi) for _ in range(2)]
        start, end = (
            at[k] + (reach[k] + context.rng.uniform(0.3, 0.6)) * np.array([np.cos(angles[k]), np.sin(angles[k])])
            for k in range(2)
        )
        middle = (start + end) / 2 + np.array([context.rng.uniform(-0.8, 0.8) for _ in range(2)])
        corners = [start, end] if context.rng.random() < 0.3 else [start, middle, end]
        dense = _even_steps(np.array(corners), 36)
        local = np.einsum("oji,noj->noi", turns, dense[:, None] - centers)
        gap = np.linalg.norm(np.maximum(np.abs(local) - halves, 0), axis=-1).min()
        if moving:
            gap = min(gap, np.linalg.norm(dense[:, None] - np.array(moving), axis=-1).min() - 0.4)
        if gap < CLEAR_GAP_M + _SLACK_M or (dense < low).any() or (dense > high).any():
            continue
        way = dense[::5]
        text = _trace(context, frame, np.concatenate([way, np.full((len(way), 1), room.floor_z_m)], axis=1))
        if text is not None:
            question = context.say(
                CLEAR, a=context.the(a), b=context.the(b), gap=CLEAR_GAP_M, image=context.image(frame)
            )
            return Draft(question=question, answer=text, frames=(frame,), difficulty="hard")
    context.drop("no clear way found")
    return None


def _even_steps(corners_N2: F64, num: int) -> F64:
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners_N2, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], num)
    return np.stack([np.interp(at, lengths, corners_N2[:, 0]), np.interp(at, lengths, corners_N2[:, 1])], axis=1)


def _trace(context: TaskContext, frame: int, points_N3: F64) -> str | None:
    """The points in a frame's view, or None where one is outside it."""
    scene = context.scene
    xy, depth = scene.project_world(frame, points_N3)
    if not scene.inside_image(xy, border_share=0.005).all() or depth.min() < 0.3:
        context.drop("leaves the image")
        return None
    unit = np.rint(xy / scene.size_px * 1000).astype(int)
    return trace_text([(int(x), int(y), float(d)) for (x, y), d in zip(unit, depth, strict=True)])
