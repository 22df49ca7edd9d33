"""23. How a moving object moved between two frames: metres, or two-sided: towards or away, left or right in the room as the first
frame sees it. The order of the frames is a coin's."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.geometry import transform
from ov2_core.spatial.task import Draft, TaskContext

NAME = "object_motion"
NEEDS = ("depth", "tracks3d")
HOW_FAR = (
    "How far is {thing} in {f1} from its place in {f0}, in metres through the room, to one decimal?",
    "By how many metres (one decimal) does the place of {thing} in the room differ between {f0} and {f1}?",
    "Give the 3D displacement of {thing} from {f0} to {f1} in metres, to one decimal.",
)
SIDE = (
    "From {f0} to {f1}, did {thing} itself move to the left or to the right in the room, as the camera of {f0} sees it?",
    "With the camera of {f0} held fixed: does {thing} go left or right until {f1}?",
    "Leaving camera motion out, which way in the view of {f0} does {thing} move towards its place in {f1}: left or right?",
)
DEPTH = (
    "From {f0} to {f1}, did {thing} itself move towards or away from where the camera stood in {f0}?",
    "Measured from the camera position of {f0}: does {thing} come towards it or go away from it until {f1}?",
    "Leaving camera motion out, does {thing} move towards or away from the camera place of {f0} by {f1}?",
)
MIN_MOVE_M = 0.3


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    movers = [t.id for t in scene.record.objects if t.moving and t.id in scene.names]
    if scene.num_frames < 2 or not movers:
        context.drop("nothing moves")
        return
    for _ in context.attempts():
        i, j = context.rng.sample(range(scene.num_frames), 2)
        number = context.rng.choice(movers)
        centers = scene.track_centers(number)
        start, end = centers[i], centers[j]
        if start is None or end is None or not (scene.visible(number, i) and scene.visible(number, j)):
            context.drop("not seen in both")
            continue
        frames = (i, j)
        fields = {"thing": context.the(number), "f0": context.frame(frames, 0), "f1": context.frame(frames, 1)}
        distance = float(np.linalg.norm(end - start))
        if distance < MIN_MOVE_M:
            context.drop("values too close")
            continue
        moves = [transform(scene.camera_from_world_F44[f], np.stack([start, end])) for f in frames]
        side = [float(m[1, 0] - m[0, 0]) for m in moves]
        range_ = [float(np.linalg.norm(m[1]) - np.linalg.norm(m[0])) for m in moves]
        form = context.rng.choice(("far", "side", "depth"))
        if form == "far":
            question = context.say(HOW_FAR, **fields)
            yield Draft(question=question, answer=number_text(distance, 0.1), frames=frames, difficulty="hard")
            continue
        values = side if form == "side" else range_
        if min(map(abs, values)) < MIN_MOVE_M or values[0] * values[1] < 0:
            context.drop("values too close")
            continue
        choices = ("left", "right") if form == "side" else ("towards", "away")
        yield Draft(
            question=context.say(SIDE if form == "side" else DEPTH, **fields),
            answer=choices[0 if values[0] < 0 else 1],
            choices=choices,
            frames=frames,
        )
