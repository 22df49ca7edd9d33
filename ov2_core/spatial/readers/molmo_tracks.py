"""Molmo2-VideoTrack rows as scenes of kind "tracks" (columns: RECIPES of the importer molmo2-track).

A folder of the dataset's Parquet files, a scene a row, or of *.track.json, each one such row: id, video, clip, video_dataset, fps,
start_frame, end_frame, w, h, exp, mask_id[], points[{object_id, points[[x, y] or empty per frame]}] in pixels. The expression
names all objects of the row: they share it as their label, so only a single object has a name to be asked by; counts use the
label. At most 16 frames, by time. The scene's video is the clip, {video_dataset}/{clip}.mp4 below the folder.
"""

import os
from functools import lru_cache
from typing import Any

from ov2_core.errors import BadItemError
from ov2_core.spatial.readers.arkit import validated
from ov2_core.spatial.readers.boxes import spread
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import read_json

NAME = "molmo2-tracks"
MAX_FRAMES = 16
SUFFIX = ".track.json"


def find(folder: str) -> list[str]:
    """File names, of Parquet with "#" and the row, from 0."""
    names = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(SUFFIX):
            names.append(name)
        elif name.endswith(".parquet"):
            names += [f"{name}#{row:07d}" for row in range(_num_rows(os.path.join(folder, name)))]
    return names


def index_file(folder: str) -> str:
    return folder.partition("#")[0]


def read(folder: str) -> Scene:
    """folder: the JSON file of a clip, or a Parquet file, "#" and the row. Raises BadItemError."""
    path, _, number = folder.partition("#")
    name = os.path.basename(path).removesuffix(SUFFIX).removesuffix(".parquet") + (f"-{number}" if number else "")
    row = _row(path, int(number), name) if number else read_json(folder)
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


def _num_rows(path: str) -> int:
    """0 where the file is no Parquet with the columns that tell these rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            return int(table.metadata.num_rows) if {"exp", "mask_id", "points"} <= set(table.schema_arrow.names) else 0
    except (OSError, pa.ArrowException):
        return 0


def _row(path: str, number: int, name: str) -> Any:
    import pyarrow as pa

    try:
        stat = os.stat(path)
        first, table = _row_group(path, number, stat.st_mtime_ns)
        return table.slice(number - first, 1).to_pylist()[0]
    except (OSError, IndexError, UnicodeDecodeError, pa.ArrowException) as error:
        message = f"scene {name}: {path}, row {number}: {error}"
        raise BadItemError("malformed_scene", message, stage="spatial") from error


def _row_group(path: str, number: int, mtime_ns: int) -> tuple[int, Any]:
    """(first row, table) of the row group that holds a row; the last one read is kept, for rows are asked for in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        first = 0
        for group in range(table.metadata.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if number < first + size:
                return first, _read_group(path, group, mtime_ns)
            first += size
    raise IndexError("the file holds fewer rows")


@lru_cache(maxsize=1)
def _read_group(path: str, group: int, mtime_ns: int) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        return table.read_row_group(group)
