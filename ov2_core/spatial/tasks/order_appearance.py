"""24. What appears first, in which frame it does, and which way a route turns. Choices are those of other objects of the scene."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.geometry import bearing_radians
from ov2_core.spatial.task import Draft, TaskContext

NAME = "order_appearance"
NEEDS = ("boxes",)
FIRST = (
    "Going through {views} in order, which of these objects appears first?",
    "Which of these is the first to be seen in {views}?",
    "In {views}, what comes into view earliest?",
)
WHEN = (
    "Where in {views} does {thing} first appear?",
    "Going through {views} in order, when is {thing} seen for the first time?",
    "Name the earliest view among {views} that shows {thing}.",
)
ROUTE = (
    "Using {views}: you walk straight from {a} to {b}, then on to {c}. At {b}, do you turn left or right?",
    "A route in {views} leads from {a} via {b} to {c}, straight between them. Which way does it turn at {b}, left or right?",
    "Walking from {a} to {b} and from there to {c} (see {views}), is the turn at {b} to the left or to the right?",
)
TURN_DEGREES = (20.0, 160.0)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    frames = context.all_frames()
    first = first_frames(context)
    for _ in context.attempts():
        form = context.rng.choice(("first", "when", "route"))
        if form == "route":
            yield from _route(context)
            continue
        ids = [n for n in context.peers(sorted(first), 2) if n in first]
        found = context.contrast([(n, first[n]) for n in ids], lambda a, b: a != b, size=4, at_least=2)
        if not found:
            continue
        if form == "first":
            yield Draft(
                question=context.say(FIRST, views=context.views),
                answer=scene.names[min(found, key=lambda item: item[1])[0]],
                choices=tuple(scene.names[n] for n, _ in found),
                frames=frames,
            )
            continue
        number, at = context.rng.choice(found)
        yield Draft(
            question=context.say(WHEN, thing=context.the(number), views=context.views),
            answer=context.frame(frames, at),
            choices=tuple(context.frame(frames, k) for _, k in found),
            frames=frames,
        )


def first_frames(context: TaskContext) -> dict[int, int]:
    """Named object -> the first frame that shows it well, if no frame before shows a bit of it."""
    scene = context.scene
    first = {}
    for number in sorted(scene.names):
        pixels = scene.visible_px_FO[:, scene.column[number]]
        shown = np.flatnonzero(pixels >= scene.min_visible_px)
        if len(shown) and not pixels[: shown[0]].any():
            first[number] = int(shown[0])
    return first


def _route(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    ids = context.standing_seen(3)
    if not ids:
        return
    a, b, c = ids[:3]
    at = [scene.center(number)[:2] for number in (a, b, c)]
    if min(np.linalg.norm(at[1] - at[0]), np.linalg.norm(at[2] - at[1])) < 0.8:
        context.drop("too close to one another")
        return
    turn = float(np.degrees(bearing_radians(at[1], 2 * at[1] - at[0], at[2])))
    if not TURN_DEGREES[0] <= abs(turn) <= TURN_DEGREES[1]:
        context.drop("hardly a turn")
        return
    yield Draft(
        question=context.say(ROUTE, a=context.the(a), b=context.the(b), c=context.the(c), views=context.views),
        answer="left" if turn > 0 else "right",
        choices=("left", "right"),
        frames=context.all_frames(),
        difficulty="hard",
    )
