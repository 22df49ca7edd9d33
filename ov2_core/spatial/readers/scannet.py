"""ScanNet: SCENE/color, depth, pose, intrinsic (as its SensReader exports them), instance PNGs and the aggregation's labels.

Documented layout (github.com/ScanNet/ScanNet, README; not checked against a download): color/I.jpg, depth/I.png 16-bit in
millimetres at 640 x 480, pose/I.txt world_from_camera 4 x 4 (-inf where tracking was lost: such frames are left out),
intrinsic/intrinsic_depth.txt 4 x 4, instance-filt/I.png ids from 1, SCENE.aggregation.json with segGroups {id from 0, label}.
Frames are taken at 30 a second. World z is up.

ScanNet has no boxes; each object's is the upright box of least footprint around the points that the chosen frames show of it.
It is smaller than the object where no frame saw it whole. ScanNet++ exported into these folders (iPhone depth, rendered
instance PNGs) is read alike; its own layout is not (unverified).
"""

import os

import numpy as np

from ov2_core.errors import BadItemError
from ov2_core.spatial.geometry import transform, unproject
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import resize_nearest, spread, upright_box
from ov2_core.spatial.readers.plain import folders_with
from ov2_core.spatial.scene import F32, F64, I32, Scene, check_rotation, checked_scene
from ov2_core.spatial.scene_files import read_depth_mm, read_image16, read_json
from schemas.shard import QuarantineReason

NAME = "scannet"
MAX_FRAMES = 16
FPS = 30.0
MIN_POINTS = 60
OUTLIER_SHARE = 0.01
"""Of an object's points, left out at either end of each axis: depth bleeds over edges."""


def find(folder: str) -> list[str]:
    return folders_with(folder, "intrinsic/intrinsic_depth.txt")


def index_file(folder: str) -> str:
    return os.path.join(folder, f"{os.path.basename(folder.rstrip('/'))}.aggregation.json")


def read(folder: str) -> Scene:
    """Raises BadItemError."""
    name = os.path.basename(folder.rstrip("/"))
    matrix = _matrix(os.path.join(folder, "intrinsic", "intrinsic_depth.txt"), "bad_intrinsics", name)
    intrinsics = [float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]), float(matrix[1, 2])]
    numbers = sorted(int(f[:-4]) for f in os.listdir(os.path.join(folder, "depth")) if f[:-4].isdigit())
    if not numbers:
        raise BadItemError("missing_depth", f"scene {name}: depth holds no frame", stage="spatial")
    chosen = spread(numbers, MAX_FRAMES)
    frames, depths, masks = [], [], []
    for number in chosen:
        pose = _matrix(os.path.join(folder, "pose", f"{number}.txt"), "bad_pose", name)
        if np.isinf(pose).any():
            continue  # tracking was lost there
        check_rotation(pose, name, f"pose/{number}.txt")
        depth = read_depth_mm(os.path.join(folder, "depth", f"{number}.png"), scene_id=name)
        path = os.path.join(folder, "instance-filt", f"{number}.png")
        try:
            mask = read_image16(path)
        except OSError as error:
            raise BadItemError("malformed_scene", f"scene {name}: {path}: {error}", stage="spatial") from error
        depths.append(depth)
        masks.append(resize_nearest(mask, *depth.shape))
        frames.append(
            {
                "rgb": f"color/{number}.jpg",
                "time_seconds": round((number - chosen[0]) / FPS, 3),
                "intrinsics_px": intrinsics,
                "world_from_camera": pose.tolist(),
            }
        )
    if not frames:
        raise BadItemError("bad_pose", f"scene {name}: tracking was lost in all frames chosen", stage="spatial")
    depth_FHW, masks_FHW = np.stack(depths).astype(np.float32), np.stack(masks).astype(np.int32)
    height, width = depth_FHW.shape[1:]
    labels = {int(g["id"]) + 1: str(g["label"]) for g in read_json(index_file(folder))["segGroups"]}
    poses = [np.array(frame["world_from_camera"]) for frame in frames]
    objects = []
    for number, label in sorted(labels.items()):
        if (masks_FHW == number).any():
            points = object_points(depth_FHW, masks_FHW, number, np.array(intrinsics), poses)
            box = upright_box(_without_outliers(points)) if len(points) >= MIN_POINTS else None
            objects.append({"id": number, "label": label, "box": box})
    masks_FHW[~np.isin(masks_FHW, sorted(labels))] = 0
    record = {
        "id": name,
        "source": NAME,
        "kind": "rgbd",
        "width_px": width,
        "height_px": height,
        "frames": frames,
        "objects": objects,
    }
    return checked_scene(Scene(record=validated(record, name), depth_FHW=depth_FHW, masks_FHW=masks_FHW, folder=folder))


def object_points(
    depth_FHW: F32,
    masks_FHW: I32,
    number: int,
    intrinsics: F64,
    poses: list[F64],
) -> F64:
    """Points of the world of all pixels of an object."""
    parts = [np.zeros((0, 3))]
    for depth, mask, pose in zip(depth_FHW, masks_FHW, poses, strict=True):
        rows, columns = np.nonzero((mask == number) & (depth > 0))
        xy = np.stack([columns + 0.5, rows + 0.5], axis=1)
        parts.append(transform(pose, unproject(intrinsics, xy, depth[rows, columns])))
    return np.concatenate(parts)


def _without_outliers(points_N3: F64) -> F64:
    low, high = np.quantile(points_N3, [OUTLIER_SHARE, 1 - OUTLIER_SHARE], axis=0)
    kept = points_N3[((points_N3 >= low) & (points_N3 <= high)).all(axis=1)]
    return kept if len(kept) >= 8 else points_N3


def _matrix(path: str, reason: QuarantineReason, name: str) -> F64:
    try:
        matrix = np.loadtxt(path, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"expected 4 x 4 numbers, got {list(matrix.shape)}")
    except (OSError, ValueError) as error:
        raise BadItemError(reason, f"scene {name}: {path} cannot be read: {error}", stage="spatial") from error
    return matrix
