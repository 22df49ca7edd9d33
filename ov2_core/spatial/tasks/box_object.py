"""17. Box of an object's visible pixels: `[x1, y1, x2, y2]`, 0-999."""

from collections.abc import Iterator

from ov2_core.spatial.formats import box_text
from ov2_core.spatial.geometry import to_thousand
from ov2_core.spatial.task import Draft, TaskContext

NAME = "box_object"
NEEDS = ("masks",)
TEMPLATES = (
    "Give the bounding box of {thing} in {image} as [x1, y1, x2, y2], 0-999.",
    "Box the visible part of {thing} in {image}: [x1, y1, x2, y2] from 0 to 999.",
    "What box [x1, y1, x2, y2] (0-999) encloses what is visible of {thing} in {image}?",
)
MIN_SIDE = 20
"""Thousandths of the image."""


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        frame = context.random_frame()
        ids = context.named_visible(frame)
        if not ids:
            context.drop("nothing to box")
            continue
        number = ids[0]
        x1, y1, x2, y2 = scene.mask_stats[frame, number][0]
        low, high = to_thousand((x1, y1), *scene.size_px), to_thousand((x2, y2), *scene.size_px)
        if min(high[0] - low[0], high[1] - low[1]) < MIN_SIDE:
            context.drop("too small")
            continue
        question = context.say(TEMPLATES, thing=context.the(number), image=context.image(frame))
        yield Draft(question=question, answer=box_text((*low, *high)), frames=(frame,), difficulty="easy")
