"""Hypersim: SCENE/_detail and SCENE/images, exported to .npy.

Documented layout (github.com/apple/ml-hypersim, README; not checked against a download):
_detail/CAM/camera_keyframe_positions.hdf5 [F, 3] and camera_keyframe_orientations.hdf5 [F, 3, 3] (of keyframes, whose frame
numbers stand in camera_keyframe_frame_indices; world from camera, the camera looks along -z with y up), in asset units;
_detail/metadata_scene.csv holds meters_per_asset_unit; images/scene_CAM_final_preview/frame.F.color.jpg (or tonemap),
images/scene_CAM_geometry_hdf5/frame.F.depth_meters.hdf5 (length of the ray, not z) and frame.F.semantic_instance.hdf5; boxes
in _detail/mesh/metadata_semantic_instance_bounding_box_object_aligned_2d_{positions,extents,orientations}.hdf5. World z is
up.

HDF5 needs a library that is no dependency here: convert each FILE.hdf5 to FILE.npy beside it (its one dataset). Labels come
from _detail/mesh/labels.json {"instance": "label"}, ours, for Hypersim numbers them (NYU40). The focal length is the
documented default, a horizontal field of view of 60 degrees, unless _detail/CAM/intrinsics.json {"fx", "fy", "cx", "cy"} says
otherwise.
"""

import os
import re

import numpy as np
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import spread
from ov2_core.spatial.readers.plain import folders_with
from ov2_core.spatial.scene import F32, F64, Scene, checked_scene
from ov2_core.spatial.scene_files import read_json
from schemas.shard import QuarantineReason

NAME = "hypersim"
MAX_FRAMES = 16
CAMERA = "cam_00"
FOV_X_RADIANS = np.pi / 3
FLIP = np.diag([1.0, -1.0, -1.0])
"""Their camera has y up and looks along -z; ours has y down and looks along z."""
_BOXES = "metadata_semantic_instance_bounding_box_object_aligned_2d"
_FRAME = re.compile(r"frame\.(\d+)\.(color|tonemap)\.jpg")


def find(folder: str) -> list[str]:
    return folders_with(folder, "_detail/metadata_scene.csv")


def index_file(folder: str) -> str:
    return os.path.join(folder, "_detail", "metadata_scene.csv")


def read(folder: str) -> Scene:
    """Raises BadItemError."""
    name = os.path.basename(folder.rstrip("/"))
    scale = _metres_per_unit(folder, name)
    places = _npy(folder, name, f"_detail/{CAMERA}/camera_keyframe_positions.npy", "bad_pose") * scale
    turns = _npy(folder, name, f"_detail/{CAMERA}/camera_keyframe_orientations.npy", "bad_pose")
    shown = os.path.join(folder, "images", f"scene_{CAMERA}_final_preview")
    images = {int(m[1]): m[0] for m in map(_FRAME.fullmatch, sorted(os.listdir(shown), reverse=True)) if m}
    keyframes = {number: k for k, number in enumerate(_keyframes(folder, len(places)))}
    chosen = spread(sorted(images.keys() & keyframes.keys()), MAX_FRAMES)
    if not chosen:
        raise BadItemError("malformed_scene", f"scene {name}: {shown} holds no frame.N.color.jpg", stage="spatial")
    with Image.open(os.path.join(shown, images[chosen[0]])) as image:
        width, height = image.size
    intrinsics = _intrinsics(folder, width, height)
    frames, depths, masks = [], [], []
    for k, number in enumerate(chosen):
        at = f"images/scene_{CAMERA}_geometry_hdf5/frame.{number:04d}"
        depths.append(depth_of_ray(_npy(folder, name, f"{at}.depth_meters.npy", "missing_depth"), intrinsics))
        mask = _npy(folder, name, f"{at}.semantic_instance.npy", "malformed_scene")
        masks.append(np.maximum(mask, 0).astype(np.int32))
        pose = np.eye(4)
        at_key = keyframes[number]
        pose[:3, :3], pose[:3, 3] = turns[at_key] @ FLIP, places[at_key]
        frames.append(
            {
                "rgb": f"images/scene_{CAMERA}_final_preview/{images[number]}",
                "time_seconds": float(k),
                "intrinsics_px": intrinsics,
                "world_from_camera": pose.tolist(),
            }
        )
    mesh = "_detail/mesh"
    centers = _npy(folder, name, f"{mesh}/{_BOXES}_positions.npy", "bad_boxes") * scale
    sizes = _npy(folder, name, f"{mesh}/{_BOXES}_extents.npy", "bad_boxes") * scale
    axes = _npy(folder, name, f"{mesh}/{_BOXES}_orientations.npy", "bad_boxes")
    labels = read_json(os.path.join(folder, mesh, "labels.json"))
    objects = [
        {
            "id": int(number),
            "label": label,
            "box": {
                "center_xyz_m": centers[int(number)].tolist(),
                "size_xyz_m": sizes[int(number)].tolist(),
                "world_from_box": axes[int(number)].tolist(),
            },
        }
        for number, label in sorted(labels.items(), key=lambda item: int(item[0]))
    ]
    masks_FHW = np.stack(masks)
    masks_FHW[~np.isin(masks_FHW, [int(number) for number in labels])] = 0
    record = {
        "id": name,
        "source": NAME,
        "kind": "rgbd",
        "width_px": width,
        "height_px": height,
        "frames": frames,
        "objects": objects,
    }
    return checked_scene(
        Scene(record=validated(record, name), depth_FHW=np.stack(depths), masks_FHW=masks_FHW, folder=folder)
    )


