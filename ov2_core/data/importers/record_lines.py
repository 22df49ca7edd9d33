"""Our own records (JSON lines of TrainingRecord), as `ov2_core.data.records.write_records` leaves them."""

from collections.abc import Iterator
from typing import Any

from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.rows import list_files, read_json
from schemas.records import RecordOrigin, TrainingRecord


def import_records(path: str, *, source: str | None = None) -> Iterator[ImportedItem]:
    """The records as they are, under another source's name if one is given; `origin` stays that of their first import."""

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        record = TrainingRecord.model_validate(row)
        return Made(record=record if source is None else record.model_copy(update={"source": source}))

    for file in list_files(path, (".jsonl", ".jsonl.gz")):
        yield from import_rows(read_json(file), make)
