"""10. Size of the room: floor area, longer and shorter wall, height; numbers. One room a scene gives no peers for choices."""

from collections.abc import Iterator

import numpy as np

from ov2_core.spatial.formats import number_text
from ov2_core.spatial.geometry import polygon_area
from ov2_core.spatial.task import Draft, TaskContext

NAME = "room_size"
NEEDS = ("depth", "room")
TEMPLATES = (
    "What is the {measure} of the room in {views}, in {unit}?",
    "Estimate the {measure} of the room that {views} show, in {unit}.",
    "Judging by {views}, how large is the {measure} of this room, in {unit}?",
)


def drafts(context: TaskContext) -> Iterator[Draft]:
    room = context.scene.record.room
    assert room is not None
    xy = np.array(room.floor_polygon_xy_m)
    measures = [("floor area", polygon_area(xy), 1.0, "square metres to the nearest whole")]
    if len(xy) == 4:
        sides = np.linalg.norm(np.roll(xy, -1, axis=0) - xy, axis=1)
        measures.append(("longer wall", float(sides.max()), 0.1, "metres to one decimal"))
        measures.append(("shorter wall", float(sides.min()), 0.1, "metres to one decimal"))
    if room.ceiling_z_m is not None:
        height = room.ceiling_z_m - room.floor_z_m
        measures.append(("height", height, 0.1, "metres to one decimal"))
    for measure, value, step, unit in measures:
        question = context.say(TEMPLATES, measure=measure, unit=unit, views=context.views)
        yield Draft(question=question, answer=number_text(value, step), frames=context.all_frames(), difficulty="hard")
