"""VideoChat-Flash: a YAML list of annotation files, each a JSON array or JSON lines of
`{video or image: str or list, conversations, start?, end? (seconds)}`.

Entry of the YAML (below `datasets:` or a bare list): json_path, data_root, sampling_strategy (all, first:N, first2:N ...,
end:N; N a count or a percentage), media_type (video, image, text, mix; absent: by the row), video_read_type (`img` and
`frame`: a folder of frames, so many a second as the row's `fps` says). What the strategy leaves out is no item. Store prefixes
such as "p2:" before s3:// are dropped.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import fsspec
import yaml
from pydantic import ValidationError

from ov2_core.data.importers.conversation import converse, text_of
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import file_ref, make_record, seconds_of
from ov2_core.data.importers.rows import RawRow, list_files, read_json
from ov2_core.data.manifest import resolve_uri
from ov2_core.data.row_files import condensed
from ov2_core.errors import BadItemError
from schemas.record import Record
from schemas.records import MediaKind, MediaRef, RecordOrigin

_STORE_PREFIX = re.compile(r"[A-Za-z0-9_]+:(?=s3://)")
_STRATEGY = re.compile(r"(first|first2|first3|first4|end):(\d+)(%?)")


class DatasetEntry(Record):
    """One entry of the YAML."""

    json_path: str
    data_root: str = ""
    sampling_strategy: str = "all"
    media_type: str | None = None
    video_read_type: str | None = None


def import_videochat_flash(
    path: str, *, source: str = "videochat-flash", media_root: str | None = None, frames_fps: float = 1.0
) -> Iterator[ImportedItem]:
    """Records of all entries, in the YAML's order.

    Args:
        media_root: stands before every relative data_root; relative json_paths are relative to the YAML.
        frames_fps: rate of folders of frames whose row gives no `fps`; 3 where the path names TVQA, as upstream's reader has it.

    Raises:
        ValueError: a YAML or an entry that cannot be used, naming it.
    """
    for file in list_files(path, (".yaml", ".yml")):
        for entry in _entries(file):
            annotations = resolve_uri(entry.json_path, file)
            rows = _sampled(annotations, entry.sampling_strategy)
            yield from import_rows(
                rows, _maker(entry, source=source, media_root=media_root, frames_fps=float(frames_fps))
            )


def _maker(entry: DatasetEntry, *, source: str, media_root: str | None, frames_fps: float) -> Any:
    data_root = _STORE_PREFIX.sub("", entry.data_root)

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        kinds = {"video", "image"} & {name for name in row if row[name] not in (None, "", [])}
        if entry.media_type in ("video", "image") and entry.media_type not in kinds:
            raise BadItemError(
                "malformed_row", f"{entry.media_type}: missing, but it is the media_type", stage="import"
            )
        if entry.media_type == "text":
            kinds = set()
        elif entry.media_type in ("video", "image"):
            kinds = {entry.media_type}
        if len(kinds) > 1:
            raise BadItemError("malformed_row", "both 'video' and 'image' are given; expected one", stage="import")
        media: list[MediaRef] = []
        for name in kinds:
            kind: MediaKind = "video" if name == "video" else "image"
            paths = row[name] if isinstance(row[name], list) else [row[name]]
            media = [_ref(kind, item, row, origin) for item in paths]
        messages, repairs = converse(text_of(row), [ref.kind for ref in media])
        record = make_record(
            source=source, origin=origin, media=media, messages=messages, repairs=repairs, given_id=row.get("id")
        )
        return Made(record=record)

    def _ref(kind: MediaKind, item: Any, row: dict[str, Any], origin: RecordOrigin) -> MediaRef:
        if isinstance(item, str):
            item = _STORE_PREFIX.sub("", item)
            if data_root and "://" not in item and not item.startswith("/"):
                item = f"{data_root.rstrip('/')}/{item}"
        return file_ref(
            kind,
            item,
            source=source,
            origin=origin,
            root=media_root,
            start_seconds=seconds_of(row.get("start"), "start") if kind == "video" else None,
            end_seconds=seconds_of(row.get("end"), "end") if kind == "video" else None,
            frames_fps=_rate(item, row) if kind == "video" and entry.video_read_type in ("img", "frame") else None,
        )

    def _rate(item: Any, row: dict[str, Any]) -> float:
        given = row.get("fps")
        if given is None:
            return 3.0 if "tvqa" in str(item).lower() else frames_fps
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise BadItemError("malformed_row", f"fps: expected a number, got {given!r:.40}", stage="import")
        return float(given)

    return make


def _entries(file: str) -> list[DatasetEntry]:
    try:
        with fsspec.open(file, "rb") as stream:
            value = yaml.safe_load(stream)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not readable as YAML: {error}") from error
    items = value.get("datasets") if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise ValueError(f"{file}: expected `datasets:` with a list of {{json_path, data_root, ...}}")
    entries = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{file}: datasets[{number}]: expected {{json_path, data_root, ...}}, got {item!r:.80}")
        known = {name: item[name] for name in DatasetEntry.model_fields if item.get(name) is not None}
        try:
            entry = DatasetEntry.model_validate(known)
        except ValidationError as error:
            raise ValueError(f"{file}: datasets[{number}]: {condensed(error)}") from error
        if entry.sampling_strategy != "all" and not _STRATEGY.fullmatch(entry.sampling_strategy):
            raise ValueError(
                f"{file}: datasets[{number}]: sampling_strategy {entry.sampling_strategy!r} is not read; "
                "expected all, first:N, first2:N, first3:N, first4:N or end:N, N a count or a percentage"
            )
        if entry.media_type not in (None, "video", "image", "text", "mix"):
            raise ValueError(f"{file}: datasets[{number}]: media_type must be video, image, text or mix")
        entries.append(entry)
    return entries


def _sampled(file: str, strategy: str) -> Iterator[RawRow]:
    match = _STRATEGY.fullmatch(strategy)
    if match is None:
        return read_json(file)
    name, count = match[1], int(match[2])
    if match[3] or name == "end":
        total = sum(1 for _ in read_json(file))  # a second reading costs less than keeping the rows
        count = math.ceil(count * total / 100) if match[3] else count
        if name == "end":
            return itertools.islice(read_json(file), max(0, total - count), None)
    block = int(name[5:] or 1)
    return itertools.islice(read_json(file), (block - 1) * count, block * count)
