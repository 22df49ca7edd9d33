"""26. Track an object: `<tracks ...>` text, one point a frame where it is seen. SAM 2 takes such points as prompts."""

from collections.abc import Iterator

from ov2_core.data.tracking import TrackPoint, format_tracks, to_unit_thousand
from ov2_core.spatial.task import Draft, TaskContext

NAME = "track_object"
NEEDS = ("tracks",)
TEMPLATES = (
    "Track {thing}{timing}",
    "Follow {thing} through {views} and answer with its track{timing}",
    "Give the track of {thing} over {views}{timing}",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    width, height = scene.size_px
    times = [frame.time_seconds for frame in scene.record.frames]
    frames = context.all_frames()
    timing = "." if context.video else f"; the frames stand at {', '.join(f'{t:.1f}' for t in times)} s."
    for track in scene.record.tracks:
        if track.object_id not in scene.names:
            context.drop("no unambiguous name")
            continue
        points = [
            TrackPoint(time, 1, to_unit_thousand(place.xy_px[0], width), to_unit_thousand(place.xy_px[1], height))
            for time, place in zip(times, track.places, strict=True)
            if place is not None and place.xy_px is not None
        ]
        if len(points) < 2:
            context.drop("hardly seen")
            continue
        for _ in range(2):
            question = context.say(TEMPLATES, thing=context.the(track.object_id), views=context.views, timing=timing)
            yield Draft(question=question, answer=format_tracks(points), frames=frames)
