"""11. Left or right, nearer or farther, higher or lower, as the camera of one frame sees two objects of one kind."""

from collections.abc import Iterator

from ov2_core.spatial.task import Draft, TaskContext

NAME = "relation_camera"
NEEDS = ("depth", "boxes")
TEMPLATES = {
    "side": (
        "Seen by the camera in {image}, is {a} to the left or to the right of {b}?",
        "In {image}, from the camera's view, does {a} lie to the left or to the right of {b}?",
        "From the viewer's side in {image}: is {a} left or right of {b}?",
    ),
    "depth": (
        "Seen by the camera in {image}, is {a} in front of or behind {b}, by depth?",
        "In {image}, is {a} nearer (in front) or farther (behind) in depth than {b}?",
        "By depth from the camera in {image}: is {a} in front of {b} or behind it?",
    ),
    "height": (
        "In {image}, is the centre of {a} above or below the centre of {b}, measured in the room's vertical?",
        "By height over the floor in {image}: is the centre of {a} above or below that of {b}?",
        "Judging by {image}, does {a} lie above or below {b} (heights of their centres)?",
    ),
}
CHOICES = {"side": ("left", "right"), "depth": ("in front", "behind"), "height": ("above", "below")}
MIN_SIDE_M, MIN_DEPTH_M, MIN_HEIGHT_M = 0.25, 0.3, 0.2


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    width = scene.record.width_px
    for _ in context.attempts():
        frame = context.random_frame()
        ids = context.peers([n for n in context.named_visible(frame) if not scene.objects[n].moving], 2)
        if not ids:
            continue
        a, b = ids[:2]
        at_a, at_b = (scene.in_camera_FO3[frame, scene.column[n]] for n in (a, b))
        stats_a, stats_b = scene.mask_stats[frame, a], scene.mask_stats[frame, b]
        holds: dict[str, bool] = {}
        apart = abs(at_a[0] - at_b[0]) >= MIN_SIDE_M and abs(stats_a[1] - stats_b[1]) >= 0.08 * width
        if apart and (at_a[0] < at_b[0]) == (stats_a[1] < stats_b[1]):
            holds["side"] = bool(at_a[0] < at_b[0])
        if abs(at_a[2] - at_b[2]) >= MIN_DEPTH_M and len(stats_a[2]) and len(stats_b[2]):
            middle_a, middle_b = scene.median_depth(frame, a), scene.median_depth(frame, b)
            if abs(middle_a - middle_b) >= MIN_DEPTH_M and (middle_a < middle_b) == (at_a[2] < at_b[2]):
                holds["depth"] = bool(at_a[2] < at_b[2])
        rise = float(scene.center(a)[2] - scene.center(b)[2])
        if abs(rise) >= MIN_HEIGHT_M:
            holds["height"] = rise > 0
        if not holds:
            context.drop("values too close")
            continue
        relation = context.rng.choice(sorted(holds))
        question = context.say(TEMPLATES[relation], a=context.the(a), b=context.the(b), image=context.image(frame))
        answer = CHOICES[relation][0 if holds[relation] else 1]
        yield Draft(question=question, answer=answer, choices=CHOICES[relation], frames=(frame,), difficulty="easy")
