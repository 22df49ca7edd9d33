"""What the checker trusts: pixels, depth, poses, masks; boxes and tracks only as far as points of the surface bear them out.

Enters: a loaded scene. Leaves: points of the world by its own back-projection (homogeneous coordinates and matrix inverses, none of
geometry.py), corners of boxes by its own construction, and whether a box holds the points of its object. Computed once a scene.
"""

import re
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.spatial.scene import Scene, stable_order

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
BOX_SLACK_M = 0.04
BOX_SHARE = 0.9
"""Of an object's surface points that its box, grown by the slack, must hold."""
_SIGNS = np.array(list(product((-1.0, 1.0), repeat=3)))
MAX_POINTS = 240
"""Of an object in a frame."""


@kernel()
def nearest(points_3N: F64, point: F64) -> tuple[int, float]:
    """(place, squared distance) of the point nearest to another, of all; -1 where all are NaN. First of equals."""
    best, least = -1, np.inf
    for k in range(points_3N.shape[1]):
        x, y, z = points_3N[0, k] - point[0], points_3N[1, k] - point[1], points_3N[2, k] - point[2]
        squared = x * x + y * y + z * z
        if squared < least:  # false for NaN
            best, least = k, squared
    return best, least


@kernel()
def stands_nearer(places_N2: F64, cloud: F64, gap: float) -> bool:
    """Whether some point of a cloud [M, 2 or more] lies nearer than the gap to one of some places, seen from above."""
    for k in range(len(cloud)):
        for i in range(len(places_N2)):
            x, y = places_N2[i, 0] - cloud[k, 0], places_N2[i, 1] - cloud[k, 1]
            if np.sqrt(x * x + y * y) < gap:
                return True
    return False


@kernel()
def _world_3N(depth_HW: F32, eye: F64, ray_33: F64) -> F64:
    """[3, H x W]: eye + depth x (ray through each pixel's centre); NaN where the depth is not above 0."""
    height, width = depth_HW.shape
    world = np.empty((3, height * width))
    for row in range(height):
        for k in range(3):
            down = ray_33[k, 1] * (row + 0.5) + ray_33[k, 2]
            for column in range(width):
                depth = np.float64(depth_HW[row, column])
                if depth > 0:
                    world[k, row * width + column] = eye[k] + depth * (ray_33[k, 0] * (column + 0.5) + down)
                else:
                    world[k, row * width + column] = np.nan
    return world


class UnprovableError(ValueError):
    """The answer is wrong, or cannot be proven; the message is the reason it is counted under."""


