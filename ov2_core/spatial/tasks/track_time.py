"""28. When a tracked object is first, or last, in sight: a number of seconds."""

from collections.abc import Iterator

from ov2_core.spatial.task import Draft, TaskContext

NAME = "track_time"
NEEDS = ("tracks",)
TEMPLATES = (
    "At what time is {thing} {way} in sight in {views}{timing}?",
    "Give the time in seconds at which {thing} is {way} seen in {views}{timing}.",
    "When is {thing} {way} visible in {views}{timing}? Answer in seconds.",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    times = [frame.time_seconds for frame in scene.record.frames]
    timing = "" if context.video else f" (frames stand at {', '.join(f'{t:.1f}' for t in times)} s)"
    for track in scene.record.tracks:
        seen = [k for k, place in enumerate(track.places) if place is not None and place.xy_px is not None]
        if not seen or track.object_id not in scene.names:
            context.drop("no unambiguous name" if seen else "never in sight")
            continue
        if scene.masks_FHW is not None:
            pixels = scene.visible_px_FO[:, scene.column[track.object_id]]
            if pixels[: seen[0]].any() or pixels[seen[-1] + 1 :].any():
                context.drop("hardly seen")
                continue
        for way, at in (("first", seen[0]), ("last", seen[-1])):
            question = context.say(
                TEMPLATES, thing=context.the(track.object_id), way=way, views=context.views, timing=timing
            )
            yield Draft(question=question, answer=f"{times[at]:.1f}", frames=context.all_frames())
