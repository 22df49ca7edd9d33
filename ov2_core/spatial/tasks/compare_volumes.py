"""8. Which of two objects has the larger, or smaller, bounding box; the volumes differ by 1.4 to 6 times."""

from collections.abc import Iterator

from ov2_core.spatial.task import Draft, TaskContext

NAME = "compare_volumes"
NEEDS = ("boxes",)
TEMPLATES = (
    "Which has the {way} bounding box by volume in {views}: {a} or {b}?",
    "Compare {a} and {b} in {views}. Whose bounding box has the {way} volume?",
    "Of {a} and {b} in {views}, which one takes up the {way} box-shaped space?",
)
RATIOS = (1.4, 6.0)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        ids = context.peers([n for n in scene.names if n in scene.seen], 2)
        if not ids:
            return
        volumes = {}
        for number in ids[:2]:
            box = scene.objects[number].box
            assert box is not None
            volumes[number] = box.size_xyz_m[0] * box.size_xyz_m[1] * box.size_xyz_m[2]
        a, b = ids[:2]
        ratio = max(volumes.values()) / min(volumes.values())
        if not RATIOS[0] <= ratio <= RATIOS[1]:
            context.drop("values too close" if ratio < RATIOS[0] else "too easy")
            continue
        way = context.rng.choice(("larger", "smaller"))
        best = max(volumes, key=lambda n: volumes[n]) if way == "larger" else min(volumes, key=lambda n: volumes[n])
        yield Draft(
            question=context.say(TEMPLATES, way=way, a=context.the(a), b=context.the(b), views=context.views),
            answer=scene.names[best],
            choices=(scene.names[a], scene.names[b]),
            frames=context.all_frames(),
            difficulty="easy" if ratio > 2.5 else "medium",
        )
