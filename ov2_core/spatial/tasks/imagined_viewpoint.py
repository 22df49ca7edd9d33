"""13. Directions from a viewpoint that no frame shows: the camera turned on the spot, or someone at an object looking back."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.geometry import bearing_radians, direction_8
from ov2_core.spatial.task import Draft, TaskContext
from ov2_core.spatial.tasks.direction_standpoint import MIN_DISTANCE_M, easy

NAME = "imagined_viewpoint"
NEEDS = ("boxes",)
TURNED = (
    "Imagine the camera of {frame} turns {turn} on the spot. In which direction would {c} then be (see {views})?",
    "Stand where the camera of {frame} is, then turn {turn}. Where is {c} now, going by {views}?",
    "After a turn {turn} in place from the view of {frame}, in what direction lies {c} in {views}?",
)
BACK = (
    "Imagine standing at {a} in {views}, looking back at the camera of {frame}. Is {c} to your left or to your right?",
    "From {a}, facing the place of the camera of {frame} (see {views}), on which side is {c}?",
    "Someone at {a} looks at the camera of {frame}. On that person's left or right is {c}, going by {views}?",
)
TURNS = {"90 degrees to the left": np.pi / 2, "90 degrees to the right": -np.pi / 2, "by 180 degrees": np.pi}
MARGIN_RADIANS = 0.12


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    frames = context.all_frames()
    for _ in context.attempts():
        ids = context.standing_seen(3)
        if not ids:
            return
        position = context.rng.randrange(len(frames))
        pose = scene.world_from_camera_F44[frames[position]]
        eye, ahead = pose[:2, 3], pose[:2, 3] + pose[:2, 2]
        named = []
        turn = a = None
        if context.rng.random() < 0.5:
            turn = context.rng.choice(sorted(TURNS))
            for c in ids:
                center = scene.center(c)[:2]
                bearing = bearing_radians(eye, ahead, center) - TURNS[turn]
                name, margin = direction_8(float(np.arctan2(np.sin(bearing), np.cos(bearing))))
                if margin >= MARGIN_RADIANS and np.linalg.norm(center - eye) >= MIN_DISTANCE_M:
                    named.append((c, name))
        else:
            a = ids[0]
            at = scene.center(a)[:2]
            for c in ids[1:]:
                center = scene.center(c)[:2]
                side = easy(float(np.degrees(bearing_radians(at, eye, center))))
                if side is not None and np.linalg.norm(center - at) >= MIN_DISTANCE_M:
                    named.append((c, side))
        found = context.contrast(named, lambda x, y: x != y, size=4)
        if not found:
            continue
        c, direction = context.rng.choice(found)
        fields = {"c": context.the(c), "frame": context.frame(frames, position), "views": context.views}
        question = (
            context.say(TURNED, turn=turn, **fields) if a is None else context.say(BACK, a=context.the(a), **fields)
        )
        choices = tuple(sorted(d for _, d in found))
        yield Draft(question=question, answer=direction, choices=choices, frames=frames, difficulty="hard")
