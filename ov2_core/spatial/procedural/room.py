"""A room from a seed: furniture-like solids, small things on and in them, one or two that move, and a camera's path.

Enters: a seed. Leaves: a checked Scene with pixels. Labels say nothing about sizes, places or depths: all furniture draws its
size from one range, all small things from another, so what is asked cannot be answered from names alone.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ov2_core.spatial.geometry import look_at, yaw_matrix
from ov2_core.spatial.procedural.render import BOX, CYLINDER, render
from ov2_core.spatial.scene import F32, F64, I32, U8, Scene, checked_scene
from schemas.spatial import (
    OrientedBox,
    SceneFrame,
    SceneObject,
    SceneRecord,
    SceneRoom,
    SceneTrack,
    TrackPlace,
)

COLORS = {
    "red": (196, 48, 42), "blue": (46, 84, 190), "green": (52, 140, 62), "yellow": (224, 186, 46),
    "white": (226, 224, 216), "black": (46, 44, 48), "orange": (224, 122, 36), "purple": (128, 62, 158),
}  # fmt: skip
FURNITURE = ("table", "chair", "cabinet", "sofa", "bench", "crate", "barrel", "desk", "stool", "trunk")
FLAT = frozenset({"table", "cabinet", "bench", "crate", "barrel", "desk", "stool", "trunk"})
SMALL = ("mug", "book", "vase", "tin", "toy", "parcel")
MOVERS = ("robot", "cart", "drum")
ROUND = frozenset({"barrel", "stool", "mug", "vase", "tin", "drum"})
FPS = 2.0


_Solid = tuple[int, F64, F64]
"""Kind, centre, half size."""
LOOKS = (
    frozenset({"table", "desk", "bench", "chair", "sofa"}),
    frozenset({"cabinet", "crate", "trunk", "bin"}),
    frozenset({"barrel", "stool"}),
    frozenset({"mug", "vase", "tin", "book", "parcel", "toy"}),
    frozenset({"robot", "cart", "drum"}),
)
"""Things of one set have different colours in a room: the eye may take one for another."""


@dataclass(slots=True)
class _Thing:
    label: str
    color: str
    center: F64
    size: F64
    yaw: float
    kind: str
    parts: list[_Solid] = field(default_factory=list)
    """(solid, centre, half size), in the thing's own axes from its centre."""
    path: F64 | None = None
    """Centres [F, 3] of a mover."""

    @property
    def radius(self) -> float:
        return float(np.hypot(self.size[0], self.size[1]) / 2)


def make_scene(seed: int, number: int = 0, *, num_frames: int = 8, width_px: int = 320, height_px: int = 240) -> Scene:
    """Scene `number` of a seed; the same arguments give the same scene."""
    rng = np.random.default_rng([seed, number])
    for _ in range(50):
        room = np.round([rng.uniform(4.6, 7.5), rng.uniform(4.6, 7.5), rng.uniform(2.5, 3.1)], 2)
        things = _furnish(rng, room, num_frames)
        if things is not None:
            break
    else:
        raise AssertionError(f"no room could be furnished: seed {seed}, scene {number}")
    poses = _camera_path(rng, room, num_frames)
    focal = round(width_px / 2 / np.tan(np.radians(rng.uniform(66, 78)) / 2), 2)
    intrinsics = [focal, focal, width_px / 2, height_px / 2]
    depth, masks, rgb = _render(rng, room, things, poses, np.array(intrinsics), width_px, height_px)
    depth = (np.rint(depth.astype(np.float64) * 1000) * 0.001).astype(np.float32)  # as it is stored: whole millimetres
    name = f"proc-{seed}-{number:06d}"
    record = SceneRecord(
        id=name,
        source="procedural",
        kind="rgbd",
        width_px=width_px,
        height_px=height_px,
        frames=[
            SceneFrame(
                rgb=f"frames/{i:03d}.jpg",
                time_seconds=i / FPS,
                depth=f"depth/{i:03d}.png",
                masks=f"masks/{i:03d}.png",
                intrinsics_px=intrinsics,
                world_from_camera=pose.tolist(),
            )
            for i, pose in enumerate(poses)
        ],
        objects=[_object(i, thing) for i, thing in enumerate(things, start=1)],
        tracks=[_track(i, thing, masks) for i, thing in enumerate(things, start=1) if thing.path is not None],
        room=SceneRoom(
            floor_polygon_xy_m=[[0.0, 0.0], [room[0], 0.0], [room[0], room[1]], [0.0, room[1]]],
            floor_z_m=0.0,
            ceiling_z_m=float(room[2]),
        ),
    )
    return checked_scene(Scene(record=record, depth_FHW=depth, masks_FHW=masks, rgb_FHW3=rgb))


