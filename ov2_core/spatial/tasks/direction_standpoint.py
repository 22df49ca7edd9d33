"""12. Direction of an object for someone who stands at one object and faces another: easy (left, right), medium (with behind),
hard (quadrants). Choices are the directions of the candidates, one of which is asked about."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.geometry import bearing_radians
from ov2_core.spatial.task import Draft, TaskContext

NAME = "direction_standpoint"
NEEDS = ("boxes",)
TEMPLATES = (
    "Using {views}: if you stand at {a} and face {b}, in which direction is {c}?",
    "Imagine standing at the centre of {a} in {views}, facing {b}. Where is {c}?",
    "From {a}, looking towards {b} (see {views}), in what direction do you find {c}?",
)
MARGIN_DEGREES = 12.0
MIN_DISTANCE_M = 0.7


def easy(degrees: float) -> str | None:
    """left, right, or None near straight ahead and behind."""
    if MARGIN_DEGREES <= abs(degrees) <= 180 - MARGIN_DEGREES:
        return "left" if degrees > 0 else "right"
    return None


def medium(degrees: float) -> str | None:
    """left, right or behind: cuts at 0 and 135 degrees."""
    if abs(degrees) >= 135 + MARGIN_DEGREES:
        return "behind"
    if MARGIN_DEGREES <= abs(degrees) <= 135 - MARGIN_DEGREES:
        return "left" if degrees > 0 else "right"
    return None


def hard(degrees: float) -> str | None:
    """front-left, front-right, back-left or back-right."""
    off = abs(degrees) % 90
    if not MARGIN_DEGREES <= off <= 90 - MARGIN_DEGREES:
        return None
    return ("front-" if abs(degrees) < 90 else "back-") + ("left" if degrees > 0 else "right")


LEVELS = {"easy": easy, "medium": medium, "hard": hard}


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    for _ in context.attempts():
        ids = context.standing_seen(4)
        if not ids:
            return
        a, b = ids[:2]
        at = {number: scene.center(number)[:2] for number in ids}
        if np.linalg.norm(at[a] - at[b]) < MIN_DISTANCE_M:
            context.drop("too close to one another")
            continue
        level = context.rng.choice(("easy", "medium", "hard"))
        named = []
        for c in ids[2:]:
            direction = LEVELS[level](float(np.degrees(bearing_radians(at[a], at[b], at[c]))))
            if direction is not None and np.linalg.norm(at[a] - at[c]) >= MIN_DISTANCE_M:
                named.append((c, direction))
        found = context.contrast(named, lambda x, y: x != y, size=4)
        if not found:
            continue
        c, direction = context.rng.choice(found)
        question = context.say(TEMPLATES, a=context.the(a), b=context.the(b), c=context.the(c), views=context.views)
        yield Draft(
            question=question,
            answer=direction,
            choices=tuple(sorted(d for _, d in found)),
            frames=context.all_frames(),
            difficulty="easy" if level == "easy" else "medium" if level == "medium" else "hard",
        )
