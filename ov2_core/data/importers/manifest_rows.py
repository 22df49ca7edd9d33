"""Plain manifests (JSONL, CSV, Parquet): the rows that `ov2 tokenize` reads, so a record's key is the key of its sample."""

from collections.abc import Iterator

from ov2_core.config import TextConfig
from ov2_core.data.importers.conversation import converse
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import modality_of
from ov2_core.data.importers.rows import RawRow, list_files
from ov2_core.data.keys import derived_id, key_of
from ov2_core.data.manifest import read_manifest, resolve_uri
from ov2_core.data.messages import to_messages
from ov2_core.errors import BadItemError
from schemas.records import MediaKind, MediaRef, RecordOrigin, TrainingRecord
from schemas.video import ManifestRow

_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".csv", ".csv.gz", ".parquet", ".pq")


def import_manifest(path: str, *, source: str = "manifest", text: TextConfig | None = None) -> Iterator[ImportedItem]:
    """Records of manifest rows; a row's own `source` column becomes a tag. A row without text is quarantined."""
    config = text or TextConfig()

    def make(value: dict[str, object], origin: RecordOrigin) -> Made:
        row = ManifestRow.model_validate(value)
        kind: MediaKind = "video" if row.video is not None else "image"
        prepared = to_messages(row, config)
        if not prepared:
            raise BadItemError("invalid_text", "the row has no caption, messages or conversations", stage="import")
        messages, repairs = converse([(turn.role, turn.content) for turn in prepared], [kind])
        id_ = row.id or derived_id(row)
        medium = MediaRef(
            kind=kind,
            key=key_of(id_),
            id=id_,
            uri=resolve_uri(row.video or row.image or "", origin.file),
            start_seconds=row.start,
            end_seconds=row.end,
            frames_fps=row.frames_fps,
        )
        tags = [*row.tags, *([f"source:{row.source}"] if row.source else [])]
        record = TrainingRecord(
            id=id_,
            source=source,
            modality=modality_of([kind]),
            media=[medium],
            messages=messages,
            tags=tags,
            repairs=repairs,
            origin=origin,
        )
        return Made(record=record)

    for file in list_files(path, _SUFFIXES):
        yield from import_rows(_rows(file), make)


def _rows(file: str) -> Iterator[RawRow]:
    for item in read_manifest(file):
        if item.row is None:
            yield RawRow(file=file, row=item.line, raw=item.raw, error=item.error)
        else:
            yield RawRow(file=file, row=item.line, value=item.row.model_dump(mode="json"))
