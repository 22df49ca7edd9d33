"""Molmo2-VideoTrack rows as scenes of kind "tracks": one JSON file a clip (columns: RECIPES of the importer molmo2-track).

A folder of *.track.json, each one row of the dataset as its Parquet holds it: id, video, clip, video_dataset, fps, start_frame,
end_frame, w, h, exp, mask_id[], points[{object_id, points[[x, y] or empty per frame]}] in pixels. The expression names all
objects of the row: they share it as their label, so only a single object has a name to be asked by; counts use the label. At
most 16 frames, by time. The scene's video is the clip, {video_dataset}/{clip}.mp4 below the folder.
"""

import os

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import spread
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import read_json

NAME = "molmo2-tracks"
MAX_FRAMES = 16
SUFFIX = ".track.json"


def find(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))


def index_file(folder: str) -> str:
    return folder


def read(folder: str) -> Scene:
    """folder: the JSON file of a clip. Raises BadItemError."""
    row = read_json(folder)
    name = os.path.basename(folder).removesuffix(SUFFIX)
    try:
        fps, num = float(row["fps"]), int(row["end_frame"]) - int(row["start_frame"]) + 1
        points = {str(entry["object_id"]): entry["points"] for entry in row["points"]}
        numbers = {str(mask): k for k, mask in enumerate(row["mask_id"], start=1)}
        clip = f"{row['video_dataset']}/{row['clip']}.mp4"
        label, width, height = str(row["exp"]).strip(), int(row["w"]), int(row["h"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadItemError(
            "malformed_scene",
            f"scene {name}: no row of Molmo2-VideoTrack: {type(error).__name__} {error}",
            stage="spatial",
        ) from error
    chosen = spread(range(num), MAX_FRAMES)
    record = {
        "id": name,
        "source": NAME,
        "kind": "tracks",
        "width_px": width,
        "height_px": height,
        "video": clip,
        "frames": [{"rgb": clip, "time_seconds": round(k / fps, 3)} for k in chosen],
        "objects": [{"id": number, "label": label, "moving": True} for number in numbers.values()],
        "tracks": [
            {
                "object_id": number,
                "places": [
                    {"xy_px": points[mask][k]} if mask in points and k < len(points[mask]) and points[mask][k] else None
                    for k in chosen
                ],
            }
            for mask, number in numbers.items()
        ],
    }
    return checked_scene(
        Scene(record=validated(record, name), depth_FHW=None, masks_FHW=None, folder=os.path.dirname(folder))
    )
