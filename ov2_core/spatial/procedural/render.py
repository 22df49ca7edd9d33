"""Ray casting of boxes and upright cylinders in a box-shaped room: depth, masks and shaded pixels of one frame.

Enters: solids as arrays (S of them, yaw alone), a camera. Leaves: depth float32 [H, W] (z of the camera's frame), ids int32 [H, W]
(0 for the room), RGB uint8 [H, W, 3]. Exact: every pixel is the ray through its centre; a solid is tried only where its box's
projection lies.
"""

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel

F64 = npt.NDArray[np.float64]
BOX, CYLINDER = 0, 1
_NEAR_M = 0.05


@kernel()
def _hash(a: int, b: int, c: int) -> float:
    n = (a * 73856093) ^ (b * 19349663) ^ (c * 83492791)
    n = (n ^ (n >> 13)) & 0x7FFFFFFF
    return ((n * 1103515245 + 12345) & 0x7FFFFFFF) / 2147483648.0


@kernel()
def _pattern(kind: int, a: float, b: float, scale: float) -> float:
    """Brightness 0.6..1.1 of a surface at (a, b) metres."""
    ia, ib = int(np.floor(a / scale)), int(np.floor(b / scale))
    if kind == 1:  # checks
        base = 0.82 if (ia + ib) % 2 == 0 else 1.04
    elif kind == 2:  # stripes
        base = 0.84 if ia % 2 == 0 else 1.04
    elif kind == 3:  # bricks, boards
        shifted = int(np.floor((a + (ib % 2) * scale) / (2 * scale)))
        base = 0.82 + 0.24 * _hash(shifted, ib, 7)
    else:
        base = 0.96
    grain: float = _hash(int(np.floor(a / 0.02)), int(np.floor(b / 0.02)), kind + 11)
    return base * (0.94 + 0.12 * grain)


