"""Small builders of files with the documented schemas, and short ways to read them."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ov2_core.data.importers import ImportedItem, open_importer
from schemas.records import TrainingRecord
from schemas.shard import QuarantineRow


def png(seed: int) -> bytes:
    """A tiny image of its own colour."""
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (seed % 256, seed // 256 % 256, 7)).save(data, "PNG")
    return data.getvalue()


def conversation(question: str = "What?", answer: str = "That.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write_json_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Text and bytes as they are, anything else as JSON."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], *, schema: pa.Schema | None = None) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=3)
    return path


def read(importer: str, path: Path, **options: Any) -> list[ImportedItem]:
    """All items; each is a record or a quarantine row, and rows of a file ascend."""
    items = list(open_importer(importer, str(path), **options))
    last: dict[str, int] = {}
    for item in items:
        assert (item.record is None) != (item.quarantined is None)
        assert item.row > last.get(item.file, 0)
        last[item.file] = item.row
        if item.quarantined is not None:
            assert item.quarantined.line == item.row
            assert item.quarantined.message.startswith(f"{item.file}:{item.row}: ")
            assert item.quarantined.stage == "import"
        if item.record is not None and importer != "records":
            assert (item.record.origin.file, item.record.origin.row) == (item.file, item.row)
    return items


def records(items: list[ImportedItem]) -> list[TrainingRecord]:
    return [item.record for item in items if item.record is not None]


def fallen(items: list[ImportedItem]) -> list[QuarantineRow]:
    return [item.quarantined for item in items if item.quarantined is not None]


def texts(record: TrainingRecord) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in record.messages]
