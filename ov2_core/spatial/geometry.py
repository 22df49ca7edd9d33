"""Conversions between pixels, camera, world and box. Frames of reference and units: schemas/spatial.py.

Plain numpy on float64; a trailing 2 or 3 of a shape is a vector. The checker does not use this file: it has paths of its own.
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
UP = np.array([0.0, 0.0, 1.0])
DIRECTIONS_8 = ("front", "front-left", "left", "back-left", "back", "back-right", "right", "front-right")
"""Sectors of 45 degrees, counterclockwise seen from above, the first centred on straight ahead."""


def look_at(eye_m: npt.ArrayLike, target_m: npt.ArrayLike) -> Array:
    """world_from_camera [4, 4] of a level camera at `eye_m` that looks at `target_m`.

    Raises:
        ValueError: it would look straight up or down.
    """
    eye, target = np.asarray(eye_m, np.float64), np.asarray(target_m, np.float64)
    forward = target - eye
    right = np.cross(forward, UP)
    if length(right) < 1e-9:
        raise ValueError(f"a level camera cannot look straight up or down: eye {eye}, target {target}")
    forward, right = forward / length(forward), right / length(right)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = right, np.cross(forward, right), forward, eye
    return matrix


def length(vector_3: Array) -> float:
    """Euclidean norm; the same bits on every CPU, which numpy's, through BLAS, does not promise."""
    x, y, z = vector_3.tolist()
    return math.sqrt(x * x + y * y + z * z)


def invert_rigid(a_from_b: Array) -> Array:
    """b_from_a of a rotation and a translation [4, 4]."""
    inverse = np.eye(4)
    inverse[:3, :3] = a_from_b[:3, :3].T
    inverse[:3, 3] = -a_from_b[:3, :3].T @ a_from_b[:3, 3]
    return inverse


def transform(a_from_b: Array, points_N3: npt.ArrayLike) -> Array:
    """Points of b in a's coordinates."""
    points = np.asarray(points_N3, np.float64)
    return points @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def project(intrinsics_px: npt.ArrayLike, points_camera_N3: npt.ArrayLike) -> Array:
    """Pixels [.., 2] of points in the camera's frame; NaN for those not in front of it."""
    fx, fy, cx, cy = np.asarray(intrinsics_px, np.float64)
    points = np.asarray(points_camera_N3, np.float64)
    z = np.where(points[..., 2] > 1e-6, points[..., 2], np.nan)
    return np.stack([fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy], axis=-1)


def unproject(intrinsics_px: npt.ArrayLike, xy_px: npt.ArrayLike, depth_m: npt.ArrayLike) -> Array:
    """Points [.., 3] in the camera's frame of pixels at a depth."""
    fx, fy, cx, cy = np.asarray(intrinsics_px, np.float64)
    xy, z = np.asarray(xy_px, np.float64), np.asarray(depth_m, np.float64)
    return np.stack([(xy[..., 0] - cx) / fx * z, (xy[..., 1] - cy) / fy * z, z], axis=-1)


def box_corners(center_m: npt.ArrayLike, size_m: npt.ArrayLike, world_from_box: npt.ArrayLike) -> Array:
    """Corners [8, 3] in the world; corner k has bit 0, 1, 2 of k set where it lies on the + side of x, y, z."""
    bits = np.array([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)], np.float64) - 0.5
    corners = (bits * np.asarray(size_m)) @ np.asarray(world_from_box).T + np.asarray(center_m)
    return np.asarray(corners, np.float64)


def yaw_matrix(yaw_radians: float) -> Array:
    """Rotation [3, 3] about the world's z, counterclockwise seen from above."""
    c, s = np.cos(yaw_radians), np.sin(yaw_radians)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def bearing_radians(standpoint_xy: npt.ArrayLike, facing_xy: npt.ArrayLike, object_xy: npt.ArrayLike) -> float:
    """Angle on the floor from the heading (standpoint to facing) to the object, in (-pi, pi]; positive is to the left."""
    heading = np.asarray(facing_xy, np.float64)[:2] - np.asarray(standpoint_xy, np.float64)[:2]
    offset = np.asarray(object_xy, np.float64)[:2] - np.asarray(standpoint_xy, np.float64)[:2]
    cross, dot = heading[0] * offset[1] - heading[1] * offset[0], heading @ offset
    return float(np.arctan2(cross, dot))


def direction_8(bearing: float) -> tuple[str, float]:
    """(name of the sector, radians from its nearest edge)."""
    turns = bearing / (np.pi / 4)
    nearest = round(turns)
    return DIRECTIONS_8[nearest % 8], float((0.5 - abs(turns - nearest)) * np.pi / 4)


def polygon_area(corners_xy: npt.ArrayLike) -> float:
    """Area of a simple polygon."""
    xy = np.asarray(corners_xy, np.float64)
    x, y = xy[:, 0], xy[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def to_thousand(xy_px: npt.ArrayLike, width_px: int, height_px: int) -> tuple[int, int]:
    """A pixel place as x and y 0-999: thousandths of the image, rounded down."""
    x, y = np.asarray(xy_px, np.float64)
    return min(999, max(0, int(x / width_px * 1000))), min(999, max(0, int(y / height_px * 1000)))


def from_thousand(x: int, y: int, width_px: int, height_px: int) -> tuple[float, float]:
    """The middle of what to_thousand gives this name, in pixels."""
    return (x + 0.5) / 1000 * width_px, (y + 0.5) / 1000 * height_px
