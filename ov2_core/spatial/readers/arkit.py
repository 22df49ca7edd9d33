"""placeholder"""

from ov2_core.spatial.scene import Scene

NAME = "arkit"


def find(folder: str) -> list[str]:
    return []


def index_file(folder: str) -> str:
    return folder


def read(folder: str) -> Scene:
    raise NotImplementedError
