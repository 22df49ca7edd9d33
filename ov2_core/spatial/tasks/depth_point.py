"""1. Depth of a point: a number; the point's surroundings are smooth. No choices: a point's height in the image tells its depth."""

from collections.abc import Iterator

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.task import Draft, TaskContext, point_text

NAME = "depth_point"
NEEDS = ("depth",)
TEMPLATES = (
    "How deep, in metres along the viewing direction, is the point {point} of {image}? Answer to one decimal.",
    "Give the depth of the point {point} in {image}, in metres to one decimal.",
    "In {image}, what is the depth (metres, one decimal) at {point}? Coordinates count 0-999 from the top left.",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    assert scene.depth_FHW is not None
    for _ in context.attempts():
        frame = context.random_frame()
        object_id = context.rng.choice([0, *scene.visible_ids(frame)])
        places = scene.interior(frame, object_id)
        if not len(places):
            context.drop("no smooth pixel")
            continue
        x, y = context.pixel_name(context.some(places))
        depth = float(scene.depth_FHW[frame][context.pixel_of(x, y)])
        if not 0.3 <= depth <= 10:
            context.drop("too near or too far")
            continue
        question = context.say(TEMPLATES, point=point_text(x, y), image=context.image(frame))
        yield Draft(question=question, answer=number_text(depth, 0.1), frames=(frame,), difficulty="easy")
