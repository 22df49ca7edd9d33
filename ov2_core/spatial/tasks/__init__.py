"""The task types, one file each. 1-25 are those of the corpus, 26-28 come from tracks alone."""

from typing import TYPE_CHECKING

from ov2_core.spatial.tasks import (
    birds_eye,
    box_object,
    camera_motion,
    compare_volumes,
    correspondence,
    count_objects,
    depth_object,
    depth_point,
    direction_standpoint,
    distance_camera,
    distance_objects,
    free_space,
    imagined_viewpoint,
    nearest_object,
    object_motion,
    order_appearance,
    order_depth,
    point_object,
    relation_camera,
    room_size,
    same_object,
    size_object,
    support_containment,
    trace_3d,
    track_count,
    track_object,
    track_time,
    visible_occluded,
)

if TYPE_CHECKING:
    from ov2_core.spatial.task import TaskType

TASKS: "tuple[TaskType, ...]" = (
    depth_point, depth_object, order_depth,
    distance_objects, nearest_object, distance_camera,
    size_object, compare_volumes, count_objects, room_size,
    relation_camera, direction_standpoint, imagined_viewpoint, birds_eye, support_containment,
    point_object, box_object, free_space,
    correspondence, visible_occluded, same_object, camera_motion,
    object_motion, order_appearance, trace_3d,
    track_object, track_count, track_time,
)  # fmt: skip
BY_NAME = {task.NAME: task for task in TASKS}
