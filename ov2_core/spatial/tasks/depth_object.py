"""2. Depth of an object: the median over its visible pixels; a number, or the depths of its peers as choices."""

from collections.abc import Iterator

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.task import Draft, TaskContext, metres_apart

NAME = "depth_object"
NEEDS = ("depth",)
TEMPLATES = (
    "What is the median depth of {thing} in {image}, in metres to one decimal?",
    "Along the viewing direction, how far in metres is {thing} in {image} (median over its visible pixels, one decimal)?",
    "Estimate the depth of {thing} in {image}: metres, one decimal, median over what is visible.",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        frame = context.random_frame()
        ids = context.peers(context.named_visible(frame), 1)
        depths = [(number, scene.median_depth(frame, number)) for number in ids]
        found = context.contrast([d for d in depths if d[1] > 0.3], metres_apart, size=4, at_least=1)
        if not found:
            continue
        asked, depth = context.rng.choice(found)
        question = context.say(TEMPLATES, thing=context.the(asked), image=context.image(frame))
        choices = None
        if len(found) >= 3 and context.rng.random() < 0.5:
            choices = tuple(number_text(value, 0.1) + " m" for _, value in found)
        answer = number_text(depth, 0.1) + (" m" if choices else "")
        yield Draft(question=question, answer=answer, choices=choices, frames=(frame,), difficulty="easy")
