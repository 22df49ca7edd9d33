"""A loaded scene: its record beside its pixels, checked once, and what all task types ask of it, computed once.

Enters: a SceneRecord and arrays. Leaves: a Scene, or BadItemError with the reason. One scene is in memory at a time.
F frames, O objects (in the record's order), H x W pixels.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ov2_core.errors import BadItemError
from ov2_core.kernel import kernel
from ov2_core.spatial.geometry import box_corners, invert_rigid, project, transform
from schemas.shard import QuarantineReason
from schemas.spatial import SceneObject, SceneRecord

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

MIN_VISIBLE_SHARE = 0.003
"""Of the image's pixels: an object that shows fewer is not asked about."""
MIN_DEPTH_SHARE = 0.2
"""Of a frame's pixels whose depth must be known."""
SUPPORT_GAP_M = 0.04
_ROTATION_TOLERANCE = 1e-3
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene in memory. Made by `checked_scene`."""

    record: SceneRecord
    depth_FHW: F32 | None
    """Metres along the camera's z; 0 where unknown."""
    masks_FHW: I32 | None
    """Object ids; 0 where none."""
    rgb_FHW3: U8 | None = None
    """Only where the frames are no files yet."""
    folder: str | None = None
    """Of scene.json; relative paths of the record start here."""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def num_frames(self) -> int:
        return len(self.record.frames)

    @property
    def size_px(self) -> tuple[int, int]:
        """Width, height."""
        return self.record.width_px, self.record.height_px

    @property
    def has_geometry(self) -> bool:
        return self.record.kind == "rgbd"

    @cached_property
    def objects(self) -> dict[int, SceneObject]:
        return {thing.id: thing for thing in self.record.objects}

    @cached_property
    def intrinsics_F4(self) -> F64:
        return np.array([frame.intrinsics_px for frame in self.record.frames], np.float64)

    @cached_property
    def world_from_camera_F44(self) -> F64:
        return np.array([frame.world_from_camera for frame in self.record.frames], np.float64)

    @cached_property
    def camera_from_world_F44(self) -> F64:
        return np.stack([invert_rigid(matrix) for matrix in self.world_from_camera_F44])

    @cached_property
    def names(self) -> dict[int, str]:
        """Object id -> its name, for objects that a name tells from all others: the phrase, else the label."""
        labels = [thing.label for thing in self.record.objects]
        phrases = [thing.phrase for thing in self.record.objects]
        names = {}
        for thing in self.record.objects:
            if thing.phrase and phrases.count(thing.phrase) == 1 and thing.phrase not in labels:
                names[thing.id] = thing.phrase
            elif labels.count(thing.label) == 1:
                names[thing.id] = thing.label
        return names

    @cached_property
    def visible_px_FO(self) -> npt.NDArray[np.int64]:
        """Pixels of each object's mask in each frame."""
        ids = [thing.id for thing in self.record.objects]
        if self.masks_FHW is None or not ids:
            return np.zeros((self.num_frames, len(ids)), np.int64)
        return np.stack([np.bincount(mask.ravel(), minlength=max(ids) + 1)[ids] for mask in self.masks_FHW])

    @property
    def min_visible_px(self) -> int:
        return max(12, int(MIN_VISIBLE_SHARE * self.record.width_px * self.record.height_px))

    @cached_property
    def column(self) -> dict[int, int]:
        """Object id -> its place in arrays over objects."""
        return {thing.id: i for i, thing in enumerate(self.record.objects)}

    def visible(self, object_id: int, frame: int) -> bool:
        """It shows enough pixels to be asked about."""
        return object_id in self._visible[frame]

    @cached_property
    def _visible(self) -> list[list[int]]:
        well = self.visible_px_FO >= self.min_visible_px
        return [[thing.id for i, thing in enumerate(self.record.objects) if row[i]] for row in well.tolist()]

    def visible_ids(self, frame: int) -> list[int]:
        """Objects that a frame shows well enough, in the record's order."""
        return self._visible[frame]

    @cached_property
    def mask_stats(self) -> dict[tuple[int, int], tuple[tuple[int, int, int, int], float, F32]]:
        """(frame, object) of visible objects -> (box x1 y1 x2 y2 in pixels, half-open; mean x; sorted known depths)."""
        stats = {}
        assert self.masks_FHW is not None
        width = self.record.width_px
        for frame in range(self.num_frames):
            flat = self.masks_FHW[frame].ravel()
            places = np.flatnonzero(flat)
            order = stable_order(flat[places])
            places, ids = places[order], flat[places][order]
            cuts = np.flatnonzero(np.diff(ids)) + 1
            depth = None if self.depth_FHW is None else self.depth_FHW[frame].ravel()
            for part in np.split(places, cuts):
                if len(part) < self.min_visible_px:
                    continue
                ys, xs = np.divmod(part, width)
                depths = np.zeros(0, np.float32) if depth is None else np.sort(depth[part])
                depths = depths[np.searchsorted(depths, 1e-6) :]
                box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
                stats[frame, int(flat[part[0]])] = box, float(xs.mean() + 0.5), depths
        return stats

    @cached_property
    def _medians(self) -> dict[tuple[int, int], float]:
        return {}

    def median_depth(self, frame: int, object_id: int) -> float:
        """Of a visible object's pixels of known depth; NaN where none is."""
        key = frame, object_id
        if key not in self._medians:
            depths = self.mask_stats[key][2]
            self._medians[key] = float(np.median(depths)) if len(depths) else np.nan
        return self._medians[key]

    @cached_property
    def _farthest(self) -> dict[int, F32]:
        return {}

    def farthest(self, frame: int) -> F32:
        """[H, W]: the greatest depth among the 5 x 5 pixels around each; infinite where one is unknown."""
        assert self.depth_FHW is not None
        if frame not in self._farthest:
            depth = np.where(self.depth_FHW[frame] > 0, self.depth_FHW[frame], np.inf)
            self._farthest[frame] = extent(depth.astype(np.float32))[1]
        return self._farthest[frame]

    @cached_property
    def corners_O83(self) -> F64:
        """Corners of the boxes in the world; NaN where an object has none."""
        corners = np.full((len(self.record.objects), 8, 3), np.nan)
        for i, thing in enumerate(self.record.objects):
            if thing.box is not None:
                corners[i] = box_corners(thing.box.center_xyz_m, thing.box.size_xyz_m, thing.box.world_from_box)
        return corners

    def center(self, object_id: int) -> F64:
        """Centre of its box in the world."""
        box = self.objects[object_id].box
        assert box is not None, f"object {object_id} of {self.id} has no box"
        return np.array(box.center_xyz_m)

    @cached_property
    def in_camera_FO3(self) -> F64:
        """Centres of the boxes in each camera's frame; NaN where there is no box."""
        centers = np.nanmean(self.corners_O83, axis=1) if self.record.objects else np.zeros((0, 3))
        return np.stack([transform(matrix, centers) for matrix in self.camera_from_world_F44])

    @cached_property
    def supports(self) -> dict[int, tuple[int, str]]:
        """Object id -> (what carries it, "on" or "inside"); objects that stand on the floor are left out."""
        found: dict[int, tuple[int, str]] = {}
        static = [thing for thing in self.record.objects if thing.box is not None and not thing.moving]
        low = {t.id: self.corners_O83[self.column[t.id]].min(axis=0) for t in static}
        high = {t.id: self.corners_O83[self.column[t.id]].max(axis=0) for t in static}
        for thing in static:
            center = self.center(thing.id)
            for other in static:
                if other.id == thing.id or not self._over(center, other):
                    continue
                if abs(low[thing.id][2] - high[other.id][2]) <= SUPPORT_GAP_M:
                    found[thing.id] = other.id, "on"
                elif (low[thing.id] >= low[other.id] - 0.01).all() and (high[thing.id] <= high[other.id] + 0.01).all():
                    found[thing.id] = other.id, "inside"
        return found

    def _over(self, point_m: F64, other: SceneObject) -> bool:
        assert other.box is not None
        local = np.asarray(other.box.world_from_box).T @ (point_m - np.asarray(other.box.center_xyz_m))
        return bool((np.abs(local[:2]) <= np.asarray(other.box.size_xyz_m)[:2] / 2).all())

    @cached_property
    def kind_of(self) -> dict[int, str]:
        """Object id -> "standing", "carried", "container" or "moving", for objects with boxes.

        Things are compared within one of these alone: a mug is smaller than a table and stands on it by name, not by sight.
        """
        containers = {carrier for carrier, how in self.supports.values() if how == "inside"}
        kinds = {}
        for thing in self.record.objects:
            if thing.box is None:
                continue
            if thing.moving:
                kinds[thing.id] = "moving"
            elif thing.id in self.supports:
                kinds[thing.id] = "carried"
            else:
                kinds[thing.id] = "container" if thing.id in containers else "standing"
        return kinds

    @cached_property
    def standing(self) -> list[int]:
        """Named objects of kind standing."""
        return [number for number, kind in self.kind_of.items() if kind == "standing" and number in self.names]

    @cached_property
    def seen(self) -> frozenset[int]:
        """Objects that some frame shows well enough."""
        return frozenset(number for frame in range(self.num_frames) for number in self.visible_ids(frame))

    @cached_property
    def _interiors(self) -> dict[int, dict[int, npt.NDArray[np.int64]]]:
        return {}

    def interior(self, frame: int, object_id: int) -> npt.NDArray[np.int64]:
        """Flat places of pixels around which 5 x 5 show one object (0: the room) at known depths without a step."""
        assert self.masks_FHW is not None
        if frame not in self._interiors:
            mask = self.masks_FHW[frame]
            least, most = extent(mask)
            good = np.asarray(least == most)
            if self.depth_FHW is not None:
                depth = self.depth_FHW[frame]
                low, high = extent(depth)
                good &= (low > 0) & (high - low <= 0.03 + 0.03 * high)
            good[:6], good[-6:], good[:, :6], good[:, -6:] = False, False, False, False
            places = np.flatnonzero(good)
            ids = mask.ravel()[places]
            order = stable_order(ids)
            places, ids = places[order].astype(np.int64), ids[order]
            cuts = np.flatnonzero(np.diff(ids)) + 1
            parts = np.split(places, cuts)
            self._interiors[frame] = {int(mask.ravel()[part[0]]): part for part in parts if len(part)}
        return self._interiors[frame].get(object_id, _NONE)

    def project_world(self, frame: int, points_N3: npt.ArrayLike) -> tuple[F64, F64]:
        """(pixels [N, 2], depths [N]) of points of the world; NaN pixels behind the camera."""
        points = transform(self.camera_from_world_F44[frame], points_N3)
        return project(self.intrinsics_F4[frame], points), points[..., 2]

    def inside_image(self, xy_px: npt.ArrayLike, *, border_share: float = 0.0) -> npt.NDArray[np.bool_]:
        """Whether pixels lie in the image, off its border by a share of its size."""
        xy, size = np.asarray(xy_px), np.asarray(self.size_px)
        with np.errstate(invalid="ignore"):
            return np.asarray(((xy >= border_share * size) & (xy < (1 - border_share) * size)).all(axis=-1))

    def track_centers(self, object_id: int) -> list[F64 | None]:
        """Centre of a tracked object in the world, frame by frame."""
        for track in self.record.tracks:
            if track.object_id == object_id:
                return [
                    None if place is None or place.center_xyz_m is None else np.array(place.center_xyz_m)
                    for place in track.places
                ]
        return [None] * self.num_frames


