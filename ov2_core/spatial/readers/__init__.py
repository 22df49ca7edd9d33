"""Readers of scenes, one file a layout. A folder holds scenes of one layout; which one is told by what lies in it.

A reader says how a scene folder is recognised, which file describes it, and reads it into our own record and arrays. Files that are
no frames of ours (depth in another unit, a mask in colours) are converted in memory; nothing is written.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from ov2_core.spatial.readers import arkit, davis, hypersim, molmo_tracks, plain, scannet
from ov2_core.spatial.scene import Scene


@dataclass(frozen=True, slots=True)
class Reader:
    """One layout; picklable by its functions."""

    name: str
    find: Callable[[str], list[str]]
    """Names of the scenes in a folder, sorted."""
    index_file: Callable[[str], str]
    """Of a scene, the file whose bytes say what it is."""
    read: Callable[[str], Scene]
    """Raises BadItemError."""


READERS = tuple(
    Reader(module.NAME, module.find, module.index_file, module.read)
    for module in (plain, arkit, scannet, hypersim, davis, molmo_tracks)
)


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
    raise ValueError(
        f"{folder} holds no scene of a known layout ({', '.join(r.name for r in READERS)}); there is: {listed}. See docs/spatial.md"
    )
