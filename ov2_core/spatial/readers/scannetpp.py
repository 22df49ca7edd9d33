"""ScanNet++'s own folders: SCENE/iphone and SCENE/scans/segments_anno.json; no mesh is needed.

Layout (github.com/scannetpp/scannetpp, its scene class and iPhone script; not checked against a download):
iphone/pose_intrinsic_imu.json {"frame_000000": {aligned_pose 4 x 4, world from camera, aligned with the laser scan; intrinsic
3 x 3, of the 1920 x 1440 picture; timestamp}}; pictures iphone/rgb/frame_000000.jpg, or the video iphone/rgb.mp4 (rgb.mkv) whose
picture i is frame i; depth iphone/depth/frame_000000.png, 16-bit millimetres, 256 x 192, or iphone/depth.bin.
scans/segments_anno.json holds segGroups {objectId, label, obb {centroid, axesLengths, normalizedAxes}}, one axis after the other as
in ARKitScenes.
World z is up.

Masks would need the mesh drawn into each picture; instead pixels are given to a box when the point of the phone's depth lies in
it, the smaller box first. The DSLR's pictures are fisheye and have no depth without the mesh: they are not read. Where pictures
come from the video they are no files, and a run writes them beside its scenes.
"""

import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.errors import BadItemError
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import VideoProbe, probe_video
from ov2_core.media.scale import Scaler
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import box_record, masks_of_boxes, require_z_up, spread
from ov2_core.spatial.readers.depth_bin import count_depth_frames, read_depth_frames
from ov2_core.spatial.readers.plain import folders_with
from ov2_core.spatial.scene import F32, Scene
from ov2_core.spatial.scene_files import read_image16, read_json

NAME = "scannet++"
MAX_FRAMES = 16
PICTURE_WIDTH = 1920
"""Of what the intrinsics are given for."""
VIDEO_WIDTH_PX = 960
"""Pictures of the video are written at this width."""
FPS = 60.0
UNNAMED = frozenset({"wall", "floor", "ceiling", "door frame", "window frame", "object", "remove", "split", ""})
"""Labels that are structure, or notes of the annotators."""
_POSES = "iphone/pose_intrinsic_imu.json"
_ANNOTATION = "scans/segments_anno.json"
_KEY = re.compile(r"frame_(\d+)")


def find(folder: str) -> list[str]:
    return folders_with(folder, _POSES)


def index_file(folder: str) -> str:
    return os.path.join(folder, _ANNOTATION)


def is_packed(folder: str) -> bool:
    return not _numbered(f"{folder}/iphone/rgb", (".jpg", ".png"))


def read(folder: str) -> Scene:
    """Raises BadItemError."""
    name = os.path.basename(folder.rstrip("/"))
    poses = {
        int(found[1]): row for key, row in read_json(f"{folder}/{_POSES}").items() if (found := _KEY.fullmatch(key))
    }
    objects = _objects(read_json(index_file(folder)), name)
    pictures = _numbered(f"{folder}/iphone/rgb", (".jpg", ".png"))
    video = None if pictures else _video(folder, name)
    shown = set(pictures) if video is None else set(range(video[1].num_frames))
    chosen = spread(sorted(shown & poses.keys() & _depth_numbers(folder, name, poses)), MAX_FRAMES)
    if not chosen:
        raise BadItemError(
            "malformed_scene", f"scene {name}: no frame of {folder}/iphone has picture, depth and pose", stage="spatial"
        )
    depth_FHW = _depths(folder, name, chosen)
    height, width = depth_FHW.shape[1:]
    rgb_FHW3 = None if video is None else _decoded(*video, chosen, name)
    began = _seconds(poses[chosen[0]], chosen[0])
    frames = []
    for i, number in enumerate(chosen):
        row = poses[number]
        frame: dict[str, Any] = {
            "rgb": f"iphone/rgb/{pictures.get(number)}",
            "time_seconds": round(_seconds(row, number) - began, 3),
            "intrinsics_px": _intrinsics(row, number, name, width / PICTURE_WIDTH),
            "world_from_camera": row.get("aligned_pose"),
        }
        if rgb_FHW3 is not None:
            frame |= {"rgb": f"frames/{i:03d}.jpg", "depth": f"depth/{i:03d}.png", "masks": f"masks/{i:03d}.png"}
        frames.append(frame)
    record = {
        "id": name,
        "source": NAME,
        "kind": "rgbd",
        "width_px": width,
        "height_px": height,
        "frames": frames,
        "objects": objects,
    }
    checked = validated(record, name)
    require_z_up([frame.world_from_camera for frame in checked.frames if frame.world_from_camera], name)
    return masks_of_boxes(checked, depth_FHW, folder, rgb_FHW3=rgb_FHW3)


