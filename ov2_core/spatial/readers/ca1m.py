"""CA-1M as released: a tar a capture, ca1m-SPLIT-ID.tar, or the folder ID that it unpacks to.

Documented layout (github.com/apple/ml-cubifyanything, README; not checked against a download), T an integer time stamp in
nanoseconds: ID/T.wide/image.png, 1024 x 768; ID/T.gt/depth.png, 16-bit in millimetres at 512 x 384, of the laser scanner, 0
where it saw nothing; ID/T.gt/depth/K.json, 3 x 3; ID/T.gt/RT.json, 4 x 4, world from camera in the scanner's frame; and
ID/world.gt/instances.json, a list of {id, category, position, scale, R}: centre, full edge lengths, axes as columns. The boxes a
frame (T.wide/instances.json) follow from these and are not read; nor is the tablet's own depth. Images stand upright, so a capture
may hold both orientations: the frames of the more frequent one are taken.

What is structure (walls, floor, ceiling, door frames) and what its category does not name is no object: "object" is no name
to ask by. There are no masks: pixels are given to a box when their point lies in it, the smaller box first. Frames in a tar are no
files, so a run writes them beside its scenes; unpack the tars to have them read where they lie.
"""

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import box_record, masks_of_boxes, require_z_up, spread
from ov2_core.spatial.readers.plain import folders_with
from ov2_core.spatial.scene import F32, Scene
from schemas.shard import QuarantineReason

NAME = "ca-1m"
MAX_FRAMES = 16
UNNAMED = frozenset(
    {"wall", "floor", "ceiling", "door frame", "window frame", "object", "objects", "other", "unknown", ""}
)
"""Categories that are structure, or no name."""
_TAR = re.compile(r"ca1m-\w+-(\d+)\.tar")
_FRAME = re.compile(r"(\d+)\.gt/depth\.png")
_WORLD = "world.gt/instances.json"


def find(folder: str) -> list[str]:
    tars = [name for name in os.listdir(folder) if _TAR.fullmatch(name)]
    return sorted([*tars, *folders_with(folder, _WORLD)])


def index_file(folder: str) -> str:
    return folder if os.path.isfile(folder) else os.path.join(folder, _WORLD)


def is_packed(folder: str) -> bool:
    return os.path.isfile(folder)


def read(folder: str) -> Scene:
    """folder: a tar, or a folder. Raises BadItemError."""
    base = os.path.basename(folder.rstrip("/"))
    packed = _TAR.fullmatch(base)
    name = packed[1] if packed else base
    with ExitStack() as stack:
        names, read_bytes = _open_tar(folder, name, stack) if packed else _open_folder(folder, name)
        stamps = sorted(int(found[1]) for found in map(_FRAME.fullmatch, names) if found)
        if not stamps:
            raise BadItemError("missing_depth", f"scene {name}: {folder} holds no TIME.gt/depth.png", stage="spatial")
        frames, depths, rgb = [], [], []
        for stamp in spread(stamps, MAX_FRAMES):
            at = f"{stamp}.gt"
            k = _matrix(read_bytes, f"{at}/depth/K.json", 3, "bad_intrinsics", name)
            pose = _matrix(read_bytes, f"{at}/RT.json", 4, "bad_pose", name)
            depths.append(_depth(read_bytes(f"{at}/depth.png", "missing_depth"), f"{folder}: {at}/depth.png", name))
            if packed:
                rgb.append(_image(read_bytes(f"{stamp}.wide/image.png", "malformed_scene"), f"{stamp}.wide", name))
            frames.append(
                {
                    "rgb": f"{stamp}.wide/image.png",
                    "time_seconds": stamp / 1e9,
                    "intrinsics_px": [k[0][0], k[1][1], k[0][2], k[1][2]],
                    "world_from_camera": pose,
                }
            )
        instances = _parsed(read_bytes(_WORLD, "bad_boxes"), _WORLD, "bad_boxes", name)
    shape = Counter(depth.shape for depth in depths).most_common(1)[0][0]
    kept = [i for i, depth in enumerate(depths) if depth.shape == shape]
    frames = [frames[i] for i in kept]
    require_z_up([frame["world_from_camera"] for frame in frames], name)
    began = float(frames[0]["time_seconds"])
    for i, frame in enumerate(frames):
        frame["time_seconds"] = round(frame["time_seconds"] - began, 3)
        if packed:
            frame |= {"rgb": f"frames/{i:03d}.jpg", "depth": f"depth/{i:03d}.png", "masks": f"masks/{i:03d}.png"}
    record = {
        "id": name,
        "source": NAME,
        "kind": "rgbd",
        "width_px": shape[1],
        "height_px": shape[0],
        "frames": frames,
        "objects": _objects(instances, name),
    }
    depth_FHW = np.stack([depths[i] for i in kept])
    rgb_FHW3 = np.stack([rgb[i] for i in kept]) if packed else None
    return masks_of_boxes(validated(record, name), depth_FHW, folder, rgb_FHW3=rgb_FHW3)


