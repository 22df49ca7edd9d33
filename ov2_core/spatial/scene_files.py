"""Our plain format: a folder a scene, with scene.json (schemas/spatial.py) and the files that it names.

Enters: a Scene or a folder. Leaves: the other one. What is written depends on the scene alone. Depth is stored as 16-bit PNG in
units of depth_unit_m (rounded, 0 unknown), masks as 16-bit PNG of ids, frames as JPEG 92.
"""

import io
import json
import os
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import ValidationError

from ov2_core.errors import BadItemError
from ov2_core.spatial.scene import F32, I32, Scene, checked_scene, scene_error
from schemas.spatial import SceneRecord

SCENE_JSON = "scene.json"
JPEG_QUALITY = 92


def write_scene(scene: Scene, folder: str) -> Scene:
    """Writes what is in memory; scene.json last, so a folder with one is whole. Returns the scene with its folder."""
    record = scene.record
    for i, frame in enumerate(record.frames):
        if scene.rgb_FHW3 is not None:
            _write(folder, frame.rgb, _jpeg(scene.rgb_FHW3[i]))
        if scene.depth_FHW is not None and frame.depth is not None:
            units = np.rint(scene.depth_FHW[i].astype(np.float64) / record.depth_unit_m)
            _write(folder, frame.depth, _png16(np.clip(units, 0, 65535).astype(np.uint16)))
        if scene.masks_FHW is not None and frame.masks is not None:
            _write(folder, frame.masks, _png16(scene.masks_FHW[i].astype(np.uint16)))
    if record.video is not None and scene.rgb_FHW3 is not None:
        _write(folder, record.video, _mp4(scene.rgb_FHW3, [frame.time_seconds for frame in record.frames]))
    _write(folder, SCENE_JSON, (record.model_dump_json(indent=1) + "\n").encode())
    return Scene(
        record=record, depth_FHW=scene.depth_FHW, masks_FHW=scene.masks_FHW, rgb_FHW3=scene.rgb_FHW3, folder=folder
    )


def read_scene(folder: str) -> Scene:
    """A scene of our own format.

    Raises:
        BadItemError: what checked_scene refuses, a record that does not validate, or a file that cannot be read.
    """
    path = os.path.join(folder, SCENE_JSON)
    name = os.path.basename(folder.rstrip("/"))
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BadItemError("source_missing", f"{path}: {error.strerror}", stage="spatial") from error
    try:
        record = SceneRecord.model_validate_json(data)
    except ValidationError as error:
        raise scene_error(error, scene_id=name) from error
    return load_scene(record, folder)


def load_scene(record: SceneRecord, folder: str) -> Scene:
    """The scene of a record, its depth and masks read.

    Raises:
        BadItemError: see read_scene.
    """
    depth: F32 | None = None
    masks: I32 | None = None
    if record.kind == "rgbd":
        depth = np.stack([_depth(record, i, folder) for i in range(len(record.frames))])
    if record.kind != "tracks":
        masks = np.stack([_mask(record, i, folder) for i in range(len(record.frames))])
    return checked_scene(Scene(record=record, depth_FHW=depth, masks_FHW=masks, folder=folder))


def _depth(record: SceneRecord, i: int, folder: str) -> F32:
    path = record.frames[i].depth
    if path is None:
        raise BadItemError("missing_depth", f"scene {record.id}: frame {i} has no depth", stage="spatial")
    where = os.path.join(folder, path)
    try:
        if path.endswith(".npy"):
            depth = np.load(where, allow_pickle=False).astype(np.float32)
        else:
            depth = (read_image16(where) * record.depth_unit_m).astype(np.float32)
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise BadItemError(
            "missing_depth", f"scene {record.id}: frame {i}: {where} cannot be read: {error}", stage="spatial"
        ) from error
    return np.asarray(_shaped(depth, record, where), np.float32)


def _mask(record: SceneRecord, i: int, folder: str) -> I32:
    path = record.frames[i].masks
    if path is None:
        raise BadItemError("malformed_scene", f"scene {record.id}: frame {i} has no masks", stage="spatial")
    where = os.path.join(folder, path)
    try:
        return np.asarray(_shaped(read_image16(where), record, where), np.int32)
    except (OSError, SyntaxError) as error:
        raise BadItemError(
            "malformed_scene", f"scene {record.id}: frame {i}: {where} cannot be read: {error}", stage="spatial"
        ) from error


def _shaped(array: npt.NDArray[Any], record: SceneRecord, where: str) -> npt.NDArray[Any]:
    if array.shape != (record.height_px, record.width_px):
        raise BadItemError(
            "malformed_scene",
            f"scene {record.id}: {where} is {list(array.shape)}, the record says "
            f"{[record.height_px, record.width_px]}; resize it (nearest neighbour)",
            stage="spatial",
        )
    return array


def read_image16(path: str) -> npt.NDArray[np.int32]:
    """A grey or palette PNG of 8 or 16 bits as integers [H, W]. Raises OSError."""
    with Image.open(path) as image:
        array = np.asarray(image)
    if array.ndim != 2:
        raise OSError(f"expected one channel, got {list(array.shape)}")
    return array.astype(np.int32)


def read_depth_mm(path: str, *, scene_id: str) -> F32:
    """Metres [H, W] of a 16-bit PNG of millimetres. Raises BadItemError (missing_depth)."""
    try:
        return np.asarray(read_image16(path).astype(np.float32) / 1000, np.float32)
    except (OSError, SyntaxError) as error:
        message = f"scene {scene_id}: {path} cannot be read: {error}"
        raise BadItemError("missing_depth", message, stage="spatial") from error


def _png16(array: npt.NDArray[np.uint16]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format="PNG", compress_level=3)
    return out.getvalue()


def _jpeg(image_HW3: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image_HW3).save(out, format="JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _mp4(images_FHW3: npt.NDArray[np.uint8], times_seconds: list[float]) -> bytes:
    """H.264, an intra frame first, B-frames allowed: what the codec tokenizer reads. Frame i is shown at its time."""
    import av

    steps = {round(b - a, 6) for a, b in pairwise(times_seconds)} or {1.0}
    fps = max(1, round(1 / min(steps)))
    even = len(steps) == 1 and abs(fps * min(steps) - 1) < 1e-6
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"threads": "1", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = images_FHW3.shape[1], images_FHW3.shape[2], "yuv420p"
        if not even:
            stream.codec_context.time_base = Fraction(1, 1000)
        for image, seconds in zip(images_FHW3, times_seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if not even:
                frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * (seconds - times_seconds[0]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def _write(folder: str, rel: str, data: bytes) -> None:
    """At once and whole: a reader of a scene that is being made again never sees half a file."""
    path = os.path.join(folder, rel)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.ov2tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def read_json(path: str) -> Any:
    """Raises BadItemError (malformed_scene) where the file is missing or no JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise BadItemError("malformed_scene", f"{path} cannot be read: {error}", stage="spatial") from error
