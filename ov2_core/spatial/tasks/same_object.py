"""21. Whether points of two frames lie on one object: yes or no. The two candidates of the second frame lie close together."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.spatial.task import Draft, TaskContext, point_text

Places = npt.NDArray[np.int64]
NAME = "same_object"
NEEDS = ("masks",)
TEMPLATES = (
    "Do {p} in {f0} and {q} in {f1} lie on the same object? Coordinates count 0-999.",
    "Is the object at {p} of {f0} the one at {q} of {f1} (0-999)?",
    "Look at {p} in {f0} and at {q} in {f1}, 0-999: one and the same object?",
)
MAX_APART = 60


@kernel()
def _close_by(places: Places, width: int, own: int, start: int, near: float) -> tuple[Places, Places]:
    """Indices of flat places within `near` pixels of `own`: those of less change of height from `start` than own's, the others."""
    row, column, start_row = own // width, own % width, start // width
    less, more = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
    num_less = num_more = 0
    for k in range(len(places)):
        off = abs(places[k] // width - row)
        if off <= near and abs(places[k] % width - column) <= near:
            if abs(places[k] // width - start_row) < abs(row - start_row):
                less[num_less] = k
                num_less += 1
            else:
                more[num_more] = k
                num_more += 1
    return less[:num_less], more[:num_more]


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    width = scene.record.width_px
    if scene.num_frames < 2:
        context.drop("one frame")
        return
    for _ in context.attempts(6):
        i, j = context.rng.sample(range(scene.num_frames), 2)
        both = [n for n in scene.visible_ids(i) if scene.visible(n, j)]
        visible_j = scene.visible_ids(j)
        if not both or len(visible_j) < 2:
            context.drop("no object in both")
            continue
        number = context.rng.choice(both)
        own, start = scene.interior(j, number), scene.interior(i, number)
        if not len(own) or not len(start):
            context.drop("no smooth pixel")
            continue
        near = MAX_APART * width / 1000
        place = context.some(start)
        pair = None
        for _ in range(8):
            yes_place = context.some(own)
            other = context.rng.choice([n for n in visible_j if n != number])
            places = scene.interior(j, other)
            if not len(places):
                continue
            # Between frames points hardly change their height, so a wrong one must be as likely to have shifted less as more.
            sides = _close_by(places, width, yes_place, place, near)
            if len(sides[0]) and len(sides[1]):
                side = context.rng.choice(sides)
                pair = yes_place, int(places[side[context.rng.randrange(len(side))]])
                break
        if pair is None:
            context.drop("no two neighbours that differ")
            continue
        yes = context.rng.random() < 0.5
        p, q = context.pixel_name(place), context.pixel_name(pair[0] if yes else pair[1])
        frames = (i, j)
        yield Draft(
            question=context.say(
                TEMPLATES,
                p=point_text(*p),
                q=point_text(*q),
                f0=context.frame(frames, 0),
                f1=context.frame(frames, 1),
            ),
            answer="yes" if yes else "no",
            choices=("yes", "no"),
            frames=frames,
        )
