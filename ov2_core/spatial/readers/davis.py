"""DAVIS-style masks: VIDEO folders below JPEGImages/480p and Annotations/480p.

Documented layout (davischallenge.org; not checked against a download): JPEGImages/480p/VIDEO/00000.jpg and
Annotations/480p/VIDEO/00000.png, palette PNGs whose values are object ids. DAVIS names no objects: labels come from
Annotations/480p/VIDEO/labels.json {"1": "dog"}, ours, else they are "object 1". 24 frames a second; at most 16 frames are taken.
A scene of kind "masks": tracks are the middles of masks; no depth, so only the types that need none.
"""

import os

import numpy as np
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import spread
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import read_image16, read_json

NAME = "davis"
FPS = 24.0
MAX_FRAMES = 16
_IMAGES, _MASKS = "JPEGImages/480p", "Annotations/480p"


def find(folder: str) -> list[str]:
    below = os.path.join(folder, _MASKS)
    if not os.path.isdir(below):
        return []
    return sorted(f"{_MASKS}/{entry.name}" for entry in os.scandir(below) if entry.is_dir())


def index_file(folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".png"))
    return os.path.join(folder, names[0] if names else "00000.png")


def read(folder: str) -> Scene:
    """folder: ROOT/Annotations/480p/VIDEO. Raises BadItemError."""
    name = os.path.basename(folder.rstrip("/"))
    root = os.path.dirname(os.path.dirname(os.path.dirname(folder.rstrip("/"))))
    numbers = sorted(f[:-4] for f in os.listdir(folder) if f.endswith(".png"))
    if not numbers:
        raise BadItemError("malformed_scene", f"scene {name}: no mask", stage="spatial")
    chosen = spread(numbers, MAX_FRAMES)
    try:
        masks_FHW = np.stack([read_image16(os.path.join(folder, f"{number}.png")) for number in chosen])
        with Image.open(os.path.join(root, _IMAGES, name, f"{chosen[0]}.jpg")) as image:
            width, height = image.size
    except (OSError, ValueError) as error:
        raise BadItemError("malformed_scene", f"scene {name}: {error}", stage="spatial") from error
    masks_FHW[masks_FHW == 255] = 0  # "do not care"
    labels_path = os.path.join(folder, "labels.json")
    labels = read_json(labels_path) if os.path.exists(labels_path) else {}
    ids = [int(number) for number in np.unique(masks_FHW) if number]
    record = {
        "id": name,
        "source": NAME,
        "kind": "masks",
        "width_px": width,
        "height_px": height,
        "frames": [
            {
                "rgb": f"../../../{_IMAGES}/{name}/{number}.jpg",
                "time_seconds": round((int(number) - int(chosen[0])) / FPS, 3),
            }
            for number in chosen
        ],
        "objects": [{"id": n, "label": str(labels.get(str(n), f"object {n}")), "moving": True} for n in ids],
        "tracks": [{"object_id": n, "places": [_middle(mask == n) for mask in masks_FHW]} for n in ids],
    }
    return checked_scene(Scene(record=validated(record, name), depth_FHW=None, masks_FHW=masks_FHW, folder=folder))


def _middle(mask_HW: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> dict[str, object] | None:
    """The mask's pixel nearest to the mean of all; None where it has fewer than 12."""
    rows, columns = np.nonzero(mask_HW)
    if len(rows) < 12:
        return None
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return {"xy_px": [float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5]}
