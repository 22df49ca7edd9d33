"""For layouts without instance masks: pixels to the boxes that hold their points, and boxes of labelled points."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.errors import BadItemError
from ov2_core.spatial.geometry import transform, unproject
from ov2_core.spatial.scene import F32, F64, U8, Scene, checked_scene
from schemas.spatial import SceneRecord

SLACK_M = 0.01


def masks_of_boxes(record: SceneRecord, depth_FHW: F32, folder: str, *, rgb_FHW3: U8 | None = None) -> Scene:
    """The scene with masks: a pixel is of the smallest box that holds its point. Raises BadItemError.

    rgb_FHW3: pictures that are no files yet.
    """
    empty = np.zeros(depth_FHW.shape, np.int32)
    scene = checked_scene(Scene(record=record, depth_FHW=depth_FHW, masks_FHW=empty, folder=folder))
    height, width = depth_FHW.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    xy = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    boxed = [thing for thing in record.objects if thing.box is not None]
    boxed.sort(key=lambda thing: -float(np.prod(thing.box.size_xyz_m)) if thing.box else 0.0)
    masks = np.zeros(depth_FHW.shape, np.int32)
    for i, depth in enumerate(depth_FHW):
        world = transform(scene.world_from_camera_F44[i], unproject(scene.intrinsics_F4[i], xy, depth.ravel()))
        known = depth.ravel() > 0
        flat = masks[i].reshape(-1)
        for thing in boxed:
            assert thing.box is not None
            local = (world - np.array(thing.box.center_xyz_m)) @ np.array(thing.box.world_from_box)
            flat[known & (np.abs(local) <= np.array(thing.box.size_xyz_m) / 2 + SLACK_M).all(axis=1)] = thing.id
    return checked_scene(Scene(record=record, depth_FHW=depth_FHW, masks_FHW=masks, rgb_FHW3=rgb_FHW3, folder=folder))


def box_record(center_m: npt.ArrayLike, size_m: npt.ArrayLike, world_from_box: npt.ArrayLike) -> dict[str, Any]:
    """An annotated box as a record's `box`, its axes in the order that our own boxes have: the third is nearest to vertical.

    world_from_box: [3, 3], an axis a column; a mirror is made a rotation by turning one axis round, which leaves the box the same.
    """
    size, axes = np.asarray(size_m, np.float64), np.array(world_from_box, np.float64)
    up = int(np.argmax(np.abs(axes[2])))
    order = [(up + 1) % 3, (up + 2) % 3, up]
    axes = axes[:, order]
    if axes[2, 2] < 0:
        axes[:, 1:] = -axes[:, 1:]
    if np.linalg.det(axes) < 0:
        axes[:, 0] = -axes[:, 0]
    return {
        "center_xyz_m": np.asarray(center_m, np.float64).tolist(),
        "size_xyz_m": size[order].tolist(),
        "world_from_box": axes.tolist(),
    }


def require_z_up(poses: Sequence[npt.ArrayLike], name: str) -> None:
    """Raises BadItemError (bad_pose) where cameras stand on their heads on average: the world's z is not up."""
    tops = [-np.asarray(pose, np.float64)[2, 1] for pose in poses]
    if np.isfinite(tops).all() and np.mean(tops) < -0.1:
        raise BadItemError(
            "bad_pose",
            f"scene {name}: its cameras stand on their heads, so the world's z is not up; turn the poses and boxes so that it is",
            stage="spatial",
        )


def upright_box(points_N3: F64) -> dict[str, Any]:
    """The upright box of least footprint around points, of 90 yaws; as a record's `box`."""
    best: tuple[float, float] | None = None
    for yaw in np.radians(np.arange(0, 90, 1.0)):
        c, s = np.cos(yaw), np.sin(yaw)
        flat = points_N3[:, :2] @ np.array([[c, -s], [s, c]])
        area = float(np.prod(np.ptp(flat, axis=0)))
        if best is None or area < best[0]:
            best = area, float(yaw)
    assert best is not None
    c, s = np.cos(best[1]), np.sin(best[1])
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    local = points_N3 @ turn
    low, high = local.min(axis=0), local.max(axis=0)
    return {
        "center_xyz_m": (turn @ ((low + high) / 2)).tolist(),
        "size_xyz_m": np.maximum(high - low, 1e-3).tolist(),
        "world_from_box": turn.tolist(),
    }


def spread(items: Sequence[Any], num: int) -> list[Any]:
    """At most `num` of them, evenly from first to last."""
    if len(items) <= num:
        return list(items)
    return [items[round(k * (len(items) - 1) / (num - 1))] for k in range(num)]


def resize_nearest(image_HW: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Nearest neighbour, pixel centres aligned; for depth and ids, which must not be mixed."""
    rows = ((np.arange(height) + 0.5) * image_HW.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * image_HW.shape[1] / width).astype(int)
    return np.asarray(image_HW[rows][:, columns])
