"""Manifest ids to sample keys: safe as a tar member's stem, unique in the run.

Enters: an id as the user wrote it (any text). Leaves: a key of [A-Za-z0-9_-], 1 to 72 characters. An id that is already
such a key is kept, unless it has the form that we give to hashed ones; every other id becomes `slug-<16 hex digits>`.
So the two kinds never meet, and two ids share a key only if 64 bits of their sha256 agree, which `IdLedger` notices.
"""

import hashlib
import json
import posixpath
import re
import sqlite3

from ov2_core.redact import redacted
from schemas.video import ManifestRow

_VERBATIM = re.compile(r"[A-Za-z0-9_-]{1,72}")
_HASHED = re.compile(r"(?s).*-[0-9a-f]{16}")
_SLUG_CHARACTERS = 55


def key_of(id: str) -> str:
    """The sample key of an id; injective up to 64-bit collisions of sha256.

    Raises:
        ValueError: the id is empty.
    """
    if not id:
        raise ValueError("an id must not be empty; leave it out to have one derived")
    if _VERBATIM.fullmatch(id) and not _HASHED.fullmatch(id):
        return id
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{_slug(id)}-{digest}"


def derived_id(row: ManifestRow) -> str:
    """The id of a row that has none: the stem of its URI and a digest of URI, range and text.

    The URI counts as written, so a manifest that moves with its files keeps its ids.
    """
    uri = row.video or row.image or ""
    text = row.model_dump(include={"caption", "messages", "conversations"}, mode="json")
    rate = [] if row.frames_fps is None else [row.frames_fps]
    content = json.dumps([uri, row.start, row.end, text, *rate], sort_keys=True)
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    stem = posixpath.splitext(posixpath.basename(redacted(uri).split("?", 1)[0].rstrip("/")))[0]
    return f"{_slug(stem)}_{digest}"


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", text[: 4 * _SLUG_CHARACTERS])[:_SLUG_CHARACTERS].strip("-")
    return slug or "item"


class IdLedger:
    """Which keys a run has already used. Lives in a private temporary database, so memory stays bounded.

    Not thread-safe; close it or use it as a context manager.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA cache_size=-16384")
        self._database.execute("CREATE TABLE used (key TEXT PRIMARY KEY, line INTEGER, digest BLOB) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def claim(self, id: str, line: int) -> tuple[str, str | None]:
        """(key, None) when the id is new, else (key, why it is refused), naming the line that took it."""
        key = key_of(id)
        digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()
        try:
            self._database.execute("INSERT INTO used VALUES (?, ?, ?)", (key, line, digest))
        except sqlite3.IntegrityError:
            row = self._database.execute("SELECT line, digest FROM used WHERE key = ?", (key,)).fetchone()
            what = "the id" if row[1] == digest else f"the key {key}, made of another id,"
            return key, f"{what} is already used by line {row[0]}; ids must be unique in a manifest"
        return key, None

    def holds(self, id: str) -> bool:
        """Whether the id, or another that gives the same key, was claimed."""
        return self._database.execute("SELECT 1 FROM used WHERE key = ?", (key_of(id),)).fetchone() is not None

    def close(self) -> None:
        """Drops the database."""
        self._database.close()

    def __enter__(self) -> "IdLedger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
