"""Molmo2-VideoPoint (Parquet, JSON lines): points at instants of a video, to "Point to the ..." and tracks text.

`points` [[{x, y}] per instant] beside `two_fps_timestamps` (or `raw_timestamps`), seconds of the whole video; the answer counts
from clip_start. The scale is unverified: the released loader's evaluation writes 0-100, which is the default; `scale` says
otherwise. Points are numbered through the clip from 1, so the last id is the count.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field

from ov2_core.data.importers.conversation import Turns, converse
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import file_ref, fill_template, make_record
from ov2_core.data.importers.molmo2_track import molmo_rows
from ov2_core.data.importers.rows import list_files
from ov2_core.data.tracking import TrackPoint, format_tracks, to_unit_thousand
from ov2_core.errors import BadItemError
from schemas.record import Record
from schemas.records import RecordOrigin


class _Point(Record):
    model_config = ConfigDict(extra="ignore")
    x: float
    y: float


class _Row(Record):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)
    video_id: str = Field(min_length=1)
    label: str = Field(min_length=1)
    points: list[list[_Point]]
    two_fps_timestamps: list[float] | None = None
    raw_timestamps: list[float] | None = None
    clip_start: float | None = Field(default=None, ge=0)
    clip_end: float | None = Field(default=None, gt=0)
    question: str | None = None
    count: int | None = Field(default=None, ge=0)
    annotator_unsure: bool | None = None


def import_molmo2_point(
    path: str,
    *,
    source: str = "molmo2-videopoint",
    media_root: str | None = None,
    media_template: str = "{video_id}.mp4",
    cut: bool = False,
    scale: float = 100.0,
    count_round: bool = True,
) -> Iterator[ImportedItem]:
    """Records of pointing rows; rows of an unsure annotator carry the tag `annotator_unsure`.

    Args:
        cut: the files are the clips themselves; else they are whole videos and the range goes into the medium.
        scale: what a coordinate of the right or bottom edge is written as: 100, 1 or 1000.
        count_round: ask the row's `question` (how many) in a second round, where `count` is the number of points; where it is
            not, the round is left out and the record tagged `count_differs`.
    """
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}")

    def make(value: dict[str, Any], origin: RecordOrigin) -> Made:
        row = _Row.model_validate(value)
        medium = file_ref(
            "video",
            fill_template(media_template, value),
            source=source,
            origin=origin,
            root=media_root,
            start_seconds=None if cut else row.clip_start,
            end_seconds=None if cut else row.clip_end,
        )
        points = _points(row, scale)
        tags = [f"source:{value['video_source']}"] if value.get("video_source") else []
        tags += [f"category:{value['category']}"] if value.get("category") else []
        tags += ["annotator_unsure"] if row.annotator_unsure else []
        turns: Turns = [("user", f"<video>\nPoint to the {row.label.strip()}"), ("assistant", format_tracks(points))]
        if count_round and row.question and row.count is not None:
            if row.count == len(points):
                turns += [("user", row.question), ("assistant", str(row.count))]
            else:
                tags.append("count_differs")
        messages, repairs = converse(turns, ["video"])
        record = make_record(
            source=source,
            origin=origin,
            media=[medium],
            messages=messages,
            repairs=repairs,
            given_id=row.video_id,
            tags=tags,
        )
        return Made(record=record)

    for file in list_files(path, (".parquet", ".jsonl", ".json")):
        yield from import_rows(molmo_rows(file), make)


def _points(row: _Row, scale: float) -> list[TrackPoint]:
    times = row.two_fps_timestamps if row.two_fps_timestamps is not None else row.raw_timestamps
    if times is None:
        raise _bad("neither two_fps_timestamps nor raw_timestamps is given")
    if len(times) != len(row.points):
        raise _bad(f"{len(row.points)} lists of points for {len(times)} timestamps")
    start = row.clip_start or 0.0
    points: list[TrackPoint] = []
    for seconds, at in sorted(zip(times, row.points, strict=True), key=lambda pair: pair[0]):
        if seconds < start or (row.clip_end is not None and seconds > row.clip_end):
            raise _bad(f"the timestamp {seconds} lies outside the clip [{start}, {row.clip_end}]")
        for point in sorted(at, key=lambda p: (p.x, p.y)):
            try:
                x, y = to_unit_thousand(point.x, scale), to_unit_thousand(point.y, scale)
            except ValueError as error:
                raise _bad(f"points at {seconds} s: {error}; see the importer's option `scale`") from error
            points.append(TrackPoint(seconds - start, len(points) + 1, x, y))
    return points


def _bad(message: str) -> BadItemError:
    return BadItemError("malformed_row", message, stage="import")