def _furnish(rng: np.random.Generator, room: F64, num_frames: int) -> list[_Thing] | None:
    labels = list(rng.permutation(FURNITURE))
    wanted = [labels[0]] * int(rng.integers(2, 5)) + [labels[1]] * int(rng.integers(1, 4)) + labels[2:7]
    things: list[_Thing] = []
    for label in [*wanted, "bin", "bin"]:
        size = np.round(rng.uniform([0.4, 0.4, 0.4], [1.1, 0.9, 1.0]), 2)
        if label == "bin":
            size = np.round(rng.uniform([0.4, 0.4, 0.3], [0.6, 0.6, 0.45]), 2)
        thing = _place(rng, label, size, room, things)
        if thing is not None:
            things.append(thing)
    if len(things) < 7:
        return None
    standing = list(things)
    order = [standing[i] for i in rng.permutation(len(standing))]
    order.sort(key=lambda thing: thing.label != "bin")
    small = [*rng.permutation(SMALL), str(rng.choice(SMALL))]
    for carrier in order:
        if not small:
            break
        if carrier.label == "bin" or (carrier.label in FLAT and rng.random() < 0.7):
            thing = _put(rng, small.pop(), carrier, things)
            if thing is not None:
                things.append(thing)
            elif (
                carrier.label == "bin"
            ):  # bins are smaller than furniture: an empty one would tell its size by its name
                things.remove(carrier)
                standing.remove(carrier)
    for label in rng.permutation(MOVERS)[: int(rng.integers(1, 3))]:
        mover = _send(rng, str(label), room, standing, things, num_frames)
        if mover is not None:
            things.append(mover)
    if not any(thing.path is not None for thing in things):
        return None
    return [things[i] for i in rng.permutation(len(things))]


def _color(rng: np.random.Generator, label: str, things: list[_Thing]) -> str:
    look = next(look for look in LOOKS if label in look)
    taken = {thing.color for thing in things if thing.label in look}
    same = {thing.color for thing in things if thing.label == label}
    free = [name for name in COLORS if name not in taken] or [name for name in COLORS if name not in same]
    return str(rng.choice(free))


def _place(rng: np.random.Generator, label: str, size: F64, room: F64, things: list[_Thing]) -> _Thing | None:
    if label in ROUND:
        size[:2] = round(float(np.sqrt(size[0] * size[1])), 2)
    radius = float(np.hypot(size[0], size[1]) / 2)
    for _ in range(60):
        xy = rng.uniform([radius + 0.05] * 2, room[:2] - radius - 0.05)
        if all(np.hypot(*(xy - t.center[:2])) > radius + t.radius + 0.12 for t in things):
            center = np.round([xy[0], xy[1], size[2] / 2], 3)
            thing = _Thing(label, _color(rng, label, things), center, size, round(rng.uniform(-np.pi, np.pi), 3), label)
            thing.parts = _parts(label, size)
            return thing
    return None


