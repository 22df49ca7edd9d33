"""3. Order by depth: three objects whose visible pixels hardly overlap in depth; four of the six orders are the choices."""

from collections.abc import Iterator
from itertools import permutations

from ov2_core.spatial.task import Draft, TaskContext

NAME = "order_depth"
NEEDS = ("depth",)
TEMPLATES = (
    "Order {things} in {image} by depth, {way}.",
    "In {image}, which order of {things} is right, {way} as the camera sees them?",
    "Sort {things} by their distance along the viewing direction in {image}, {way}.",
)
WAYS = ("nearest first", "farthest first")


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        frame = context.random_frame()
        ids = context.peers(context.named_visible(frame), 3)
        ranges = []
        for number in ids:
            depths = scene.mask_stats[frame, number][2]
            if len(depths):
                ranges.append((number, (float(depths[len(depths) // 10]), float(depths[len(depths) * 9 // 10]))))
        found = context.contrast(ranges, lambda a, b: a[1] + 0.1 < b[0] or b[1] + 0.1 < a[0], size=3, at_least=3)
        if not found:
            continue
        way = context.rng.choice(WAYS)
        ordered = sorted(found, key=lambda item: item[1], reverse=way == WAYS[1])
        answer = ", ".join(scene.names[number] for number, _ in ordered)
        others = [", ".join(scene.names[n] for n, _ in order) for order in permutations(found)]
        others.remove(answer)
        things = ", ".join(context.the(number) for number, _ in found)
        question = context.say(TEMPLATES, things=things, image=context.image(frame), way=way)
        yield Draft(question=question, answer=answer, choices=(answer, *context.rng.sample(others, 3)), frames=(frame,))
