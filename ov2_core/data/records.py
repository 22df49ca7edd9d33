"""Training records between import and stage: files of them, the manifest of their media, and the binding to token shards.

    records --export_media--> manifest.jsonl --ov2 tokenize--> RUN --check_binding--> stage

Text meets pixels by key alone: a record's medium and a token run's sample belong together iff the key is equal and the sample's
own record names the same id, kind and range. Order plays no part, so records may be shuffled, cut and merged at will.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from ov2_core.data.importers.item import ImportedItem
from ov2_core.data.importers.record_lines import import_records
from ov2_core.data.importers.rows import read_parquet_cell
from ov2_core.errors import BadItemError
from ov2_core.storage.files import Store
from schemas.records import MediaRef, TrainingRecord
from schemas.tokens import SampleRecord
from schemas.video import ManifestRow

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaExport:
    """What export_media wrote."""

    num_media: int
    """Distinct media: rows of the manifest."""
    num_refs: int
    """References to them by records."""
    num_embedded_bytes: int
    left_out: dict[str, str]
    """Key to reason, for media that a manifest cannot name (embedded images whose bytes are other ones now)."""


def write_records(path: str, records: Iterable[TrainingRecord]) -> int:
    """JSON lines, one a record, to a local path; read_records reads them. Returns their number."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            count += 1
    return count


def read_records(path: str) -> Iterator[TrainingRecord]:
    """Records of JSON lines, as a stream.

    Raises:
        ValueError: a line that is no record, naming it.
    """
    for item in import_records(path):
        if item.quarantined is not None:
            raise ValueError(f"{item.quarantined.message}; write the records again")
        if item.record is not None:
            yield item.record


def manifest_row(ref: MediaRef, *, uri: str | None = None) -> ManifestRow:
    """The row by which `ov2 tokenize` makes this medium's sample, under this medium's key and without text.

    Args:
        uri: where embedded bytes were written.

    Raises:
        BadItemError: unsupported, for what a manifest cannot name.
    """
    uri = uri or ref.uri
    if uri is None:
        raise BadItemError(
            "unsupported", f"{ref.id}: a medium without a file cannot stand in a manifest", stage="import"
        )
    if ref.kind == "image":
        return ManifestRow(image=uri, id=ref.id)
    return ManifestRow(video=uri, id=ref.id, start=ref.start_seconds, end=ref.end_seconds, frames_fps=ref.frames_fps)


def export_media(items: Iterable[ImportedItem], folder: str) -> MediaExport:
    """Writes folder/manifest.jsonl with each medium once, and embedded images below folder/media.

    Media that are tokenized already (`run`) are left alone. Memory is bounded by one item. The folder may be remote.

    Raises:
        ValueError: two different media under one key, which two sources of one name make; or an embedded image whose bytes are
            neither in the item nor at their place.
    """
    store = Store(folder)
    counts = {"media": 0, "refs": 0, "bytes": 0}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ov2-media-") as scratch, _Seen() as seen:
        local = os.path.join(scratch, "manifest.jsonl")
        with open(local, "wb") as lines:
            _export(items, store, seen, lines, counts, left_out)
        store.put_file(local, "manifest.jsonl", move=True)
    return MediaExport(
        num_media=counts["media"],
        num_refs=counts["refs"],
        num_embedded_bytes=counts["bytes"],
        left_out=left_out,
    )


def _export(
    items: Iterable[ImportedItem],
    store: Store,
    seen: "_Seen",
    lines: IO[bytes],
    counts: dict[str, int],
    left_out: dict[str, str],
) -> None:
    for item in items:
        for ref in item.record.media if item.record is not None else ():
            if ref.run is not None:
                continue
            counts["refs"] += 1
            if not seen.is_new(ref):
                continue
            try:
                uri = None
                if ref.embedded is not None:
                    data = item.payloads.get(ref.key) or read_embedded(ref)
                    uri = f"media/{ref.key[-2:]}/{ref.key}.{_suffix(data)}"
                    store.write_bytes(uri, data)
                    counts["bytes"] += len(data)
                row = manifest_row(ref, uri=uri)
            except BadItemError as error:
                left_out[ref.key] = str(error)
                continue
            counts["media"] += 1
            lines.write(row.model_dump_json(exclude_defaults=True).encode() + b"\n")


def read_embedded(ref: MediaRef) -> bytes:
    """The bytes of an embedded image, held against their sha256.

    Raises:
        BadItemError: damaged_sample, when other bytes lie there now.
        ValueError: the medium is not embedded, or its file cannot be read.
    """
    place = ref.embedded
    if place is None:
        raise ValueError(f"{ref.id} is not embedded; it lies at {ref.uri or ref.run}")
    cell = read_parquet_cell(place.uri, place.row, place.column)
    item = cell[place.index] if isinstance(cell, list) and place.index < len(cell) else cell
    data = item.get("bytes") if isinstance(item, dict) else item
    if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != place.sha256:
        raise BadItemError(
            "damaged_sample",
            f"{place.uri}: row {place.row + 1}, {place.column}[{place.index}] is not the image that was imported; import again",
            stage="import",
        )
    return data


def check_binding(ref: MediaRef, key: str, sample: SampleRecord) -> None:
    """Proves that the sample under `key` is this medium.

    Raises:
        BadItemError: unbound_media, naming what differs.
    """
    there = sample.provenance
    pairs = {
        "key": (ref.key, key),
        "id": (ref.id, there.id),
        "kind": (ref.kind, sample.media),
        "start_seconds": (ref.start_seconds, there.start_seconds),
        "end_seconds": (ref.end_seconds, there.end_seconds),
    }
    if wrong := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        what = "; ".join(
            f"{name}: the record has {mine!r}, the sample {theirs!r}" for name, (mine, theirs) in wrong.items()
        )
        raise BadItemError("unbound_media", f"{ref.id} is not the sample {key}: {what}", stage="import")


def _suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((suffix for signature, suffix in _SIGNATURES if data.startswith(signature)), "img")


class _Seen:
    """Which media were met, and as what, in a private temporary database."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("CREATE TABLE media (key TEXT PRIMARY KEY, digest BLOB, place TEXT) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def is_new(self, ref: MediaRef) -> bool:
        """False for one met before. Raises ValueError where the key stands for another medium."""
        sha256 = ref.embedded.sha256 if ref.embedded is not None else None
        place = ref.uri or sha256 or ""
        content = json.dumps([ref.id, ref.kind, place, ref.start_seconds, ref.end_seconds, ref.frames_fps])
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
        try:
            self._database.execute("INSERT INTO media VALUES (?, ?, ?)", (ref.key, digest, place))
        except sqlite3.IntegrityError:
            there = self._database.execute("SELECT digest, place FROM media WHERE key = ?", (ref.key,)).fetchone()
            if there[0] != digest:
                raise ValueError(
                    f"the key {ref.key} stands for {there[1]} and for {place}; give sources with media of their own "
                    "different names"
                ) from None
            return False
        return True

    def __enter__(self) -> "_Seen":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
