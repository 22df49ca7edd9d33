"""Scenes in our plain format on an object store: s3://bucket/scenes/SCENE/scene.json and what it names.

Enters: an fsspec URL. Leaves: names of scenes, and a scene whose folder is its URL; depth and masks are fetched, pictures are not.
Other layouts are many small files or large tars: copy those to a local disk first, or write them with `--export-scenes`.
"""

import os
import posixpath
import tempfile
from dataclasses import replace

from pydantic import ValidationError

from ov2_core.errors import BadItemError
from ov2_core.spatial.scene import Scene, scene_error
from ov2_core.spatial.scene_files import SCENE_JSON, load_scene
from ov2_core.storage.files import Store
from schemas.shard import QuarantineReason
from schemas.spatial import SceneRecord


def is_remote(text: str) -> bool:
    """Whether a source or a folder is a URL."""
    return "://" in text


def find_remote_scenes(url: str) -> list[str]:
    """Sorted names of the folders directly below a URL that hold a scene.json.

    Raises:
        ValueError: there is none.
    """
    store = Store(url)
    names = [name for name in store.list() if store.exists(f"{name}/{SCENE_JSON}")]
    if not names:
        raise ValueError(
            f"--scenes {url}: holds no NAME/{SCENE_JSON}. At a URL only our plain format is read: copy other layouts to a local "
            "folder, or write them there with --export-scenes first"
        )
    return names


def load_remote_scene(url: str) -> Scene:
    """The scene of a folder at a URL. Raises BadItemError."""
    store = Store(url)
    name = posixpath.basename(url.rstrip("/"))
    try:
        record = SceneRecord.model_validate_json(store.read_bytes(SCENE_JSON))
    except FileNotFoundError as error:
        raise BadItemError("source_missing", f"{url}/{SCENE_JSON}: no such file", stage="spatial") from error
    except ValidationError as error:
        raise scene_error(error, scene_id=name) from error
    with tempfile.TemporaryDirectory(prefix="ov2-scene-") as folder:
        for frame in record.frames:
            needed: tuple[tuple[str | None, QuarantineReason], ...] = (
                (frame.depth, "missing_depth"),
                (frame.masks, "malformed_scene"),
            )
            for path, reason in needed:
                if path is None:
                    continue
                if is_remote(path) or path.startswith("/") or ".." in path.split("/"):
                    message = f"scene {record.id}: {path}: at a URL, depth and masks must lie in the scene's own folder"
                    raise BadItemError("malformed_scene", message, stage="spatial")
                try:
                    data = store.read_bytes(path)
                except FileNotFoundError as error:
                    message = f"scene {record.id}: {store.url(path)}: no such file"
                    raise BadItemError(reason, message, stage="spatial") from error
                target = os.path.join(folder, path)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "wb") as file:
                    file.write(data)
        return replace(load_scene(record, folder), folder=url)


def read_scene_file(folder: str, path: str) -> bytes:
    """A file of a scene, wherever the folder lies. Raises OSError."""
    if is_remote(folder):
        return Store(folder).read_bytes(path)
    with open(os.path.join(folder, path), "rb") as file:
        return file.read()