def _put(rng: np.random.Generator, label: str, carrier: _Thing, things: list[_Thing]) -> _Thing | None:
    """A small thing on or, for a bin, in its carrier."""
    size = np.round(rng.uniform([0.13] * 3, [0.3, 0.3, 0.34]), 2)
    if label in ROUND:
        size[:2] = round(float(np.sqrt(size[0] * size[1])), 2)
    inside = carrier.label == "bin"
    room = carrier.size[:2] / 2 - np.hypot(size[0], size[1]) / 2 - (0.04 if inside else 0.0)
    if (room <= 0.01).any():
        return None
    if inside:
        size[2] = round(min(size[2], carrier.size[2] - 0.06), 2)
        z = carrier.center[2] - carrier.size[2] / 2 + 0.03 + size[2] / 2
    else:
        z = carrier.center[2] + carrier.size[2] / 2 + size[2] / 2
    local = np.array([*rng.uniform(-room, room), 0.0])
    if carrier.label in ROUND:
        local *= 0.5
    xy = (yaw_matrix(carrier.yaw) * local).sum(axis=1)[:2] + carrier.center[:2]
    yaw = round(rng.uniform(-np.pi, np.pi), 3)
    thing = _Thing(label, _color(rng, label, things), np.round([*xy, z], 3), size, yaw, label)
    thing.parts = _parts(label, size)
    return thing


def _send(
    rng: np.random.Generator, label: str, room: F64, standing: list[_Thing], things: list[_Thing], num_frames: int
) -> _Thing | None:
    """A thing that crosses the floor between the furniture on a straight or bent line."""
    size = np.round(rng.uniform([0.25] * 3, [0.45, 0.45, 0.5]), 2)
    if label in ROUND:
        size[:2] = round(float(np.sqrt(size[0] * size[1])), 2)
    radius = float(np.hypot(size[0], size[1]) / 2)
    movers = [t.path for t in things if t.path is not None]
    for _ in range(200):
        corners = [rng.uniform([radius + 0.1] * 2, room[:2] - radius - 0.1) for _ in range(int(rng.integers(2, 4)))]
        lengths = [float(np.hypot(*(b - a))) for a, b in pairwise(corners)]
        if min(lengths) < 0.9 or sum(lengths) > 4.5:
            continue
        at = np.linspace(0, sum(lengths), num_frames)
        knots = np.concatenate([[0.0], np.cumsum(lengths)])
        xy = np.stack([np.interp(at, knots, [c[k] for c in corners]) for k in range(2)], axis=1)
        dense = np.stack([np.interp(np.linspace(0, at[-1], 60), at, xy[:, k]) for k in range(2)], axis=1)
        clear = all(np.hypot(*(dense - t.center[:2]).T).min() > radius + t.radius + 0.05 for t in standing) and all(
            np.hypot(*(xy - other[:, :2]).T).min() > 0.8 for other in movers
        )
        if not clear:
            continue
        path = np.round(np.concatenate([xy, np.full((num_frames, 1), size[2] / 2)], axis=1), 3)
        mover = _Thing(label, _color(rng, label, things), path[0], size, 0.0, label, path=path)
        mover.parts = _parts(label, size)
        return mover
    return None


