"""4. Distance between the centres of two objects; a number, or the distances of other objects from the same one as choices."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.task import Draft, TaskContext, metres_apart

NAME = "distance_objects"
NEEDS = ("boxes",)
TEMPLATES = (
    "How far apart are the centres of {a} and {b} in {views}, in metres to one decimal?",
    "Judging by {views}, what is the distance in metres (one decimal) from the centre of {a} to the centre of {b}?",
    "Measured centre to centre, how many metres lie between {a} and {b} in {views}? One decimal.",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        ids = context.standing_seen(2)
        if not ids:
            return
        a, others = ids[0], ids[1:]
        distances = [(b, float(np.linalg.norm(scene.center(a) - scene.center(b)))) for b in others]
        found = context.contrast(distances, metres_apart, size=4, at_least=1)
        b, distance = context.rng.choice(found)
        question = context.say(TEMPLATES, a=context.the(a), b=context.the(b), views=context.views)
        choices = None
        if len(found) >= 3 and context.rng.random() < 0.5:
            choices = tuple(number_text(value, 0.1) + " m" for _, value in found)
        answer = number_text(distance, 0.1) + (" m" if choices else "")
        yield Draft(question=question, answer=answer, choices=choices, frames=context.all_frames(), difficulty="hard")
