"""15. What a thing stands on or is inside of; which, or yes and no. Choices are what carries the other things of the scene."""

from collections.abc import Iterator

from ov2_core.spatial.task import Draft, TaskContext

NAME = "support_containment"
NEEDS = ("boxes",)
WHICH = {
    "on": (
        "What does {x} stand on in {views}?",
        "In {views}, which object is {x} on top of?",
        "Which object carries {x} on its top in {views}?",
    ),
    "inside": (
        "What is {x} inside of in {views}?",
        "In {views}, which object holds {x} inside it?",
        "Which object contains {x} in {views}?",
    ),
}
YES_NO = {
    "on": (
        "Does {x} stand on {y} in {views}?",
        "In {views}, is {x} on top of {y}?",
        "Going by {views}: does {y} carry {x} on its top?",
    ),
    "inside": (
        "Is {x} inside {y} in {views}?",
        "In {views}, does {y} contain {x}?",
        "Going by {views}: is {x} inside {y}?",
    ),
}


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    pairs = [
        (x, y, how)
        for x, (y, how) in sorted(scene.supports.items())
        if {x, y} <= scene.seen and x in scene.names and y in scene.names and y not in scene.supports
    ]
    if len(pairs) < 2:
        context.drop("too few carried things are seen")
        return
    for _ in context.attempts():
        x, y, how = context.rng.choice(pairs)
        if context.rng.random() < 0.5:
            same = sorted({pair[1] for pair in pairs if pair[2] == how})
            if len(same) < 2:
                context.drop("no second carrier")
                continue
            others = [other for other in same if other != y]
            chosen = context.rng.sample(others, min(3, len(others)))
            question = context.say(WHICH[how], x=context.the(x), views=context.views)
            choices = tuple(scene.names[number] for number in (y, *chosen))
            answer = scene.names[y]
        else:
            alien = context.rng.choice([pair[0] for pair in pairs if pair[1] != y] or [x])
            if alien == x:
                context.drop("no second carrier")
                continue
            yes = context.rng.random() < 0.5
            question = context.say(
                YES_NO[how], x=context.the(x if yes else alien), y=context.the(y), views=context.views
            )
            choices, answer = ("yes", "no"), "yes" if yes else "no"
        yield Draft(question=question, answer=answer, choices=choices, frames=context.all_frames(), difficulty="easy")
