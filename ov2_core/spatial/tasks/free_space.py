"""18. A point on free floor: 0.3 m from all boxes; anywhere, or to one side of an object as the camera sees it."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.formats import points_text
from ov2_core.spatial.geometry import transform, unproject
from ov2_core.spatial.task import Draft, TaskContext

NAME = "free_space"
NEEDS = ("depth", "boxes", "room")
ANYWHERE = (
    "Point to a free spot on the floor in {image}, with no object within {gap} m of it. Answer [(x, y)], 0-999.",
    "Where in {image} is the floor free for {gap} m around? Give a point [(x, y)], 0-999.",
    "Mark a place on the floor of {image} with nothing standing within {gap} metres: [(x, y)], 0-999.",
)
BESIDE = (
    "Point to a free spot on the floor to the {side} of {thing} in {image}, as the camera sees it, with no object within "
    "{gap} m. Answer [(x, y)], 0-999.",
    "In {image}, give a point [(x, y)], 0-999, of floor to the {side} of {thing} from the camera's view that is free for "
    "{gap} m around.",
    "Mark a place on the floor in {image} with nothing within {gap} metres, {side} of {thing} as seen: [(x, y)], 0-999.",
)
GAP_M = 0.3
SLACK_M = 0.1
"""Beyond the gap that the question names."""


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    assert scene.depth_FHW is not None
    room = scene.record.room
    assert room is not None
    width = scene.record.width_px
    boxes = [t.box for t in scene.record.objects if t.box is not None and not t.moving]
    centers = np.array([b.center_xyz_m for b in boxes])
    halves = np.array([b.size_xyz_m for b in boxes]) / 2
    turns = np.array([b.world_from_box for b in boxes])
    moving = [c for t in scene.record.objects if t.moving for c in scene.track_centers(t.id) if c is not None]
    for _ in context.attempts():
        frame = context.random_frame()
        places = scene.interior(frame, 0)
        if not len(places):
            context.drop("no smooth pixel")
            continue
        tries = np.array([context.some(places) for _ in range(8)])
        rows, columns = np.divmod(tries, width)
        xy = np.stack([columns + 0.5, rows + 0.5], axis=1)
        depths = scene.depth_FHW[frame, rows, columns]
        world = transform(scene.world_from_camera_F44[frame], unproject(scene.intrinsics_F4[frame], xy, depths))
        local = np.einsum("oji,noj->noi", turns, world[:, None] - centers)
        gaps = np.linalg.norm(np.maximum(np.abs(local[..., :2]) - halves[:, :2], 0), axis=-1).min(axis=1)
        if moving:
            away = np.linalg.norm(world[:, None, :2] - np.array(moving)[None, :, :2], axis=-1).min(axis=1) - 0.4
            gaps = np.minimum(gaps, away)
        good = np.flatnonzero((np.abs(world[:, 2] - room.floor_z_m) < 0.03) & (gaps > GAP_M + SLACK_M))
        if not len(good):
            context.drop("no free floor")
            continue
        k = int(good[0])
        image = context.image(frame)
        question = context.say(ANYWHERE, image=image, gap=GAP_M)
        if context.rng.random() < 0.5:
            ids = [n for n in context.named_visible(frame) if scene.kind_of.get(n) in ("standing", "container")]
            sides = []
            for number in ids:
                x1, _, x2, _ = scene.mask_stats[frame, number][0]
                if xy[k, 0] < x1 - 0.04 * width:
                    sides.append((number, "left"))
                elif xy[k, 0] > x2 + 0.04 * width:
                    sides.append((number, "right"))
            if sides:
                number, side = context.rng.choice(sides)
                question = context.say(BESIDE, image=image, gap=GAP_M, side=side, thing=context.the(number))
        yield Draft(question=question, answer=points_text([context.pixel_name(int(tries[k]))]), frames=(frame,))
