"""A source's images and videos to MediaRefs: where they lie and the key that binds text to them. Nothing is fetched.

The key of a file is made of the dataset's name, the path as the dataset writes it and the range, so it survives a move of
the files and is the same in every record that asks about them; the key of embedded bytes is their sha256.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Sequence
from typing import Any

from ov2_core.data.keys import key_of
from ov2_core.data.manifest import resolve_uri
from ov2_core.errors import BadItemError
from schemas.records import EmbeddedBytes, MediaKind, MediaRef, Modality, RecordOrigin, TrainingRecord
from schemas.video import Message

_STEM_CHARACTERS = 48


def file_ref(
    kind: MediaKind,
    path: Any,
    *,
    source: str,
    origin: RecordOrigin,
    root: str | None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    frames_fps: float | None = None,
) -> MediaRef:
    """A media file that the row names by `path`, relative to `root` or, without one, to the row's own file.

    Raises:
        BadItemError: malformed_row, refused_uri.
    """
    if not isinstance(path, str) or not path.strip():
        raise BadItemError("malformed_row", f"{kind}: expected a path or URL, got {path!r:.80}", stage="import")
    uri = resolve_uri(path, f"{root.rstrip('/')}/_" if root else origin.file)
    content = json.dumps([source, path, start_seconds, end_seconds, *([] if frames_fps is None else [frames_fps])])
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    id_ = f"{_slug(posixpath.splitext(posixpath.basename(path.split('?', 1)[0].rstrip('/')))[0])}_{digest}"
    return MediaRef(
        kind=kind,
        key=key_of(id_),
        id=id_,
        uri=uri,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        frames_fps=frames_fps,
    )


def embedded_ref(data: Any, *, origin: RecordOrigin, column: str, index: int) -> MediaRef:
    """An image whose bytes lie in the row.

    Raises:
        BadItemError: malformed_row.
    """
    if not isinstance(data, bytes) or not data:
        raise BadItemError("malformed_row", f"{column}[{index}]: no image bytes", stage="import")
    digest = hashlib.sha256(data).hexdigest()
    id_ = f"img_{digest[:40]}"
    place = EmbeddedBytes(
        uri=origin.file, row=origin.row - 1, column=column, index=index, num_bytes=len(data), sha256=digest
    )
    return MediaRef(kind="image", key=key_of(id_), id=id_, embedded=place)


def image_refs(
    value: Any, column: str, *, source: str, origin: RecordOrigin, root: str | None
) -> tuple[list[MediaRef], dict[str, bytes]]:
    """The images of a Parquet column: null, one or a list of {bytes, path}, of bytes or of paths.

    Returns the refs in order and the embedded bytes by key.

    Raises:
        BadItemError: malformed_row, refused_uri.
    """
    items = [] if value is None else value if isinstance(value, list) else [value]
    refs: list[MediaRef] = []
    payloads: dict[str, bytes] = {}
    for index, item in enumerate(items):
        if isinstance(item, dict):
            item = item.get("bytes") or item.get("path") or None
        if isinstance(item, bytes):
            ref = embedded_ref(item, origin=origin, column=column, index=index)
            payloads[ref.key] = item
        elif item is None:
            raise BadItemError("malformed_row", f"{column}[{index}]: neither bytes nor a path", stage="import")
        else:
            ref = file_ref("image", item, source=source, origin=origin, root=root)
        refs.append(ref)
    return refs, payloads


def make_record(
    *,
    source: str,
    origin: RecordOrigin,
    media: Sequence[MediaRef],
    messages: Sequence[Message],
    repairs: Sequence[str],
    given_id: Any = None,
    tags: Sequence[str] = (),
    ratings: dict[str, float] | None = None,
) -> TrainingRecord:
    """A record whose id is the row's own one, made unique by a digest of media and text: public files repeat ids freely."""
    content = json.dumps([[ref.id for ref in media], [[m.role, m.content] for m in messages]])
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    if given_id is not None and not isinstance(given_id, (str, int)):
        raise BadItemError(
            "malformed_row", f"id: expected text or a number, got {type(given_id).__name__}", stage="import"
        )
    name = str(given_id) if given_id not in (None, "") else source
    return TrainingRecord(
        id=f"{_slug(name)}_{digest}",
        source=source,
        modality=modality_of([ref.kind for ref in media]),
        media=list(media),
        messages=list(messages),
        tags=list(tags),
        ratings=ratings or {},
        repairs=list(repairs),
        origin=origin,
    )


def modality_of(kinds: Sequence[MediaKind]) -> Modality:
    """Of a record with these media."""
    if "video" in kinds:
        return "video"
    return "text" if not kinds else "image" if len(kinds) == 1 else "images"


def seconds_of(value: Any, column: str) -> float | None:
    """Seconds written as a number, as text of one, or as [HH:]MM:SS[.mmm]; None for null and blank.

    Raises:
        BadItemError: malformed_row.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        parts = [float(part) for part in str(value).split(":")]
        if len(parts) > 3 or any(not 0 <= part < float("inf") for part in parts) or any(p >= 60 for p in parts[1:]):
            raise ValueError
    except ValueError:
        raise BadItemError(
            "malformed_row", f"{column}: expected seconds or HH:MM:SS, got {value!r:.40}", stage="import"
        ) from None
    seconds = 0.0
    for part in parts:
        seconds = seconds * 60 + part
    return seconds


def fill_template(template: str, row: dict[str, Any]) -> str:
    """A path from a template such as "{data_source}/{video}" and the row's columns.

    Raises:
        BadItemError: malformed_row, for a column that the row lacks or that is no text.
    """

    def column(match: re.Match[str]) -> str:
        value = row.get(match[1])
        if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
            raise BadItemError("malformed_row", f"{match[1]}: expected text, got {value!r:.80}", stage="import")
        return str(value)

    return re.sub(r"\{(\w+)\}", column, template)


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", text[: 4 * _STEM_CHARACTERS])[:_STEM_CHARACTERS].strip("-")
    return slug or "item"
