"""Our plain format: FOLDER/scene.json and what it names; see scene_files.py."""

import os

from ov2_core.spatial.scene import Scene
from ov2_core.spatial.scene_files import SCENE_JSON, read_scene

NAME = "plain"


def folders_with(folder: str, *markers: str) -> list[str]:
    """Sorted names of the folders directly in `folder` that hold one of the marker paths."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and any(os.path.exists(os.path.join(entry.path, marker)) for marker in markers)
    )


def find(folder: str) -> list[str]:
    return folders_with(folder, SCENE_JSON)


def index_file(folder: str) -> str:
    return os.path.join(folder, SCENE_JSON)


def read(folder: str) -> Scene:
    return read_scene(folder)
