"""19. The same point of the scene in another frame: a point, or one of four.

Coordinates tell something: between two frames points shift by little, and mostly sideways. So the wrong choices are the point
asked about, shifted as other points are: of the shifts that the four choices stand for, none is more likely than another.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ov2_core.spatial.formats import points_text
from ov2_core.spatial.geometry import transform, unproject
from ov2_core.spatial.scene import F64, Scene
from ov2_core.spatial.task import Draft, TaskContext, point_text

NAME = "correspondence"
NEEDS = ("depth",)
FREE = (
    "The point {p} of {f0} shows a place of the scene. Where is that place in {f1}? Answer [(x, y)], 0-999.",
    "Find in {f1} the same physical point as {p} in {f0}: [(x, y)], 0-999.",
    "Which point of {f1} corresponds to {p} in {f0}? Give [(x, y)], 0-999.",
)
CHOICE = (
    "Which of these points of {f1} shows the same place of the scene as {p} in {f0}? Coordinates count 0-999.",
    "The point {p} (0-999) in {f0} corresponds to which point of {f1}?",
    "Match {p} of {f0} with its point in {f1} (coordinates 0-999).",
)
Pair = tuple[tuple[int, int], tuple[int, int]]
MIN_APART = 60
"""Thousandths between choices."""


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    if scene.num_frames < 2:
        context.drop("one frame")
        return
    shifts: list[Pair] = []
    for _ in range(12):
        i, j = context.rng.sample(range(scene.num_frames), 2)
        shifts += visible_pairs(context, i, j, tries=10)
    for _ in context.attempts():
        i, j = context.rng.sample(range(scene.num_frames), 2)
        choose = context.rng.random() < 0.5
        found = visible_pairs(context, i, j, tries=12)
        if not found:
            context.drop("nothing is seen from both")
            continue
        p, q = found[0]
        frames = (i, j)
        names = {"p": point_text(*p), "f0": context.frame(frames, 0), "f1": context.frame(frames, 1)}
        if not choose:
            yield Draft(question=context.say(FREE, **names), answer=points_text([q]), frames=frames, difficulty="hard")
            continue
        others = _others(context, found, shifts)
        if others is None:
            context.drop("too few wrong choices")
            continue
        yield Draft(
            question=context.say(CHOICE, **names),
            answer=point_text(*q),
            choices=(point_text(*q), *(point_text(*other) for other in others)),
            frames=frames,
        )


def visible_pairs(context: TaskContext, i: int, j: int, *, tries: int) -> list[Pair]:
    """Random points of frame i and where frame j sees them, both off edges and steps; only those that do not move."""
    scene = context.scene
    fixed = [n for n in [0, *scene.visible_ids(i)] if n == 0 or not scene.objects[n].moving]
    names = []
    for _ in range(tries):
        places = scene.interior(i, context.rng.choice(fixed))
        if len(places):
            names.append(context.pixel_name(context.some(places)))
    if not names:
        return []
    xy, gap, _ = see_again(scene, i, j, names)
    pairs = []
    for name, at, missing in zip(names, xy, gap, strict=True):
        if missing <= 0.02 and scene.inside_image(at, border_share=0.02):
            width, height = scene.size_px
            other = min(999, int(at[0] / width * 1000)), min(999, int(at[1] / height * 1000))
            row, column = context.pixel_of(*other)
            number = int(scene.masks_FHW[j, row, column]) if scene.masks_FHW is not None else 0
            inner = scene.interior(j, number)
            at_place = row * width + column
            k = int(np.searchsorted(inner, at_place))
            if k < len(inner) and inner[k] == at_place:
                pairs.append((name, other))
    return pairs


def see_again(scene: Scene, i: int, j: int, names: npt.ArrayLike) -> tuple[F64, F64, F64]:
    """Where points (0-999) of frame i fall in frame j (pixels), and how far what j shows there lies from them, as a share of the
    depth: 0 if j sees the same; positive if something is in front; infinite outside its image. Third: depths in j."""
    assert scene.depth_FHW is not None
    xy = (np.asarray(names) + 0.5) / 1000 * scene.size_px
    depth = scene.depth_FHW[i, xy[:, 1].astype(int), xy[:, 0].astype(int)]
    world = transform(scene.world_from_camera_F44[i], unproject(scene.intrinsics_F4[i], xy, depth))
    seen_xy, seen_depth = scene.project_world(j, world)
    gap = np.full(len(xy), np.inf)
    inside = scene.inside_image(seen_xy)
    columns, rows = seen_xy[inside, 0].astype(int), seen_xy[inside, 1].astype(int)
    shown = scene.depth_FHW[j, rows, columns]
    gap[inside] = np.where(shown > 0, (seen_depth[inside] - shown) / seen_depth[inside], np.inf)
    return seen_xy, gap, seen_depth


def _others(context: TaskContext, found: list[Pair], shifts: list[Pair]) -> list[tuple[int, int]] | None:
    """Three wrong choices for the first pair: its point shifted as other points of the scene are between two frames."""
    p, q = found[0]
    others = [*found[1:], *context.rng.sample(shifts, min(len(shifts), 30))]
    context.rng.shuffle(others)
    taken: list[tuple[int, int]] = []
    for start, end in others:
        x, y = p[0] + end[0] - start[0], p[1] + end[1] - start[1]
        if 20 <= x < 980 and 20 <= y < 980 and all(_far((x, y), t) >= MIN_APART for t in [q, *taken]):
            taken.append((x, y))
            if len(taken) == 3:
                return taken
    return None


def _far(a: tuple[int, int], b: tuple[int, int]) -> float:
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))