ReadBytes = Callable[[str, QuarantineReason], bytes]


def _open_tar(path: str, name: str, stack: ExitStack) -> tuple[list[str], ReadBytes]:
    """(names below ID/, their bytes)."""
    try:
        tar = stack.enter_context(tarfile.open(path))  # noqa: SIM115
        members = {member.name.partition("/")[2]: member for member in tar.getmembers() if member.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise BadItemError(
            "malformed_scene", f"scene {name}: {path} is no whole tar ({error}); download it again", stage="spatial"
        ) from error

    def read_bytes(rel: str, reason: QuarantineReason) -> bytes:
        member = members.get(rel)
        file = None if member is None else tar.extractfile(member)
        if file is None:
            raise BadItemError(reason, f"scene {name}: {path} holds no {rel}", stage="spatial")
        return file.read()

    return list(members), read_bytes


def _open_folder(folder: str, name: str) -> tuple[list[str], ReadBytes]:
    def read_bytes(rel: str, reason: QuarantineReason) -> bytes:
        try:
            with open(os.path.join(folder, rel), "rb") as file:
                return file.read()
        except OSError as error:
            where = os.path.join(folder, rel)
            raise BadItemError(reason, f"scene {name}: {where}: {error.strerror}", stage="spatial") from error

    stamps = [entry for entry in os.listdir(folder) if entry.endswith(".gt")]
    return [f"{stamp}/depth.png" for stamp in stamps if os.path.exists(f"{folder}/{stamp}/depth.png")], read_bytes


def _parsed(data: bytes, rel: str, reason: QuarantineReason, name: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise BadItemError(reason, f"scene {name}: {rel} is no JSON: {error}", stage="spatial") from error


def _matrix(read_bytes: ReadBytes, rel: str, size: int, reason: QuarantineReason, name: str) -> list[list[float]]:
    """A JSON matrix, nested or flat, row after row."""
    try:
        matrix = np.array(_parsed(read_bytes(rel, reason), rel, reason, name), np.float64).reshape(size, size)
    except (TypeError, ValueError) as error:
        message = f"scene {name}: {rel}: expected {size} x {size} numbers: {error}"
        raise BadItemError(reason, message, stage="spatial") from error
    return [[float(x) for x in row] for row in matrix]


def _depth(data: bytes, where: str, name: str) -> F32:
    try:
        with Image.open(io.BytesIO(data)) as image:
            depth = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise BadItemError("missing_depth", f"scene {name}: {where}: {error}", stage="spatial") from error
    if depth.ndim != 2:
        raise BadItemError("missing_depth", f"scene {name}: {where}: expected one channel", stage="spatial")
    return np.asarray(depth.astype(np.float64) / 1000, np.float32)


def _image(data: bytes, where: str, name: str) -> Any:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise BadItemError("malformed_scene", f"scene {name}: {where}/image.png: {error}", stage="spatial") from error


def _objects(instances: Any, name: str) -> list[dict[str, Any]]:
    objects = []
    try:
        for number, row in enumerate(instances, start=1):
            label = str(row["category"]).replace("_", " ").strip().lower()
            if label not in UNNAMED:
                box = box_record(row["position"], row["scale"], np.array(row["R"], np.float64).reshape(3, 3))
                objects.append({"id": number, "label": label, "box": box})
    except (KeyError, TypeError, ValueError) as error:
        raise BadItemError(
            "bad_boxes", f"scene {name}: {_WORLD}: {type(error).__name__} {error}", stage="spatial"
        ) from error
    return objects
