"""9. How many objects of a label the frames show: a number, or the counts of other labels as choices.

An instance counts if a frame shows it well; one that only peeps out makes the question ambiguous.
"""

from collections.abc import Iterator

from ov2_core.spatial.task import Draft, TaskContext

NAME = "count_objects"
NEEDS = ("boxes",)
TEMPLATES = (
    "How many objects of the kind '{label}' do {views} show in all?",
    "Count the objects of the kind '{label}' over {views}; one that appears in several frames counts once.",
    "Looking at {views} together, how many different objects of the kind '{label}' are there?",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    by_label: dict[str, list[int]] = {}
    for thing in scene.record.objects:
        by_label.setdefault(thing.label, []).append(thing.id)
    most = scene.visible_px_FO.max(axis=0)
    counts = {}
    for label, ids in by_label.items():
        pixels = [int(most[scene.column[number]]) for number in ids]
        if any(0 < px < scene.min_visible_px for px in pixels):
            context.drop("an instance is hardly seen")
        elif any(pixels):
            counts[label] = sum(px > 0 for px in pixels)
    plain = [
        (label, count)
        for label, count in sorted(counts.items())
        if all(scene.kind_of.get(number) == "standing" for number in by_label[label])
    ]
    for label, count in sorted(counts.items()):
        question = context.say(TEMPLATES, label=label, views=context.views)
        yield Draft(question=question, answer=str(count), frames=context.all_frames())
    # Each label is in one set of choices at most, and a set is asked about once: else labels of rare counts would soon be repeated.
    while plain:
        found = context.contrast(plain, lambda a, b: a != b, size=4, at_least=2)
        if not found:
            return
        label, count = context.rng.choice(found)
        question = context.say(TEMPLATES, label=label, views=context.views)
        choices = tuple(str(value) for _, value in found)
        yield Draft(question=question, answer=str(count), choices=choices, frames=context.all_frames())
        plain = [item for item in plain if item not in found]
