"""5. Which of some objects is nearest to, or farthest from, another, by the centres of their boxes."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.task import Draft, TaskContext

NAME = "nearest_object"
NEEDS = ("boxes",)
TEMPLATES = (
    "Which of these objects has its centre {way} the centre of {a} in {views}?",
    "Measured between centres, which object is {way} {a} in {views}?",
    "Look at {views}: whose centre is {way} that of {a}?",
)
WAYS = ("nearest to", "farthest from")
MARGIN_M = 0.3


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        ids = context.standing_seen(4)
        if not ids:
            return
        a, others = ids[0], ids[1 : 1 + context.rng.randint(3, 4)]
        way = context.rng.choice(WAYS)
        sign = 1 if way == WAYS[0] else -1
        ranked = sorted((sign * float(np.linalg.norm(scene.center(a) - scene.center(b))), b) for b in others)
        if ranked[1][0] - ranked[0][0] < MARGIN_M:
            context.drop("values too close")
            continue
        question = context.say(TEMPLATES, a=context.the(a), way=way, views=context.views)
        yield Draft(
            question=question,
            answer=scene.names[ranked[0][1]],
            choices=tuple(scene.names[b] for b in others),
            frames=context.all_frames(),
        )
