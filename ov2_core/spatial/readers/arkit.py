"""ARKitScenes as released: ID/ID_3dod_annotation.json, and lowres_wide, lowres_depth, lowres_wide_intrinsics and lowres_wide.traj
in ID/ID_frames (the 3dod set) or in ID itself (the raw set).

Documented layout (github.com/apple/ARKitScenes, DATA.md and threedod; not checked against a download): PNGs named ID_TIME.png
with TIME in seconds; depth 16-bit in millimetres; .pincam holds "width height fx fy cx cy", its TIME up to a millisecond
beside the picture's; the trajectory has a line a pose, "time rx ry rz tx ty tz": axis-angle and translation of the camera from the
world, in metres; annotations carry `obbAligned` with centroid, axesLengths and normalizedAxes, an axis a row. World z is up there.
Poses are taken at the nearest time, within 0.1 s.

There are no instance masks: pixels are given to a box when their point lies in it, the smaller box first.
"""

import json
import os
import re

import numpy as np
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.boxes import box_record, masks_of_boxes, spread
from ov2_core.spatial.scene import F64, Scene, scene_error
from ov2_core.spatial.scene_files import read_depth_mm, read_json
from schemas.spatial import SceneRecord

NAME = "arkitscenes"
MAX_FRAMES = 16
MAX_POSE_GAP_SECONDS = 0.1
_TIME = re.compile(r"_(\d+\.\d+)\.png$")


def find(folder: str) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and _frames_folder(entry.path) is not None
    )


def index_file(folder: str) -> str:
    return os.path.join(folder, f"{os.path.basename(folder.rstrip('/'))}_3dod_annotation.json")


def read(folder: str) -> Scene:
    """Raises BadItemError."""
    name = os.path.basename(folder.rstrip("/"))
    inner = _frames_folder(folder)
    if inner is None:
        raise BadItemError("bad_pose", f"scene {name}: {folder} holds no lowres_wide.traj", stage="spatial")
    annotation = read_json(index_file(folder))
    folder = os.path.join(folder, inner)
    trajectory = _trajectory(os.path.join(folder, "lowres_wide.traj"), name)
    shown = os.path.join(folder, "lowres_wide")
    images = sorted(f for f in (os.listdir(shown) if os.path.isdir(shown) else []) if _TIME.search(f))
    if not images:
        raise BadItemError("malformed_scene", f"scene {name}: lowres_wide holds no PNG", stage="spatial")
    chosen = spread(images, MAX_FRAMES)
    began = _seconds(chosen[0])
    frames, depths = [], []
    for image in chosen:
        time = _seconds(image)
        nearest = int(np.argmin(np.abs(trajectory[:, 0] - time)))
        if abs(trajectory[nearest, 0] - time) > MAX_POSE_GAP_SECONDS:
            raise BadItemError("bad_pose", f"scene {name}: no pose within 0.1 s of {image}", stage="spatial")
        depth_path = os.path.join(folder, "lowres_depth", image)
        if not os.path.exists(depth_path):
            raise BadItemError("missing_depth", f"scene {name}: {depth_path} is missing", stage="spatial")
        depths.append(read_depth_mm(depth_path, scene_id=name))
        frames.append(
            {
                "rgb": f"lowres_wide/{image}",
                "time_seconds": round(time - began, 3),
                "intrinsics_px": _intrinsics(folder, name, image),
                "world_from_camera": pose_from_axis_angle(trajectory[nearest, 1:4], trajectory[nearest, 4:7]).tolist(),
            }
        )
    with Image.open(os.path.join(folder, "lowres_wide", chosen[0])) as first:
        width, height = first.size
    record = {
        "id": name,
        "source": NAME,
        "kind": "rgbd",
        "width_px": width,
        "height_px": height,
        "frames": frames,
        "objects": _objects(annotation),
    }
    return masks_of_boxes(validated(record, name), np.stack(depths), folder)


def _frames_folder(folder: str) -> str | None:
    """Where the frames lie in a scene: "ID_frames" or "", None where it is none of ours."""
    inner = f"{os.path.basename(folder.rstrip('/'))}_frames"
    return next((rel for rel in (inner, "") if os.path.exists(os.path.join(folder, rel, "lowres_wide.traj"))), None)


def validated(record: dict[str, object], name: str) -> SceneRecord:
    """The record, or why not as BadItemError."""
    from pydantic import ValidationError

    try:
        return SceneRecord.model_validate_json(json.dumps(record))
    except ValidationError as error:
        raise scene_error(error, scene_id=name) from error


def pose_from_axis_angle(rotation: F64, translation_m: F64) -> F64:
    """world_from_camera of the trajectory's camera_from_world (Rodrigues)."""
    angle = float(np.linalg.norm(rotation))
    x, y, z = rotation / angle if angle > 1e-12 else np.array([0.0, 0.0, 1.0])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn.T, -turn.T @ translation_m
    return pose


def _trajectory(path: str, name: str) -> F64:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read().split("\n")
        if not any(map(str.strip, text)):
            raise ValueError("it is empty")
        lines = np.atleast_2d(np.loadtxt(text, dtype=np.float64))
    except (OSError, ValueError) as error:
        raise BadItemError("bad_pose", f"scene {name}: {path} cannot be read: {error}", stage="spatial") from error
    if lines.shape[1] != 7 or not len(lines):
        raise BadItemError("bad_pose", f"scene {name}: {path}: expected 7 numbers a line", stage="spatial")
    return lines


def _intrinsics(folder: str, name: str, image: str) -> list[float]:
    stem = image.rpartition("_")[0]
    times = [image.rpartition("_")[2].removesuffix(".png"), *(f"{_seconds(image) + d:.3f}" for d in (-0.001, 0.001))]
    paths = [os.path.join(folder, "lowres_wide_intrinsics", f"{stem}_{time}.pincam") for time in times]
    path = next((path for path in paths if os.path.exists(path)), paths[0])
    try:
        with open(path, encoding="utf-8") as file:
            numbers = [float(word) for word in file.read().split()]
        _, _, fx, fy, cx, cy = numbers
    except (OSError, ValueError) as error:
        raise BadItemError(
            "bad_intrinsics", f"scene {name}: {path} cannot be read: {error}", stage="spatial"
        ) from error
    return [fx, fy, cx, cy]


def _objects(annotation: dict[str, object]) -> list[dict[str, object]]:
    rows = annotation.get("data")
    objects = []
    for number, row in enumerate(rows if isinstance(rows, list) else [], start=1):
        box = row["segments"]["obbAligned"]
        axes = np.array(box["normalizedAxes"], np.float64).reshape(3, 3)  # one axis a row
        objects.append(
            {
                "id": number,
                "label": str(row["label"]).replace("_", " "),
                "box": box_record(box["centroid"], box["axesLengths"], axes.T),
            }
        )
    return objects


def _seconds(image: str) -> float:
    found = _TIME.search(image)
    assert found is not None
    return float(found[1])
