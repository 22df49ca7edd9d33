"""What an importer yields: one item a source row, a record or a quarantine row, never nothing and never both.

Enters: raw rows of a file and a function from a row to its record. Leaves: items in the order of the rows, one at a time;
nothing is read ahead. A row that cannot become a record is quarantined under its file and line; the next row goes on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ov2_core.data.importers.rows import RawRow
from ov2_core.data.row_files import RAW_CHARACTERS, condensed
from ov2_core.errors import BadItemError
from schemas.records import RecordOrigin, TrainingRecord
from schemas.shard import QuarantineReason, QuarantineRow


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedItem:
    """One source row. Exactly one of `record` and `quarantined` is given."""

    file: str
    row: int
    """1-based, as in RecordOrigin."""
    record: TrainingRecord | None = None
    quarantined: QuarantineRow | None = None
    payloads: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Bytes of the row's embedded images by media key; empty where the media are files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a row became."""

    record: TrainingRecord
    payloads: Mapping[str, bytes] = field(default_factory=dict, repr=False)


MakeRecord = Callable[[dict[str, Any], RecordOrigin], Made]
"""A row's columns and its place to a record. Raises BadItemError or pydantic's ValidationError for a bad row."""


def import_rows(rows: Iterable[RawRow], make: MakeRecord) -> Iterator[ImportedItem]:
    """One item a row, in order."""
    for row in rows:
        if row.error is not None or row.value is None:
            yield refused(row, "malformed_row", row.error or "an empty row")
            continue
        try:
            made = make(row.value, RecordOrigin(file=row.file, row=row.row))
            made.record.model_dump_json()  # text that is not valid Unicode falls here, not when a stage is written
        except BadItemError as error:
            yield refused(row, error.reason, str(error))
        except ValidationError as error:
            yield refused(row, "malformed_row", condensed(error))
        except (ValueError, RecursionError) as error:
            yield refused(row, "malformed_row", f"text that is not valid Unicode, or nested too deep: {error}")
        else:
            yield ImportedItem(file=row.file, row=row.row, record=made.record, payloads=made.payloads)


def refused(row: RawRow, reason: QuarantineReason, message: str) -> ImportedItem:
    """The quarantine item of a row; its message opens with file and line."""
    id_ = row.value.get("id") if row.value is not None else None
    quarantined = QuarantineRow(
        line=row.row,
        id=_safe(str(id_)) if isinstance(id_, (str, int)) and str(id_) else None,
        uri=None,
        reason=reason,
        stage="import",
        message=_safe(f"{row.file}:{row.row}: {message}"),
        raw=_safe(row.raw if row.raw is not None else _shown(row.value)),
    )
    return ImportedItem(file=row.file, row=row.row, quarantined=quarantined)


def _shown(value: Any) -> str:
    """The row as JSON, embedded bytes as their length, cut."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_short)[:RAW_CHARACTERS]
    except (ValueError, RecursionError):
        return repr(type(value))


def _short(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _safe(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")[:RAW_CHARACTERS]
