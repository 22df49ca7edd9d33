"""16. Point to an object, to the n-th of its label from a side, or to all of a label: `[(x, y), ...]`, 0-999."""

from collections.abc import Iterator
from itertools import pairwise

from ov2_core.spatial.formats import points_text
from ov2_core.spatial.task import Draft, TaskContext

NAME = "point_object"
NEEDS = ("masks",)
ONE = (
    "Point to {thing} in {image}. Answer [(x, y)], 0-999 of width and height.",
    "Where in {image} is {thing}? Give one point on it as [(x, y)], coordinates 0-999.",
    "Mark {thing} in {image} with one point, [(x, y)] from 0 to 999.",
)
NTH = (
    "Point to the {nth} '{label}' from the {side} in {image}. Answer [(x, y)], 0-999.",
    "In {image}, count the objects of the kind '{label}' from the {side}: give a point [(x, y)], 0-999, on the {nth}.",
    "Mark the {nth} object of the kind '{label}' from the {side} of {image} with a point [(x, y)], 0-999.",
)
ALL = (
    "Point to every '{label}' in {image}: one point each, [(x, y), ...], 0-999.",
    "Give one point on each object of the kind '{label}' in {image}, as [(x, y), ...] from 0 to 999.",
    "Mark all objects of the kind '{label}' in {image} with points [(x, y), ...], 0-999.",
)
ORDINALS = ("first", "second", "third", "fourth", "fifth")
MIN_APART = 0.06
"""Of the image's width, between neighbours that are counted from a side."""


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        frame = context.random_frame()
        visible = [n for n in scene.visible_ids(frame) if len(scene.interior(frame, n))]
        if not visible:
            context.drop("nothing to point to")
            continue
        image = context.image(frame)
        form = context.rng.choice(("one", "nth", "all"))
        if form == "one":
            named = [n for n in visible if n in scene.names]
            if named:
                number = context.rng.choice(named)
                question = context.say(ONE, thing=context.the(number), image=image)
                yield _draft(context, question, frame, [number], "easy")
            continue
        label = context.rng.choice(sorted({scene.objects[n].label for n in visible}))
        group = [n for n in visible if scene.objects[n].label == label]
        hidden = sum(
            scene.visible_px_FO[frame, scene.column[t.id]] > 0 and t.id not in group
            for t in scene.record.objects
            if t.label == label
        )
        if len(group) < 2 or hidden:
            context.drop("not several, or one is hardly seen")
            continue
        if form == "all":
            yield _draft(context, context.say(ALL, label=label, image=image), frame, sorted(group), "medium")
            continue
        group.sort(key=lambda n: scene.mask_stats[frame, n][1])
        middles = [scene.mask_stats[frame, n][1] for n in group]
        if min(b - a for a, b in pairwise(middles)) < MIN_APART * scene.record.width_px:
            context.drop("side by side")
            continue
        side = context.rng.choice(("left", "right"))
        nth = context.rng.randrange(min(len(group), len(ORDINALS)))
        number = group[nth] if side == "left" else group[-1 - nth]
        question = context.say(NTH, nth=ORDINALS[nth], label=label, side=side, image=image)
        yield _draft(context, question, frame, [number], "hard")


def _draft(context: TaskContext, question: str, frame: int, numbers: list[int], difficulty: str) -> Draft:
    points = sorted(context.pixel_name(context.some(context.scene.interior(frame, number))) for number in numbers)
    return Draft(
        question=question,
        answer=points_text(points),
        frames=(frame,),
        difficulty="easy" if difficulty == "easy" else "hard" if difficulty == "hard" else "medium",
    )
