"""27. How many objects that are tracked a frame shows, or all frames together: a number."""

from collections.abc import Iterator

from ov2_core.spatial.task import Draft, TaskContext

NAME = "track_count"
NEEDS = ("tracks",)
ALL = (
    "How many different {what} do {views} show in all?",
    "Count the {what} in {views}; each counts once.",
    "Over {views} together, how many {what} are there?",
)
AT = (
    "How many {what} does {frame} of {views} show?",
    "In {frame} of {views}, how many {what} are in sight?",
    "Count the {what} that can be seen in {frame} of {views}.",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    scene = context.scene
    groups: dict[str, list[int]] = {}
    for track in scene.record.tracks:
        # A scene with geometry tracks all that moves; others track all that a label fits.
        label = scene.objects[track.object_id].label
        what = "moving objects" if scene.has_geometry else f"objects that match '{label}'"
        groups.setdefault(what, []).append(track.object_id)
    frames = context.all_frames()
    rows = {}
    for track in scene.record.tracks:
        row = [place is not None and place.xy_px is not None for place in track.places]
        if scene.masks_FHW is not None:
            pixels = scene.visible_px_FO[:, scene.column[track.object_id]]
            if any(px > 0 and not shown for px, shown in zip(pixels, row, strict=True)):
                context.drop("hardly seen")
                return
        rows[track.object_id] = row
    if not any(map(any, rows.values())):
        context.drop("nothing is tracked")
        return
    for what, ids in groups.items():
        total = sum(any(rows[n]) for n in ids)
        yield Draft(question=context.say(ALL, what=what, views=context.views), answer=str(total), frames=frames)
        for position in frames if len(frames) > 1 else ():
            yield Draft(
                question=context.say(AT, what=what, views=context.views, frame=context.frame(frames, position)),
                answer=str(sum(rows[n][position] for n in ids)),
                frames=frames,
            )
