"""Molmo2-VideoTrack (Parquet, JSON lines): points of objects in every frame of a clip, to "Track the ..." and tracks text.

`points` [{object_id, points [[x, y] or empty per frame]}] in pixels of w x h; frame 0 is the clip's first; start_frame and
end_frame (inclusive) place the clip in its video. Objects are numbered from 1 in the order of `mask_id`.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field

from ov2_core.data.importers.conversation import converse
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import file_ref, fill_template, make_record
from ov2_core.data.importers.rows import RawRow, list_files, read_json, read_parquet
from ov2_core.data.tracking import TrackPoint, format_tracks, to_unit_thousand
from ov2_core.errors import BadItemError
from schemas.record import Record
from schemas.records import RecordOrigin


class _Object(Record):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)
    object_id: str
    points: list[list[float] | None]


class _Row(Record):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)
    fps: float = Field(gt=0)
    start_frame: int = Field(ge=0)
    end_frame: int = Field(ge=0)
    w: int = Field(gt=0)
    h: int = Field(gt=0)
    exp: str = Field(min_length=1)
    mask_id: list[str]
    points: list[_Object]


def import_molmo2_track(
    path: str,
    *,
    source: str = "molmo2-videotrack",
    media_root: str | None = None,
    media_template: str = "{video_dataset}/{clip}.mp4",
    cut: bool = True,
    sampling_fps: float = 2.0,
) -> Iterator[ImportedItem]:
    """Records of tracking rows.

    Args:
        media_template: path of a row's video below media_root.
        cut: the files are the clips themselves; else they are whole videos, e.g. "{video_dataset}/{video}.mp4", and the
            clip's range goes into the medium.
        sampling_fps: points a second that are written, the released training's 2.
    """
    if not sampling_fps > 0:
        raise ValueError(f"sampling_fps must be > 0, got {sampling_fps}")

    def make(value: dict[str, Any], origin: RecordOrigin) -> Made:
        row = _Row.model_validate(value)
        num_frames = row.end_frame - row.start_frame + 1
        if num_frames < 1:
            raise _bad(f"end_frame ({row.end_frame}) lies before start_frame ({row.start_frame})")
        medium = file_ref(
            "video",
            fill_template(media_template, value),
            source=source,
            origin=origin,
            root=media_root,
            start_seconds=None if cut else row.start_frame / row.fps,
            end_seconds=None if cut else (row.end_frame + 1) / row.fps,
        )
        points = _points(row, num_frames, sampling_fps)
        answer = format_tracks(points, decimals=_decimals(points, row.fps))
        question = f"<video>\nTrack the {row.exp.strip()}"
        messages, repairs = converse([("user", question), ("assistant", answer)], ["video"])
        tags = [f"source:{value['video_dataset']}"] if value.get("video_dataset") else []
        record = make_record(
            source=source,
            origin=origin,
            media=[medium],
            messages=messages,
            repairs=repairs,
            given_id=value.get("id"),
            tags=tags,
        )
        return Made(record=record)

    for file in list_files(path, (".parquet", ".jsonl", ".json")):
        yield from import_rows(molmo_rows(file), make)


def molmo_rows(file: str) -> Iterator[RawRow]:
    """Rows of a Parquet or JSON file."""
    return read_parquet(file) if file.lower().endswith(".parquet") else read_json(file)


def _points(row: _Row, num_frames: int, sampling_fps: float) -> list[TrackPoint]:
    numbers = {mask: number for number, mask in enumerate(row.mask_id, start=1)}
    if len(numbers) != len(row.mask_id):
        raise _bad("mask_id names an object twice")
    frames = sorted({round(k * row.fps / sampling_fps) for k in range(int(num_frames * sampling_fps / row.fps) + 1)})
    points: list[TrackPoint] = []
    seen: set[str] = set()
    for item in row.points:
        if item.object_id not in numbers or item.object_id in seen:
            raise _bad(f"points: object {item.object_id!r} is not in mask_id {row.mask_id}, or stands there twice")
        seen.add(item.object_id)
        if len(item.points) > num_frames:
            raise _bad(
                f"points: {len(item.points)} frames for object {item.object_id!r}, but the clip has {num_frames}"
            )
        for frame in frames:
            place = item.points[frame] if frame < len(item.points) else None
            if not place:
                continue
            if len(place) != 2:
                raise _bad(f"points: frame {frame} of object {item.object_id!r}: expected [x, y], got {place}")
            try:
                x, y = to_unit_thousand(place[0], row.w), to_unit_thousand(place[1], row.h)
            except ValueError as error:
                raise _bad(f"points: frame {frame} of object {item.object_id!r}: {error}") from error
            points.append(TrackPoint(frame / row.fps, numbers[item.object_id], x, y))
    if not points:
        raise _bad(f"no object has a point in any of the frames sampled at {sampling_fps} a second")
    return points


def _decimals(points: list[TrackPoint], fps: float) -> int:
    """The fewest decimals, 1 at least, at which a written time still names its frame: one is enough at 2 points a second."""

    def named(decimals: int) -> bool:
        return all(round(round(p.seconds, decimals) * fps) == round(p.seconds * fps) for p in points)

    return next((decimals for decimals in range(1, 6) if named(decimals)), 6)


def _bad(message: str) -> BadItemError:
    return BadItemError("malformed_row", message, stage="import")
