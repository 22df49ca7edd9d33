"""Readers of scenes, one file a layout. A folder holds scenes of one layout; which one is told by what lies in it.

A reader says how a scene folder is recognised, which file describes it, and reads it into our own record and arrays. Files that are
no frames of ours (depth in another unit, a mask in colours) are converted in memory; nothing is written.
"""

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass

from ov2_core.spatial.readers import arkit, ca1m, davis, hypersim, molmo_tracks, plain, scannet, scannetpp
from ov2_core.spatial.scene import Scene


@dataclass(frozen=True, slots=True)
class Reader:
    """One layout; picklable by its functions."""

    name: str
    find: Callable[[str], list[str]]
    """Names of the scenes in a folder, sorted."""
    index_file: Callable[[str], str]
    """Of a scene, the file whose bytes (of a large one, whose size and ends) say what it is."""
    read: Callable[[str], Scene]
    """Raises BadItemError."""
    is_packed: Callable[[str], bool]
    """Whether a scene's pictures are no files, so that a run must write them."""


def _never(folder: str) -> bool:
    return False


READERS = tuple(
    Reader(module.NAME, module.find, module.index_file, module.read, getattr(module, "is_packed", _never))
    for module in (plain, ca1m, arkit, scannetpp, scannet, hypersim, davis, molmo_tracks)
)
PLAIN = READERS[0]

REMEDIES = {
    "*/*/*_frames": "ARKitScenes keeps its scenes in Training and Validation; name one of these",
    "*/*/lowres_wide.traj": "ARKitScenes keeps its scenes in Training and Validation; name one of these",
    "*.sens": "unpack ScanNet's .sens with its SensReader (color, depth, pose, intrinsic), and its 2d-instance-filt.zip",
    "data/*/iphone": "ScanNet++ keeps its scenes in data; name that folder",
    "dslr": "of ScanNet++ the iPhone's files are read (iphone/pose_intrinsic_imu.json, depth, pictures); download them as well",
    "iphone": "it has no pose_intrinsic_imu.json; download it",
    "*_3dod_annotation.json": "ARKitScenes needs lowres_wide, lowres_depth, intrinsics and lowres_wide.traj; download them",
    "images/scene_cam_*": "Hypersim needs _detail/metadata_scene.csv; unpack the whole scene",
    "scene.json": "name the folder that holds the scenes' folders",
    "world.gt": "name the folder that holds the scenes' folders",
}  # fmt: skip
"""What may lie in a folder, or one below, that no reader takes, and what helps."""


def find_scenes(folder: str) -> tuple[Reader, list[str]]:
    """The reader of a folder and the names of its scenes.

    Raises:
        ValueError: no layout is recognised.
    """
    for reader in READERS:
        names = reader.find(folder)
        if names:
            return reader, names
    listed = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
    known = ", ".join(r.name for r in READERS)
    raise ValueError(
        f"{folder} holds no scene of a known layout ({known}); there is: {listed}. {_remedy(folder)}See docs/spatial.md"
    )


def _remedy(folder: str) -> str:
    """What to do with a folder that looks like one of a data set, but is not what its reader takes; or ""."""
    for pattern, remedy in REMEDIES.items():
        for depth in ("", "*/"):
            found = sorted(glob.glob(os.path.join(glob.escape(folder), depth + pattern)))
            if found:
                return f"{os.path.relpath(found[0], folder)}: {remedy}. "
    return ""
