"""Hypersim as released: SCENE/_detail and SCENE/images, in HDF5; or the same converted to .npy.

Documented layout (github.com/apple/ml-hypersim, README; not checked against a download):
_detail/CAM/camera_keyframe_positions.hdf5 [F, 3] and camera_keyframe_orientations.hdf5 [F, 3, 3] (of keyframes, whose frame
numbers stand in camera_keyframe_frame_indices; world from camera, the camera looks along -z with y up), in asset units;
_detail/metadata_scene.csv holds meters_per_asset_unit; images/scene_CAM_final_preview/frame.F.color.jpg (or tonemap),
images/scene_CAM_geometry_hdf5/frame.F.depth_meters.hdf5 (length of the ray, not z), frame.F.semantic_instance.hdf5 and
frame.F.semantic.hdf5 (NYU40 numbers); boxes in
_detail/mesh/metadata_semantic_instance_bounding_box_object_aligned_2d_{positions,extents,orientations}.hdf5. World z is up.
Of several cameras the first is read.

HDF5 is read with h5py (extra `hypersim`); without it, convert each FILE.hdf5 to FILE.npy beside it (its one dataset). An instance's
label is the NYU40 name of most of its pixels (structure and "other..." name nothing and are no objects), unless
_detail/mesh/labels.json {"instance": "label"}, ours, names them. The focal length is the documented default, a horizontal field
of view of 60 degrees, unless _detail/CAM/intrinsics.json {"fx", "fy", "cx", "cy"}, ours, says otherwise.
"""

import glob
import os
import re

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import box_record, spread
from ov2_core.spatial.readers.plain import folders_with
from ov2_core.spatial.scene import F32, F64, I32, Scene, checked_scene
from ov2_core.spatial.scene_files import read_json
from schemas.shard import QuarantineReason

NAME = "hypersim"
MAX_FRAMES = 16
NYU40 = (
    "", "", "", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "blinds",
    "desk", "shelf", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "", "books", "refrigerator", "television",
    "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag",
    "", "", "",
)  # fmt: skip
"""Names of its classes by number; walls, floors, ceilings and what is "other" have none."""
FOV_X_RADIANS = np.pi / 3
FLIP = np.diag([1.0, -1.0, -1.0])
"""Their camera has y up and looks along -z; ours has y down and looks along z."""
MESH = "_detail/mesh"
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
    camera = _first_camera(folder, name)
    places = _array(folder, name, f"_detail/{camera}/camera_keyframe_positions", "bad_pose") * scale
    turns = _array(folder, name, f"_detail/{camera}/camera_keyframe_orientations", "bad_pose")
    shown = os.path.join(folder, "images", f"scene_{camera}_final_preview")
    images = {int(m[1]): m[0] for m in map(_FRAME.fullmatch, sorted(os.listdir(shown))) if m}  # tonemap before color
    keyframes = {number: k for k, number in enumerate(_keyframes(folder, name, camera, len(places)))}
    chosen = spread(sorted(images.keys() & keyframes.keys()), MAX_FRAMES)
    if not chosen:
        raise BadItemError("malformed_scene", f"scene {name}: {shown} holds no frame.N.color.jpg", stage="spatial")
    with Image.open(os.path.join(shown, images[chosen[0]])) as image:
        width, height = image.size
    intrinsics = _intrinsics(folder, camera, width, height)
    frames, depths, masks = [], [], []
    for k, number in enumerate(chosen):
        at = f"images/scene_{camera}_geometry_hdf5/frame.{number:04d}"
        depths.append(depth_of_ray(_array(folder, name, f"{at}.depth_meters", "missing_depth"), intrinsics))
        mask = _array(folder, name, f"{at}.semantic_instance", "malformed_scene")
        masks.append(np.maximum(mask, 0).astype(np.int32))
        pose = np.eye(4)
        at_key = keyframes[number]
        pose[:3, :3], pose[:3, 3] = turns[at_key] @ FLIP, places[at_key]
        frames.append(
            {
                "rgb": f"images/scene_{camera}_final_preview/{images[number]}",
                "time_seconds": float(k),
                "intrinsics_px": intrinsics,
                "world_from_camera": pose.tolist(),
            }
        )
    named = os.path.join(folder, MESH, "labels.json")
    if os.path.exists(named):
        labels = {int(number): str(label) for number, label in read_json(named).items()}
    else:
        at = f"images/scene_{camera}_geometry_hdf5/frame."
        classes = [_array(folder, name, f"{at}{number:04d}.semantic", "malformed_scene") for number in chosen]
        labels = _labels_of_pixels(np.stack(masks), np.stack(classes).astype(np.int64))
    objects = _objects(folder, name, labels, scale)
    masks_FHW = np.stack(masks)
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
    return checked_scene(
        Scene(record=validated(record, name), depth_FHW=np.stack(depths), masks_FHW=masks_FHW, folder=folder)
    )


