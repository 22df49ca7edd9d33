"""6. Distance from the camera's centre to an object's centre: a number, or the distances of its peers as choices."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.task import Draft, TaskContext, metres_apart

NAME = "distance_camera"
NEEDS = ("boxes",)
TEMPLATES = (
    "How far is the centre of {thing} from the camera in {image}, in metres to one decimal?",
    "In {image}, what is the straight-line distance from the camera to the centre of {thing} (metres, one decimal)?",
    "Give the distance in metres, to one decimal, between the camera of {image} and the centre of {thing}.",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        frame = context.random_frame()
        ids = [n for n in context.peers(context.named_visible(frame), 1) if not scene.objects[n].moving]
        values = [(n, float(np.linalg.norm(scene.in_camera_FO3[frame, scene.column[n]]))) for n in ids]
        found = context.contrast(values, metres_apart, size=4, at_least=1)
        if not found:
            continue
        asked, distance = context.rng.choice(found)
        question = context.say(TEMPLATES, thing=context.the(asked), image=context.image(frame))
        choices = None
        if len(found) >= 3 and context.rng.random() < 0.5:
            choices = tuple(number_text(value, 0.1) + " m" for _, value in found)
        answer = number_text(distance, 0.1) + (" m" if choices else "")
        yield Draft(question=question, answer=answer, choices=choices, frames=(frame,))
