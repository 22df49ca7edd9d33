"""14. Place of an object on a bird's-eye map of the first frame's camera; choices are the places of other objects."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.task import Draft, TaskContext

NAME = "birds_eye"
NEEDS = ("boxes",)
TEMPLATES = (
    "Draw a bird's-eye map of {views} with the camera of {frame} at (0, 0), y metres ahead of it and x metres to its right. "
    "Where is the centre of {c}?",
    "On a top view map whose origin is the camera of {frame}, with x to its right and y along its heading in metres, which "
    "place (x, y) has {c} in {views}?",
    "Seen from above, with the camera of {frame} at (0, 0) looking along +y and +x to its right (metres): where does {c} of "
    "{views} stand?",
)
MIN_APART_M = 0.8


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    frames = context.all_frames()
    for _ in context.attempts():
        ids = context.standing_seen(3)
        if not ids:
            return
        position = context.rng.randrange(len(frames))
        pose = scene.world_from_camera_F44[frames[position]]
        heading = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
        right = np.array([heading[1], -heading[0]])
        places = []
        for c in ids:
            offset = scene.center(c)[:2] - pose[:2, 3]
            places.append((c, (float(offset @ right), float(offset @ heading))))
        found = context.contrast(
            places, lambda p, q: float(np.hypot(p[0] - q[0], p[1] - q[1])) >= MIN_APART_M, size=4, at_least=3
        )
        if not found:
            continue
        c, place = context.rng.choice(found)
        frame = context.frame(frames, position)
        yield Draft(
            question=context.say(TEMPLATES, c=context.the(c), frame=frame, views=context.views),
            answer=place_text(place),
            choices=tuple(place_text(p) for _, p in found),
            frames=frames,
            difficulty="hard",
        )


def place_text(place: tuple[float, float]) -> str:
    """(x, y) to one decimal; no negative zero."""
    x, y = (round(value, 1) + 0.0 for value in place)
    return f"({x:.1f}, {y:.1f})"