def depth_of_ray(distance_HW: F64, intrinsics: list[float]) -> F32:
    """Depth along z from the length of each pixel's ray; NaN becomes 0, unknown."""
    fx, fy, cx, cy = intrinsics
    rows, columns = np.mgrid[: distance_HW.shape[0], : distance_HW.shape[1]] + 0.5
    length = np.sqrt(((columns - cx) / fx) ** 2 + ((rows - cy) / fy) ** 2 + 1)
    return np.asarray(np.nan_to_num(distance_HW / length, nan=0.0, posinf=0.0, neginf=0.0), np.float32)


def _first_camera(folder: str, name: str) -> str:
    shown = sorted(glob.glob(os.path.join(glob.escape(folder), "images", "scene_cam_*_final_preview")))
    if not shown:
        message = f"scene {name}: {folder}/images holds no scene_cam_00_final_preview; unpack the whole scene"
        raise BadItemError("malformed_scene", message, stage="spatial")
    return os.path.basename(shown[0]).removeprefix("scene_").removesuffix("_final_preview")


def _labels_of_pixels(masks_FHW: I32, classes_FHW: npt.NDArray[np.int64]) -> dict[int, str]:
    """Instance -> the name of most of its pixels; those without a name are left out."""
    labels = {}
    classes = np.where((classes_FHW > 0) & (classes_FHW < len(NYU40)), classes_FHW, 0)
    pairs, counts = np.unique(
        masks_FHW[masks_FHW > 0] * np.int64(len(NYU40)) + classes[masks_FHW > 0], return_counts=True
    )
    for pair in pairs[np.argsort(counts, kind="stable")].tolist():  # the most frequent comes last
        labels[pair // len(NYU40)] = NYU40[pair % len(NYU40)]
    return {number: label for number, label in sorted(labels.items()) if label}


def _objects(folder: str, name: str, labels: dict[int, str], scale: float) -> list[dict[str, object]]:
    centers = _array(folder, name, f"{MESH}/{_BOXES}_positions", "bad_boxes") * scale
    sizes = _array(folder, name, f"{MESH}/{_BOXES}_extents", "bad_boxes") * scale
    axes = _array(folder, name, f"{MESH}/{_BOXES}_orientations", "bad_boxes")
    beyond = [number for number in labels if number >= len(centers)]
    if beyond:
        message = f"scene {name}: instance {beyond[0]} has no box among {len(centers)}"
        raise BadItemError("bad_boxes", message, stage="spatial")
    return [
        {"id": number, "label": label, "box": box_record(centers[number], sizes[number], axes[number])}
        for number, label in sorted(labels.items())
    ]


def _keyframes(folder: str, name: str, camera: str, num: int) -> list[int]:
    """Frame number of each keyframe; 0, 1, 2 ... where the file that says is missing."""
    rel = f"_detail/{camera}/camera_keyframe_frame_indices"
    there = any(os.path.exists(os.path.join(folder, f"{rel}.{end}")) for end in ("hdf5", "npy"))
    return [int(k) for k in _array(folder, name, rel, "bad_pose")] if there else list(range(num))


def _intrinsics(folder: str, camera: str, width: int, height: int) -> list[float]:
    path = os.path.join(folder, "_detail", camera, "intrinsics.json")
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


def _array(folder: str, name: str, rel: str, reason: QuarantineReason) -> F64:
    """FILE.npy, else the one dataset of FILE.hdf5."""
    path = os.path.join(folder, rel)
    try:
        if os.path.exists(f"{path}.npy"):
            return np.asarray(np.load(f"{path}.npy", allow_pickle=False), np.float64)
        return _of_hdf5(f"{path}.hdf5")
    except ImportError as error:
        message = f"scene {name}: {path}.hdf5: HDF5 is read with h5py: pip install 'ov2-pipeline[hypersim]', or convert it to .npy"
        raise BadItemError("unsupported", message, stage="spatial") from error
    except (OSError, EOFError, ValueError, KeyError) as error:
        message = f"scene {name}: {path}.hdf5 (or .npy) cannot be read: {error}"
        raise BadItemError(reason, message, stage="spatial") from error


def _of_hdf5(path: str) -> F64:
    if not os.path.exists(path):
        raise FileNotFoundError("no such file")
    import h5py

    with h5py.File(path, "r") as file:
        datasets = [value for value in file.values() if isinstance(value, h5py.Dataset)]
        if len(datasets) != 1:
            raise ValueError(f"expected one dataset, got {len(datasets)}")
        return np.asarray(datasets[0][()], np.float64)
