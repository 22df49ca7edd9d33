"""OneVision-2 captions: `split_{30s,60s,180s,gt10min}.jsonl`, and `mapping_*.csv` that place each clip in its video.

A caption is bound to its clip by path: the caption's own path is looked up among the mapping's `dst_path`s, whole or, where
only one row has it, by its last part. Never by order; a caption whose clip the mapping does not name is quarantined as
unbound_media. The captions' columns are unverified: the path may stand in any of PATH_COLUMNS, alone or in a list of one, the
text in caption, messages or conversations.
"""

import os
import posixpath
import sqlite3
from collections.abc import Iterator
from typing import Any

from ov2_core.config import TextConfig
from ov2_core.data.importers.conversation import Turns, converse, text_of
from ov2_core.data.importers.item import ImportedItem, Made, import_rows, refused
from ov2_core.data.importers.media import file_ref, fill_template, make_record, seconds_of
from ov2_core.data.importers.rows import RawRow, list_files, read_csv, read_json
from ov2_core.errors import BadItemError
from schemas.records import RecordOrigin

PATH_COLUMNS = ("video", "videos", "dst_path", "video_path", "clip", "path")
CAPTION_COLUMNS = ("caption", "text")


def import_captions(
    path: str,
    *,
    source: str = "onevision-2-captions",
    mapping: str | None = None,
    media_root: str | None = None,
    cut: bool = True,
    media_template: str = "{youtube_id}.mp4",
    text: TextConfig | None = None,
) -> Iterator[ImportedItem]:
    """Records of captions.

    Args:
        mapping: a CSV, folder or glob of CSVs with dst_path, youtube_id, start_time, end_time. Bad rows of it are items too.
        cut: media_root holds the clips, at the captions' own paths; else it holds whole videos at `media_template`, filled from
            the mapping's row, whose times go into the medium.

    Raises:
        ValueError: `cut=False` without a mapping.
    """
    if mapping is None and not cut:
        raise ValueError("cut=False needs `mapping`: without it nobody knows where a clip lies in its video")
    prompt = (text or TextConfig()).video_prompt
    clips = ClipMapping() if mapping is not None else None

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        written = _path(row)
        tags: list[str] = []
        if clips is None:
            medium = file_ref("video", written, source=source, origin=origin, root=media_root)
        else:
            clip = clips.find(written)
            tags = [f"youtube:{clip['youtube_id']}"] if clip["youtube_id"] else []
            medium = file_ref(
                "video",
                written if cut else fill_template(media_template, clip),
                source=source,
                origin=origin,
                root=media_root,
                start_seconds=None if cut else clip["start_seconds"],
                end_seconds=None if cut else clip["end_seconds"],
            )
        messages, repairs = converse(_turns(row, prompt), ["video"])
        stem = posixpath.splitext(posixpath.basename(written))[0]
        record = make_record(
            source=source,
            origin=origin,
            media=[medium],
            messages=messages,
            repairs=repairs,
            given_id=row.get("id") or stem,
            tags=tags,
        )
        return Made(record=record)

    try:
        if clips is not None and mapping is not None:
            for file in list_files(mapping, (".csv", ".csv.gz")):
                yield from clips.load(file)
        for file in list_files(path, (".jsonl", ".jsonl.gz", ".json")):
            yield from import_rows(read_json(file), make)
    finally:
        if clips is not None:
            clips.close()


class ClipMapping:
    """Clips by path, in a private temporary database: millions of rows in bounded memory."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute(
            "CREATE TABLE clips (path TEXT PRIMARY KEY, name TEXT, youtube TEXT, start REAL, end REAL) WITHOUT ROWID"
        )
        self._indexed = False

    def load(self, file: str) -> Iterator[ImportedItem]:
        """Adds a CSV's rows; yields the quarantined ones."""
        self._database.execute("DROP INDEX IF EXISTS names")
        self._indexed = False
        self._database.execute("BEGIN")
        for row in read_csv(file):
            if row.value is None:
                yield refused(row, "malformed_row", row.error or "")
                continue
            problem = self._add(row)
            if problem is not None:
                yield refused(row, *problem)
        self._database.execute("COMMIT")

    def find(self, path: str) -> dict[str, Any]:
        """youtube_id, start_seconds, end_seconds and dst_path of the clip at `path`.

        Raises:
            BadItemError: unbound_media, when no row has the path, or several end in its last part.
        """
        if not self._indexed:
            self._database.execute("CREATE INDEX names ON clips (name)")
            self._indexed = True
        columns = "SELECT path, youtube, start, end FROM clips"
        found = self._database.execute(f"{columns} WHERE path = ?", (_normal(path),)).fetchall()
        if not found:
            found = self._database.execute(f"{columns} WHERE name = ? LIMIT 2", (posixpath.basename(path),)).fetchall()
        if len(found) != 1:
            how_many = "no row" if not found else "several rows, none with the whole path,"
            raise BadItemError("unbound_media", f"{path}: {how_many} of the mapping name this clip", stage="import")
        dst_path, youtube_id, start, end = found[0]
        return {"dst_path": dst_path, "youtube_id": youtube_id, "start_seconds": start, "end_seconds": end}

    def close(self) -> None:
        """Drops the database."""
        self._database.close()

    def _add(self, row: RawRow) -> tuple[Any, str] | None:
        value = row.value or {}
        path = value.get("dst_path", "")
        try:
            start = seconds_of(value.get("start_time"), "start_time")
            end = seconds_of(value.get("end_time"), "end_time")
            path.encode("utf-8")
        except BadItemError as error:
            return error.reason, str(error)
        except UnicodeEncodeError:
            return "malformed_row", "dst_path is not UTF-8"
        if not path.strip():
            return "malformed_row", "dst_path: missing"
        if start is not None and end is not None and end <= start:
            return "malformed_row", f"end_time ({end}) must be greater than start_time ({start})"
        entry = (_normal(path), posixpath.basename(path), value.get("youtube_id") or None, start, end)
        try:
            self._database.execute("INSERT INTO clips VALUES (?, ?, ?, ?, ?)", entry)
        except sqlite3.IntegrityError:
            same = self._database.execute("SELECT * FROM clips WHERE path = ?", entry[:1]).fetchone()
            if same != entry:
                return (
                    "duplicate_id",
                    f"{path} is already mapped otherwise, to {same[2]} [{same[3]}, {same[4]}]; the first holds",
                )
        return None


def _normal(path: str) -> str:
    return posixpath.normpath(path.strip()).lstrip("/")


def _path(row: dict[str, Any]) -> str:
    for name in PATH_COLUMNS:
        value = row.get(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return os.fspath(value)
        if value not in (None, "", []):
            raise BadItemError("malformed_row", f"{name}: expected one path, got {value!r:.80}", stage="import")
    raise BadItemError("malformed_row", f"no path in any of {', '.join(PATH_COLUMNS)}", stage="import")


def _turns(row: dict[str, Any], prompt: str) -> Turns:
    for name in CAPTION_COLUMNS:
        if row.get(name) is not None:
            if not isinstance(row[name], str):
                raise BadItemError("malformed_row", f"{name}: expected text, got {row[name]!r:.80}", stage="import")
            return [("user", prompt), ("assistant", row[name])]
    if row.get("messages") is None and row.get("conversations") is None:
        expected = ", ".join((*CAPTION_COLUMNS, "messages", "conversations"))
        raise BadItemError("malformed_row", f"no text in any of {expected}", stage="import")
    return text_of(row)
