"""7. Size of an object: its height or its longest side in centimetres, to 5 cm; choices are the heights of its peers."""

from collections.abc import Iterator

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.task import Draft, TaskContext

NAME = "size_object"
NEEDS = ("boxes",)
TEMPLATES = (
    "What is the {measure} of {thing} in {views}, in centimetres to the nearest 5?",
    "Estimate the {measure} of {thing} shown in {views}: centimetres, rounded to 5.",
    "How many centimetres (to the nearest 5) does the {measure} of {thing} in {views} come to?",
)
STEP_CM = 5


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        ids = context.peers([n for n in scene.names if n in scene.seen], 1)
        if not ids:
            return
        as_choice = len(ids) >= 3 and context.rng.random() < 0.5
        measure = "height" if as_choice or context.rng.random() < 0.5 else "longest side"
        values = []
        for number in ids:
            corners = scene.corners_O83[scene.column[number]]
            box = scene.objects[number].box
            assert box is not None
            height = float(corners[:, 2].max() - corners[:, 2].min())
            values.append((number, 100 * (height if measure == "height" else max(box.size_xyz_m))))
        if not as_choice:
            number, value = context.rng.choice(values)
            question = context.say(TEMPLATES, measure=measure, thing=context.the(number), views=context.views)
            yield Draft(question=question, answer=number_text(value, STEP_CM), frames=context.all_frames())
            continue
        found = context.contrast(values, lambda a, b: abs(a - b) >= max(12, 0.15 * max(a, b)), size=4, at_least=2)
        if not found:
            continue
        number, value = context.rng.choice(found)
        yield Draft(
            question=context.say(TEMPLATES, measure=measure, thing=context.the(number), views=context.views),
            answer=number_text(value, STEP_CM) + " cm",
            choices=tuple(number_text(v, STEP_CM) + " cm" for _, v in found),
            frames=context.all_frames(),
        )