@kernel()
def extent(image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Least and greatest value [H, W] of the 5 x 5 pixels around each; the border keeps what it sees."""
    height, width = image.shape
    low_rows, high_rows = image.copy(), image.copy()
    for row in range(height):
        for other in range(max(0, row - 2), min(height, row + 3)):
            for column in range(width):
                value = image[other, column]
                if value < low_rows[row, column]:
                    low_rows[row, column] = value
                if value > high_rows[row, column]:
                    high_rows[row, column] = value
    lows, highs = low_rows.copy(), high_rows.copy()
    for row in range(height):
        for step in (-2, -1, 1, 2):
            for column in range(max(0, -step), min(width, width - step)):
                low, high = low_rows[row, column + step], high_rows[row, column + step]
                if low < lows[row, column]:
                    lows[row, column] = low
                if high > highs[row, column]:
                    highs[row, column] = high
    return lows, highs


def stable_order(ids: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Stable argsort of ids >= 0; of 16 bits it counts digits, which is several times faster than comparing."""
    small = len(ids) == 0 or int(ids.max()) < 1 << 16
    return np.argsort(ids.astype(np.uint16) if small else ids, kind="stable")


def checked_scene(scene: Scene) -> Scene:
    """The scene itself, if its geometry can be trusted.

    Raises:
        BadItemError: bad_pose, bad_intrinsics, missing_depth, bad_boxes or malformed_scene; the message names frame or object.
    """
    record = scene.record
    frames, ids = record.frames, [thing.id for thing in record.objects]
    if len(set(ids)) != len(ids):
        raise _bad("malformed_scene", scene.id, f"object ids are repeated: {sorted(ids)}")
    if any(b.time_seconds <= a.time_seconds for a, b in pairwise(frames)):
        raise _bad("malformed_scene", scene.id, "time_seconds must ascend over the frames")
    shape = (len(frames), record.height_px, record.width_px)
    for name, array in (("depth", scene.depth_FHW), ("masks", scene.masks_FHW)):
        if array is not None and array.shape != shape:
            raise _bad("malformed_scene", scene.id, f"{name} are {list(array.shape)}, the record says {list(shape)}")
    for track in record.tracks:
        if len(track.places) != len(frames) or track.object_id not in ids:
            raise _bad(
                "malformed_scene", scene.id, f"track {track.object_id}: needs {len(frames)} places and an object"
            )
    if record.kind == "tracks" and not record.tracks:
        raise _bad("malformed_scene", scene.id, "a scene of kind tracks has no tracks")
    if record.kind != "tracks" and scene.masks_FHW is None:
        raise _bad("malformed_scene", scene.id, f"a scene of kind {record.kind} has no masks")
    if scene.masks_FHW is not None:
        strangers = set(np.unique(scene.masks_FHW).tolist()) - {0, *ids}
        if strangers:
            raise _bad("malformed_scene", scene.id, f"masks hold ids of no object: {sorted(strangers)[:5]}")
    if record.kind == "rgbd":
        _check_geometry(scene)
    return scene


def scene_error(error: ValidationError, *, scene_id: str) -> BadItemError:
    """What a record that does not validate is quarantined as."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = [str(part) for part in first["loc"]]
    reason: QuarantineReason = "malformed_scene"
    if "objects" in place and "box" in place:
        reason = "bad_boxes"
    elif "world_from_camera" in place:
        reason = "bad_pose"
    elif "intrinsics_px" in place:
        reason = "bad_intrinsics"
    return _bad(reason, scene_id, f"{'.'.join(place)}: {first['msg']}")


def _check_geometry(scene: Scene) -> None:
    for i, frame in enumerate(scene.record.frames):
        if frame.world_from_camera is None:
            raise _bad("bad_pose", scene.id, f"frame {i} has no world_from_camera")
        if frame.intrinsics_px is None:
            raise _bad("bad_intrinsics", scene.id, f"frame {i} has no intrinsics_px")
        fx, fy, cx, cy = frame.intrinsics_px
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        if not np.isfinite(matrix).all() or min(fx, fy) <= 0 or abs(np.linalg.det(matrix)) < 1e-6:
            raise _bad("bad_intrinsics", scene.id, f"frame {i}: fx, fy must be > 0, got {frame.intrinsics_px}")
        check_rotation(scene.world_from_camera_F44[i], scene.id, f"frame {i}: world_from_camera")
        depth = None if scene.depth_FHW is None else scene.depth_FHW[i]
        if depth is None:
            raise _bad("missing_depth", scene.id, "it has no depth")
        if not np.isfinite(depth).all() or (depth < 0).any():
            raise _bad("missing_depth", scene.id, f"frame {i}: depth is NaN, infinite or negative; write 0 for unknown")
        known = float((depth > 0).mean())
        if known < MIN_DEPTH_SHARE:
            raise _bad("missing_depth", scene.id, f"frame {i}: depth is known for {known:.0%} of its pixels")
    for thing in scene.record.objects:
        if thing.box is None:
            continue
        numbers = [
            *thing.box.center_xyz_m,
            *thing.box.size_xyz_m,
            *(x for row in thing.box.world_from_box for x in row),
        ]
        if not np.isfinite(numbers).all() or min(thing.box.size_xyz_m) <= 0:
            raise _bad("bad_boxes", scene.id, f"object {thing.id}: its box is not finite, or an edge is not > 0")
        if not _is_rotation(np.array(thing.box.world_from_box)):
            raise _bad("bad_boxes", scene.id, f"object {thing.id}: world_from_box is no rotation")


def check_rotation(matrix_44: F64, scene_id: str, name: str) -> None:
    """Raises BadItemError (bad_pose) unless a matrix [4, 4] is a rotation and a translation."""
    if not np.isfinite(matrix_44).all() or not np.allclose(matrix_44[3], [0, 0, 0, 1]):
        raise _bad("bad_pose", scene_id, f"{name} is not finite, or its last row is not 0 0 0 1")
    if not _is_rotation(matrix_44[:3, :3]):
        raise _bad("bad_pose", scene_id, f"{name} is no rotation (a mirror, a scale or a shear)")


def _is_rotation(matrix_33: F64) -> bool:
    return bool(
        np.abs(matrix_33 @ matrix_33.T - np.eye(3)).max() < _ROTATION_TOLERANCE and np.linalg.det(matrix_33) > 0
    )


def _bad(reason: QuarantineReason, scene_id: str, message: str) -> BadItemError:
    return BadItemError(reason, f"scene {scene_id}: {message}", stage="spatial")