class Evidence:
    """A scene as the checker sees it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.record = scene.record
        self._world: dict[int, F64] = {}
        self._points: dict[tuple[int, int], F64] = {}
        self._depths: dict[tuple[int, int], F64] = {}
        self._borne_out: dict[int, bool] = {}
        self.named: dict[tuple[str, str], list[int]] = {}
        """Texts that were read for names of objects before, and what they name."""

    @cached_property
    def inverse_intrinsics_F33(self) -> F64:
        matrices = []
        for frame in self.record.frames:
            assert frame.intrinsics_px is not None
            fx, fy, cx, cy = frame.intrinsics_px
            matrices.append(np.linalg.inv(np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])))
        return np.stack(matrices)

    @cached_property
    def pose_F44(self) -> F64:
        return np.array([frame.world_from_camera for frame in self.record.frames], np.float64)

    def eye(self, frame: int) -> F64:
        """The camera's place."""
        return np.asarray(self.pose_F44[frame] @ np.array([0.0, 0.0, 0.0, 1.0]))[:3]

    def axis(self, frame: int, which: int) -> F64:
        """The camera's x (right), y (down) or z (forward) in the world."""
        return np.asarray(self.pose_F44[frame, :3, which])

    def world_at(self, frame: int, rows: npt.ArrayLike, columns: npt.ArrayLike) -> F64:
        """Points [N, 3] of the world behind pixels; NaN where the depth is unknown."""
        assert self.scene.depth_FHW is not None
        rows, columns = np.atleast_1d(np.asarray(rows)), np.atleast_1d(np.asarray(columns))
        depth = self.scene.depth_FHW[frame, rows, columns].astype(np.float64)
        depth[depth <= 0] = np.nan
        return self.world_from(frame, columns + 0.5, rows + 0.5, depth)

    def world_from(self, frame: int, x_px: npt.ArrayLike, y_px: npt.ArrayLike, depth_m: npt.ArrayLike) -> F64:
        """Points [N, 3] of the world at places of the image and depths."""
        x, y, depth = (np.atleast_1d(np.asarray(v, np.float64)) for v in (x_px, y_px, depth_m))
        rays = self.inverse_intrinsics_F33[frame] @ np.stack([x, y, np.ones_like(x)])
        homogeneous = np.concatenate([rays * depth, np.ones((1, len(x)))])
        return np.asarray((self.pose_F44[frame] @ homogeneous)[:3].T)

    def world(self, frame: int) -> F64:
        """All points of a frame, [3, H x W]; NaN where the depth is unknown."""
        if frame not in self._world:
            assert self.scene.depth_FHW is not None
            ray = self.pose_F44[frame, :3, :3] @ self.inverse_intrinsics_F33[frame]
            self._world[frame] = _world_3N(self.scene.depth_FHW[frame], self.eye(frame), ray)
        return self._world[frame]

    @cached_property
    def cloud(self) -> F64:
        """Points [N, 3] of all frames, every seventeenth pixel, without those of unknown depth."""
        num = self.record.width_px * self.record.height_px
        rows, columns = np.divmod(np.arange(0, num, 17), self.record.width_px)
        points = np.concatenate([self.world_at(frame, rows, columns) for frame in range(len(self.record.frames))])
        return np.asarray(points[np.isfinite(points[:, 0])])

    def nearest_pixel(self, frame: int, point: F64) -> tuple[int, int, float]:
        """(row, column) of the pixel whose point lies nearest to a point of the world, and how far it is: a search over all."""
        best, squared = nearest(self.world(frame), point)
        if best < 0:
            raise UnprovableError("a frame has no depth")
        row, column = divmod(best, self.record.width_px)
        return row, column, float(np.sqrt(squared))

    @cached_property
    def _pixels(self) -> list[dict[int, npt.NDArray[np.int64]]]:
        """Of each frame: object id -> flat places of its mask."""
        assert self.scene.masks_FHW is not None
        frames = []
        for mask in self.scene.masks_FHW:
            flat = mask.ravel()
            order = stable_order(flat)
            ids, starts = np.unique(flat[order], return_index=True)
            parts = np.split(order, starts[1:])
            frames.append({int(number): part for number, part in zip(ids, parts, strict=True) if number})
        return frames

    def pixels(self, frame: int, object_id: int) -> npt.NDArray[np.int64]:
        """Flat places of an object's mask."""
        return self._pixels[frame].get(object_id, np.zeros(0, np.int64))

    def points(self, frame: int, object_id: int) -> F64:
        """Surface points of an object as one frame sees it: at most MAX_POINTS, evenly drawn."""
        key = frame, object_id
        if key not in self._points:
            places = self.pixels(frame, object_id)
            places = places[:: max(1, len(places) // MAX_POINTS)]
            rows, columns = np.divmod(places, self.record.width_px)
            points = self.world_at(frame, rows, columns)
            self._points[key] = points[np.isfinite(points[:, 0])]
        return self._points[key]

    def depths(self, frame: int, object_id: int) -> F64:
        """Depths of those: their share along the camera's forward axis."""
        key = frame, object_id
        if key not in self._depths:
            self._depths[key] = (self.points(frame, object_id) - self.eye(frame)) @ self.axis(frame, 2)
        return self._depths[key]

    def corners(self, object_id: int, *, center: F64 | None = None) -> F64:
        """Corners [8, 3] of its box; with another centre, of the box moved there."""
        box = self.scene.objects[object_id].box
        if box is None:
            raise UnprovableError("an object has no box")
        axes = np.array(box.world_from_box)
        middle = np.array(box.center_xyz_m) if center is None else center
        half_edges = axes * (np.array(box.size_xyz_m) / 2)  # column k: half of edge k
        return np.asarray(middle + _SIGNS @ half_edges.T)

    def holds(self, corners_83: F64, points_N3: F64, *, slack: float = BOX_SLACK_M) -> npt.NDArray[np.bool_]:
        """Which points lie in the box of these corners, grown by the slack: by the slabs between opposite faces."""
        origin = corners_83[0]
        inside = np.ones(len(points_N3), np.bool_)
        for k in (4, 2, 1):  # product() counts the last axis fastest
            edge = corners_83[k] - origin
            length = np.sqrt(edge @ edge)
            along = (points_N3 - origin) @ (edge / length)
            inside &= (along >= -slack) & (along <= length + slack)
        return inside

    def middle(self, object_id: int) -> F64:
        """Centre of a box that the object's surface bears out.

        Raises:
            UnprovableError: it has no box, nobody sees it, or its points lie elsewhere.
        """
        if object_id not in self._borne_out:
            seen = [self.points(frame, object_id) for frame in range(len(self.record.frames))]
            points = np.concatenate(seen)
            enough = len(points) >= 12
            moving = self.scene.objects[object_id].moving
            corners = self.corners(object_id)
            self._borne_out[object_id] = enough and not moving and bool(self.holds(corners, points).mean() >= BOX_SHARE)
            self._middles[object_id] = corners.mean(axis=0)
        if not self._borne_out[object_id]:
            raise UnprovableError("a box is not borne out by depth")
        return self._middles[object_id]

    @cached_property
    def _middles(self) -> dict[int, F64]:
        return {}

    def middle_at(self, object_id: int, frame: int) -> F64:
        """Centre of a tracked object's box in one frame, if the points seen there bear it out.

        Raises:
            UnprovableError: they do not.
        """
        for track in self.record.tracks:
            place = track.places[frame] if track.object_id == object_id else None
            if place is None or place.center_xyz_m is None:
                continue
            corners = self.corners(object_id, center=np.array(place.center_xyz_m))
            points = self.points(frame, object_id)
            if len(points) >= 12 and self.holds(corners, points).mean() >= BOX_SHARE:
                return np.asarray(corners.mean(axis=0))
        raise UnprovableError("a track is not borne out by depth")

    @cached_property
    def walls(self) -> tuple[bool, int]:
        """(whether points lie beyond a wall of the annotated outline, how many walls show points)."""
        assert self.record.room is not None
        outline, points = np.array(self.record.room.floor_polygon_xy_m), self.cloud
        beyond, seen = False, 0
        for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            along = (b - a) / np.sqrt((b - a) @ (b - a))
            normal = np.array([-along[1], along[0]])
            off = (points[:, :2] - a) @ normal
            beyond |= bool(min((off < -0.05).mean(), (off > 0.05).mean()) > 0.002)
            seen += int((np.abs(off) < 0.03).sum() >= 20)
        return beyond, seen

    @cached_property
    def object_points(self) -> F64:
        """Surface points [N, 3] of all objects in all frames."""
        parts = [self.points(f, n) for f in range(len(self.record.frames)) for n in self._pixels[f]]
        return np.concatenate([np.zeros((0, 3)), *parts])

    @cached_property
    def footprints(self) -> F64:
        """Places [N, 2] on the floor covered by the boxes of objects that do not move: a grid over each."""
        parts = [np.zeros((0, 2))]
        shares = np.array(list(product(np.linspace(0, 1, 9), repeat=2)))
        for thing in self.record.objects:
            if thing.box is not None and not thing.moving:
                corners = self.corners(thing.id)
                edges = np.stack([corners[4] - corners[0], corners[2] - corners[0]])
                parts.append((corners[0] + shares @ edges)[:, :2])
        return np.concatenate(parts)

    @cached_property
    def name_pattern(self) -> tuple[re.Pattern[str], dict[str, list[int]]]:
        """All labels and phrases of the scene, longest first, and the objects that each fits."""
        fits: dict[str, list[int]] = {}
        for thing in self.record.objects:
            for name in {thing.label, thing.phrase} - {None}:
                fits.setdefault(str(name), []).append(thing.id)
        names = sorted(fits, key=len, reverse=True)
        return re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b" if names else r"(?!)"), fits