def depth_of_ray(distance_HW: F64, intrinsics: list[float]) -> F32:
    """Depth along z from the length of each pixel's ray; NaN becomes 0, unknown."""
    fx, fy, cx, cy = intrinsics
    rows, columns = np.mgrid[: distance_HW.shape[0], : distance_HW.shape[1]] + 0.5
    length = np.sqrt(((columns - cx) / fx) ** 2 + ((rows - cy) / fy) ** 2 + 1)
    return np.asarray(np.nan_to_num(distance_HW / length, nan=0.0, posinf=0.0, neginf=0.0), np.float32)


def _keyframes(folder: str, num: int) -> list[int]:
    """Frame number of each keyframe; 0, 1, 2 ... where the file that says is missing."""
    path = os.path.join(folder, "_detail", CAMERA, "camera_keyframe_frame_indices.npy")
    return [int(k) for k in np.load(path, allow_pickle=False)] if os.path.exists(path) else list(range(num))


def _intrinsics(folder: str, width: int, height: int) -> list[float]:
    path = os.path.join(folder, "_detail", CAMERA, "intrinsics.json")
    if os.path.exists(path):
        found = read_json(path)
        return [float(found[key]) for key in ("fx", "fy", "cx", "cy")]
    focal = width / 2 / float(np.tan(FOV_X_RADIANS / 2))
    return [focal, focal, width / 2, height / 2]


def _metres_per_unit(folder: str, name: str) -> float:
    try:
        with open(index_file(folder), encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(",")
                if key.strip() == "meters_per_asset_unit":
                    return float(value)
    except (OSError, ValueError) as error:
        raise BadItemError("malformed_scene", f"scene {name}: {error}", stage="spatial") from error
    raise BadItemError(
        "malformed_scene", f"scene {name}: metadata_scene.csv has no meters_per_asset_unit", stage="spatial"
    )


def _npy(folder: str, name: str, rel: str, reason: QuarantineReason) -> F64:
    path = os.path.join(folder, rel)
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError) as error:
        hint = f"; convert {rel.removesuffix('.npy')}.hdf5 to .npy" if not os.path.exists(path) else ""
        message = f"scene {name}: {path} cannot be read: {error}{hint}"
        raise BadItemError(reason, message, stage="spatial") from error
