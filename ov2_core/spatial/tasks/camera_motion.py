"""22. How the camera moved from one frame to another: sideways, ahead, turn; two-sided. The order of the frames is a coin's."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.geometry import transform
from ov2_core.spatial.task import Draft, TaskContext

NAME = "camera_motion"
NEEDS = ("depth",)
TEMPLATES = {
    "side": (
        "From {f0} to {f1}, did the camera move to its left or to its right, in the view of {f0}?",
        "Compare {f0} with {f1}: to which side of {f0} did the camera shift, left or right?",
        "Seen from {f0}, is the camera of {f1} placed to the left or to the right?",
    ),
    "ahead": (
        "From {f0} to {f1}, did the camera move forward or backward, in the view of {f0}?",
        "Compare {f0} with {f1}: has the camera gone forward or backward along the heading of {f0}?",
        "Seen from {f0}, is the camera of {f1} placed forward or backward?",
    ),
    "turn": (
        "From {f0} to {f1}, did the camera turn to the left or to the right?",
        "Compare {f0} with {f1}: has the camera's heading turned left or right?",
        "Which way did the camera turn between {f0} and {f1}, left or right (from the first named to the second)?",
    ),
}
CHOICES = {"side": ("left", "right"), "ahead": ("forward", "backward"), "turn": ("left", "right")}
MIN_MOVE_M, MIN_TURN_RADIANS = 0.25, 0.14


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    if scene.num_frames < 2:
        context.drop("one frame")
        return
    for _ in context.attempts():
        i, j = context.rng.sample(range(scene.num_frames), 2)
        move = transform(scene.camera_from_world_F44[i], scene.world_from_camera_F44[j, :3, 3])
        forward = scene.camera_from_world_F44[i][:3, :3] @ scene.world_from_camera_F44[j, :3, 2]
        back = transform(scene.camera_from_world_F44[j], scene.world_from_camera_F44[i, :3, 3])
        turn = float(np.arctan2(forward[0], forward[2]))
        holds: dict[str, bool] = {}
        # The way back must be the mirror of the way there, else the coin would not balance the two sides.
        if abs(move[0]) >= MIN_MOVE_M and move[0] * back[0] < 0 and abs(back[0]) >= MIN_MOVE_M:
            holds["side"] = bool(move[0] < 0)
        if abs(move[2]) >= MIN_MOVE_M and move[2] * back[2] < 0 and abs(back[2]) >= MIN_MOVE_M:
            holds["ahead"] = bool(move[2] > 0)
        if abs(turn) >= MIN_TURN_RADIANS:
            holds["turn"] = turn < 0
        if not holds:
            context.drop("values too close")
            continue
        kind = context.rng.choice(sorted(holds))
        frames = (i, j)
        question = context.say(TEMPLATES[kind], f0=context.frame(frames, 0), f1=context.frame(frames, 1))
        answer = CHOICES[kind][0 if holds[kind] else 1]
        yield Draft(question=question, answer=answer, choices=CHOICES[kind], frames=frames)
