"""20. Whether another frame sees a point of one frame: yes or no, where no is hidden behind something or out of the picture.

The point asked about is one of two that lie close together in the first frame, one seen again and one not: coordinates tell
nothing.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ov2_core.spatial.task import Draft, TaskContext, point_text
from ov2_core.spatial.tasks.correspondence import see_again

Places = npt.NDArray[np.int64]
NAME = "visible_occluded"
NEEDS = ("depth",)
TEMPLATES = (
    "Is the place that {f0} shows at {p} visible in {f1}? Coordinates count 0-999.",
    "Can the physical point at {p} (0-999) of {f0} be seen in {f1}?",
    "Does {f1} show the place at {p} of {f0}, neither hidden nor out of the picture? Coordinates count 0-999.",
)
MAX_APART = 60
OUT_MARGIN = 0.03
"""Of the image's size: a point counts as out, or in, when it is that far past its border."""


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    if scene.num_frames < 2:
        context.drop("one frame")
        return
    for _ in context.attempts(4):
        i, j = context.rng.sample(range(scene.num_frames), 2)
        fixed = [n for n in [0, *scene.visible_ids(i)] if n == 0 or not scene.objects[n].moving]
        parts = [part for part in (scene.interior(i, n) for n in fixed) if len(part)]
        if not parts:
            context.drop("no smooth pixel")
            continue
        near = np.concatenate([_some(context, context.rng.choice(parts)) for _ in range(3)])
        rows, columns = np.divmod(near, scene.record.width_px)
        shares = np.stack([(columns + 0.5) / scene.size_px[0], (rows + 0.5) / scene.size_px[1]], axis=1)
        names = (shares * 1000).astype(np.int64)
        xy, gap, depths_j = see_again(scene, i, j, names)
        inner = scene.inside_image(xy, border_share=OUT_MARGIN)
        wide = scene.inside_image(xy, border_share=-OUT_MARGIN)
        seen = inner & (np.abs(gap) <= 0.02)
        # Hidden: all that the other frame shows around there is nearer, by far more than a step between neighbouring pixels.
        hidden = ~wide
        columns_j, rows_j = xy[inner].astype(np.int64).T
        farthest = scene.farthest(j)[rows_j, columns_j]
        hidden[inner] = farthest < 0.85 * (depths_j[inner])
        pair = _neighbours(context, names, np.flatnonzero(seen), np.flatnonzero(hidden))
        if pair is None:
            context.drop("no two neighbours that differ")
            continue
        yes = context.rng.random() < 0.5
        x, y = names[pair[0] if yes else pair[1]]
        frames = (i, j)
        yield Draft(
            question=context.say(
                TEMPLATES, p=point_text(x, y), f0=context.frame(frames, 0), f1=context.frame(frames, 1)
            ),
            answer="yes" if yes else "no",
            choices=("yes", "no"),
            frames=frames,
            difficulty="hard",
        )


def _some(context: TaskContext, part: Places) -> Places:
    return part[[context.rng.randrange(len(part)) for _ in range(24)]]


def _neighbours(context: TaskContext, names: Places, first: Places, second: Places) -> tuple[int, int] | None:
    if not len(first) or not len(second):
        return None
    apart = np.abs(names[first][:, None] - names[second][None]).max(axis=-1)
    rows, columns = np.nonzero(apart <= MAX_APART)
    if not len(rows):
        return None
    k = context.rng.randrange(len(rows))
    return int(first[rows[k]]), int(second[columns[k]])