def _parts(label: str, size: F64) -> list[_Solid]:
    """What a thing is made of, within its box."""
    hx, hy, hz = size / 2

    def box(x: float, y: float, z: float, half_x: float, half_y: float, half_z: float) -> _Solid:
        return BOX, np.array([x, y, z]), np.array([half_x, half_y, half_z])

    def disc(z: float, share: float, half_z: float) -> _Solid:
        return CYLINDER, np.array([0.0, 0.0, z]), np.array([hx * share, hx * share, half_z])

    def legs(thick: float, z: float, half_z: float) -> list[_Solid]:
        return [box(sx * (hx - thick), sy * (hy - thick), z, thick, thick, half_z) for sx in (-1, 1) for sy in (-1, 1)]

    match label:
        case "table":
            return [box(0, 0, hz - 0.03, hx, hy, 0.03), *legs(0.035, -0.03, hz - 0.03)]
        case "desk":
            panel = box(0, hy - 0.02, 0.0, hx - 0.07, 0.02, hz - 0.06)
            return [box(0, 0, hz - 0.03, hx, hy, 0.03), *legs(0.035, -0.03, hz - 0.03), panel]
        case "bench":
            sides = [box(s * (hx - 0.03), 0, -0.03, 0.03, hy, hz - 0.03) for s in (-1, 1)]
            return [box(0, 0, hz - 0.03, hx, hy, 0.03), *sides]
        case "chair":
            back = box(0, hy - 0.03, hz / 2, hx, 0.03, hz / 2)
            return [box(0, 0, 0, hx, hy, 0.03), back, *legs(0.03, -hz / 2, hz / 2)]
        case "sofa":
            arms = [box(s * (hx - 0.07), 0, hz * 0.15, 0.07, hy, hz * 0.15) for s in (-1, 1)]
            return [box(0, 0, -hz / 2, hx, hy, hz / 2), box(0, hy - 0.08, hz / 2, hx, 0.08, hz / 2), *arms]
        case "cabinet":
            foot = min(0.12, hz / 2)
            return [box(0, 0, foot / 2, hx, hy, hz - foot / 2), box(0, 0, foot / 2 - hz, hx * 0.8, hy * 0.8, foot / 2)]
        case "crate":
            slats = [box(0, 0, hz * (k - 2) / 2.5, hx, hy, hz / 7) for k in (0, 1, 2, 3, 4)]
            slats[0], slats[4] = box(0, 0, hz / 7 - hz, hx, hy, hz / 7), box(0, 0, hz - hz / 7, hx, hy, hz / 7)
            return [box(0, 0, 0, hx * 0.88, hy * 0.88, hz * 0.95), *slats]
        case "trunk" | "parcel":
            lid = hz * 0.3
            return [box(0, 0, -lid / 2, hx * 0.9, hy * 0.9, hz - lid / 2), box(0, 0, hz - lid / 2, hx, hy, lid / 2)]
        case "bin":
            w = 0.015
            walls = [box(s * (hx - w), 0, 0, w, hy, hz) for s in (-1, 1)]
            walls += [box(0, s * (hy - w), 0, hx, w, hz) for s in (-1, 1)]
            return [box(0, 0, -hz + w, hx, hy, w), *walls]
        case "stool":
            return [disc(hz - 0.03, 1.0, 0.03), disc(-0.01, 0.25, hz - 0.04), disc(0.025 - hz, 0.9, 0.025)]
        case "vase":
            return [disc(-hz * 0.3, 1.0, hz * 0.7), disc(hz * 0.7, 0.5, hz * 0.3)]
        case "mug":
            return [
                disc(0.0, 0.7, hz),
                box(hx * 0.8, 0, 0, hx * 0.2, hx * 0.15, hz * 0.6),
                box(0, 0, -hz * 0.95, hx, hx * 0.4, hz * 0.05),
            ]
        case "robot":
            return [box(0, 0, -hz * 0.35, hx, hy, hz * 0.65), box(0, 0, hz * 0.65, hx * 0.5, hy * 0.5, hz * 0.35)]
        case "toy":
            return [box(0, 0, -hz / 2, hx, hy, hz / 2), disc(hz / 2, 0.6, hz / 2)]
        case _:
            return [disc(0.0, 1.0, hz)] if label in ROUND else [box(0, 0, 0, hx, hy, hz)]