def _numbered(folder: str, suffixes: tuple[str, ...]) -> dict[int, str]:
    """Frame number -> file name."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    split = [(name, *os.path.splitext(name)) for name in sorted(names)]
    return {int(found[1]): name for name, stem, end in split if end in suffixes and (found := _KEY.fullmatch(stem))}


def _video(folder: str, name: str) -> tuple[str, VideoProbe]:
    for file in ("rgb.mp4", "rgb.mkv", "rgb.mov"):
        path = os.path.join(folder, "iphone", file)
        if os.path.exists(path):
            return path, probe_video(path)
    raise BadItemError(
        "malformed_scene",
        f"scene {name}: {folder}/iphone holds neither rgb/frame_000000.jpg nor rgb.mp4 or rgb.mkv; download iphone's video",
        stage="spatial",
    )


def _decoded(path: str, probe: VideoProbe, chosen: list[int], name: str) -> npt.NDArray[np.uint8]:
    width = min(VIDEO_WIDTH_PX, probe.width_px)
    height = 2 * round(probe.height_px * width / probe.width_px / 2)
    scaler = Scaler(width_px=width, height_px=height, rotation_degrees=probe.rotation_degrees)
    stats = DecodeStats()
    found = {
        index: scaler.rgb(scaler.scaled(frame))
        for index, frame in decode_frames(path, probe, stats=stats, wanted=chosen)
    }
    missing = [number for number in chosen if number not in found]
    if missing:
        message = f"scene {name}: {path}: frame {missing[0]} cannot be decoded; download it again"
        raise BadItemError("malformed_scene", message, stage="spatial")
    return np.stack([found[number] for number in chosen])


def _depth_numbers(folder: str, name: str, poses: dict[int, Any]) -> set[int]:
    numbers = set(_numbered(f"{folder}/iphone/depth", (".png",)))
    path = f"{folder}/iphone/depth.bin"
    if numbers:
        return numbers
    if not os.path.exists(path):
        message = (
            f"scene {name}: {folder}/iphone holds neither depth/frame_000000.png nor depth.bin; download iphone's depth"
        )
        raise BadItemError("missing_depth", message, stage="spatial")
    held = count_depth_frames(path)
    return set(poses) if held is None else set(range(held))


def _depths(folder: str, name: str, chosen: list[int]) -> F32:
    names = _numbered(f"{folder}/iphone/depth", (".png",))
    path = f"{folder}/iphone/depth.bin"
    try:
        if names:
            images = [read_image16(f"{folder}/iphone/depth/{names[number]}") for number in chosen]
            return (np.stack(images) / 1000).astype(np.float32)
        found = read_depth_frames(path, chosen)
        return np.stack([found[number] for number in chosen])
    except KeyError as error:
        raise BadItemError("missing_depth", f"scene {name}: {path} holds no frame {error}", stage="spatial") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise BadItemError("missing_depth", f"scene {name}: {folder}/iphone: {error}", stage="spatial") from error


def _seconds(row: dict[str, Any], number: int) -> float:
    return float(row.get("timestamp", number / FPS))


def _intrinsics(row: dict[str, Any], number: int, name: str, scale: float) -> list[float]:
    try:
        k = np.array(row["intrinsic"], np.float64).reshape(3, 3) * scale
    except (KeyError, TypeError, ValueError) as error:
        message = f"scene {name}: frame {number}: intrinsic must be 3 x 3 numbers"
        raise BadItemError("bad_intrinsics", message, stage="spatial") from error
    return [float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])]


def _objects(annotation: dict[str, Any], name: str) -> list[dict[str, Any]]:
    objects = []
    try:
        for row in annotation["segGroups"]:
            label = str(row["label"]).replace("_", " ").strip().lower()
            if label in UNNAMED:
                continue
            axes = np.array(row["obb"]["normalizedAxes"], np.float64).reshape(3, 3).T
            box = box_record(row["obb"]["centroid"], row["obb"]["axesLengths"], axes)
            objects.append({"id": int(row["objectId"]), "label": label, "box": box})
    except (KeyError, TypeError, ValueError) as error:
        raise BadItemError(
            "bad_boxes", f"scene {name}: {_ANNOTATION}: {type(error).__name__} {error}", stage="spatial"
        ) from error
    return objects