@kernel()
def render(
    intrinsics: F64,
    rotation: F64,
    eye: F64,
    kinds: npt.NDArray[np.int64],
    centers: F64,
    halves: F64,
    yaws: F64,
    colors: F64,
    textures: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    room: F64,
    room_colors: F64,
    width: int,
    height: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """rotation: world_from_camera [3, 3]. room: x0, y0, z0, x1, y1, z1. room_colors: [3, 3] of floor, walls, ceiling."""
    fx, fy, cx, cy = intrinsics
    depth = np.full((height, width), np.inf, np.float32)
    mask = np.zeros((height, width), np.int32)
    bright = np.zeros((height, width), np.float32)
    tint = np.zeros((height, width, 3), np.float32)
    for v in range(height):
        for u in range(width):
            dx = (u + 0.5 - cx) / fx
            dy = (v + 0.5 - cy) / fy
            best, axis = np.inf, 0
            for k in range(3):
                d = rotation[k, 0] * dx + rotation[k, 1] * dy + rotation[k, 2]
                if d > 1e-9:
                    t = (room[k + 3] - eye[k]) / d
                elif d < -1e-9:
                    t = (room[k] - eye[k]) / d
                else:
                    continue
                if t < best:
                    best, axis = t, k
            px = eye[0] + best * (rotation[0, 0] * dx + rotation[0, 1] * dy + rotation[0, 2])
            py = eye[1] + best * (rotation[1, 0] * dx + rotation[1, 1] * dy + rotation[1, 2])
            pz = eye[2] + best * (rotation[2, 0] * dx + rotation[2, 1] * dy + rotation[2, 2])
            depth[v, u] = best
            if axis == 2:
                floor = pz < (room[2] + room[5]) / 2
                which, light = (0, 1.0) if floor else (2, 0.9)
                shade = _pattern(3 if floor else 0, px, py, 0.18)
            else:
                which, light = 1, (0.92 if axis == 0 else 0.8)
                shade = _pattern(2 if axis == 0 else 3, py if axis == 0 else px, pz, 0.35)
            bright[v, u] = light * shade
            for c in range(3):
                tint[v, u, c] = room_colors[which, c]
    for s in range(len(kinds)):
        _draw_solid(
            fx, fy, cx, cy, rotation, eye, kinds[s], centers[s], halves[s], yaws[s], colors[s], textures[s], ids[s],
            depth, mask, bright, tint,
        )  # fmt: skip
    rgb = np.empty((height, width, 3), np.uint8)
    for v in range(height):
        for u in range(width):
            for c in range(3):
                rgb[v, u, c] = np.uint8(min(255.0, max(0.0, tint[v, u, c] * bright[v, u])))
    return depth, mask, rgb


@kernel()
def _draw_solid(  # type: ignore[no-untyped-def]
    fx, fy, cx, cy, rotation, eye, kind, center, half, yaw, color, texture, number, depth, mask, bright, tint
):
    height, width = depth.shape
    cos, sin = np.cos(yaw), np.sin(yaw)
    u0, u1, v0, v1 = width, 0, height, 0
    for k in range(8):
        lx = half[0] if k & 1 else -half[0]
        ly = half[1] if k & 2 else -half[1]
        lz = half[2] if k & 4 else -half[2]
        wx = cos * lx - sin * ly + center[0] - eye[0]
        wy = sin * lx + cos * ly + center[1] - eye[1]
        wz = lz + center[2] - eye[2]
        z = rotation[0, 2] * wx + rotation[1, 2] * wy + rotation[2, 2] * wz
        if z < _NEAR_M:
            u0, u1, v0, v1 = 0, width, 0, height
            break
        u = fx * (rotation[0, 0] * wx + rotation[1, 0] * wy + rotation[2, 0] * wz) / z + cx
        v = fy * (rotation[0, 1] * wx + rotation[1, 1] * wy + rotation[2, 1] * wz) / z + cy
        u0, u1 = min(u0, int(np.floor(u))), max(u1, int(np.ceil(u)) + 1)
        v0, v1 = min(v0, int(np.floor(v))), max(v1, int(np.ceil(v)) + 1)
    ox = cos * (eye[0] - center[0]) + sin * (eye[1] - center[1])
    oy = -sin * (eye[0] - center[0]) + cos * (eye[1] - center[1])
    oz = eye[2] - center[2]
    for v in range(max(0, v0), min(height, v1)):
        for u in range(max(0, u0), min(width, u1)):
            a, b = (u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy
            gx = rotation[0, 0] * a + rotation[0, 1] * b + rotation[0, 2]
            gy = rotation[1, 0] * a + rotation[1, 1] * b + rotation[1, 2]
            dz = rotation[2, 0] * a + rotation[2, 1] * b + rotation[2, 2]
            dx, dy = cos * gx + sin * gy, -sin * gx + cos * gy
            if kind == BOX:
                t, axis = _hit_box(ox, oy, oz, dx, dy, dz, half)
            else:
                t, axis = _hit_cylinder(ox, oy, oz, dx, dy, dz, half)
            if t < _NEAR_M or t >= depth[v, u]:
                continue
            depth[v, u], mask[v, u] = t, number
            hx, hy, hz = ox + t * dx, oy + t * dy, oz + t * dz
            if axis == 2:
                light, shade = 1.05, _pattern(texture, hx, hy, 0.12)
            elif axis == 0:
                light, shade = 0.86, _pattern(texture, hy, hz, 0.12)
            elif axis == 1:
                light, shade = 0.72, _pattern(texture, hx, hz, 0.12)
            else:
                around = np.arctan2(hy, hx)
                light, shade = 0.8 + 0.2 * np.cos(around + yaw - 0.8), _pattern(texture, around * half[0], hz, 0.12)
            bright[v, u] = light * shade
            for c in range(3):
                tint[v, u, c] = color[c]


@kernel()
def _hit_box(ox, oy, oz, dx, dy, dz, half):  # type: ignore[no-untyped-def]
    """(distance along the ray to the front of the box, axis of the face); infinite for a miss."""
    near, far, axis = -np.inf, np.inf, 0
    for k in range(3):
        o = ox if k == 0 else oy if k == 1 else oz
        d = dx if k == 0 else dy if k == 1 else dz
        if abs(d) < 1e-12:
            if abs(o) > half[k]:
                return np.inf, 0
            continue
        t0, t1 = (-half[k] - o) / d, (half[k] - o) / d
        if t0 > t1:
            t0, t1 = t1, t0
        if t0 > near:
            near, axis = t0, k
        far = min(far, t1)
    if near > far or far < 0:
        return np.inf, 0
    return near, axis


@kernel()
def _hit_cylinder(ox, oy, oz, dx, dy, dz, half):  # type: ignore[no-untyped-def]
    """As _hit_box; radius half[0], upright; axis 2 for a cap, 3 for the side."""
    best, axis = np.inf, 3
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    c = ox * ox + oy * oy - half[0] * half[0]
    root = b * b - a * c
    if a > 1e-12 and root >= 0:
        t = (-b - np.sqrt(root)) / a
        if abs(oz + t * dz) <= half[2]:
            best = t
    if abs(dz) > 1e-12:
        for sign in (-1.0, 1.0):
            t = (sign * half[2] - oz) / dz
            x, y = ox + t * dx, oy + t * dy
            if x * x + y * y <= half[0] * half[0] and 0 < t < best:
                best, axis = t, 2
    return best, axis