def _camera_path(rng: np.random.Generator, room: F64, num_frames: int) -> list[F64]:
    """The camera walks along a wall, above the furniture, and pans across the room."""
    side, backwards = int(rng.integers(4)), bool(rng.integers(2))
    start, length = rng.uniform(0.15, 0.4), rng.uniform(0.3, 0.5)
    height, pitch = rng.uniform(1.45, 1.75), rng.uniform(0.25, 0.45)
    pan = rng.uniform(0.5, 1.1) * rng.choice([-1, 1])
    poses = []
    for i in range(num_frames):
        share = i / max(1, num_frames - 1)
        along = start + length * (1 - share if backwards else share)
        inset = 0.25 + 0.55 * share * (1 if side % 2 else -1) + (0.0 if side % 2 else 0.55)
        if side == 0:
            xy, inward = np.array([along * room[0], inset]), np.pi / 2
        elif side == 2:
            xy, inward = np.array([along * room[0], room[1] - inset]), -np.pi / 2
        elif side == 1:
            xy, inward = np.array([room[0] - inset, along * room[1]]), np.pi
        else:
            xy, inward = np.array([inset, along * room[1]]), 0.0
        heading = inward + pan * (share - 0.5) + 0.08 * np.sin(5 * share)
        eye = np.array([*xy, height + 0.03 * np.sin(7 * share)])
        ahead = np.array([np.cos(heading), np.sin(heading), -np.tan(pitch)])
        poses.append(look_at(np.round(eye, 4), np.round(eye, 4) + ahead))
    return poses


def _render(
    rng: np.random.Generator,
    room: F64,
    things: list[_Thing],
    poses: list[F64],
    intrinsics: F64,
    width: int,
    height: int,
) -> tuple[F32, I32, U8]:
    solids = [(number, thing, *part) for number, thing in enumerate(things, start=1) for part in thing.parts]
    kinds = np.array([solid[2] for solid in solids])
    halves = np.array([solid[4] for solid in solids])
    yaws = np.array([solid[1].yaw for solid in solids])
    colors = np.array([COLORS[solid[1].color] for solid in solids], np.float64)
    textures = np.array([hash_text(solid[1].label) % 4 for solid in solids])
    ids = np.array([solid[0] for solid in solids])
    offsets = np.array(
        [(yaw_matrix(solid[1].yaw) * solid[3]).sum(axis=1) for solid in solids]
    )  # no BLAS: the same on every CPU
    bounds = np.array([0.0, 0.0, 0.0, *room])
    warm = rng.uniform(0.85, 1.0, (3, 3))
    room_colors = np.array([[150, 112, 78], [188, 184, 170], [222, 222, 220]]) * warm
    images = []
    for frame, pose in enumerate(poses):
        places = np.array([solid[1].center if solid[1].path is None else solid[1].path[frame] for solid in solids])
        rotation, eye = np.ascontiguousarray(pose[:3, :3]), np.ascontiguousarray(pose[:3, 3])
        images.append(
            render(
                intrinsics,
                rotation,
                eye,
                kinds,
                places + offsets,
                halves,
                yaws,
                colors,
                textures,
                ids,
                bounds,
                room_colors,
                width,
                height,
            )
        )
    return np.stack([i[0] for i in images]), np.stack([i[1] for i in images]), np.stack([i[2] for i in images])


def hash_text(text: str) -> int:
    """A small number of a text, the same in every process."""
    value = 0
    for letter in text:
        value = (value * 31 + ord(letter)) % 1_000_003
    return value


def _object(number: int, thing: _Thing) -> SceneObject:
    return SceneObject(
        id=number,
        label=thing.label,
        phrase=f"{thing.color} {thing.label}",
        box=OrientedBox(
            center_xyz_m=thing.center.tolist(),
            size_xyz_m=thing.size.tolist(),
            world_from_box=yaw_matrix(thing.yaw).tolist(),
        ),
        moving=thing.path is not None,
    )


def _track(number: int, thing: _Thing, masks: I32) -> SceneTrack:
    """Where a mover is; xy_px is its visible pixel nearest to the middle of those visible."""
    assert thing.path is not None
    places: list[TrackPlace | None] = []
    for frame in range(len(masks)):
        ys, xs = np.nonzero(masks[frame] == number)
        xy = None
        if len(xs) >= 12:
            nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
            xy = [float(xs[nearest]) + 0.5, float(ys[nearest]) + 0.5]
        places.append(TrackPlace(xy_px=xy, center_xyz_m=thing.path[frame].tolist()))
    return SceneTrack(object_id=number, places=places)
