"""Rows of text files as streams, for manifests and datasets alike: lines of JSON, records of CSV, and words for a bad row.

Enters: an open binary file. Leaves: numbered rows as read, each with its raw bytes and, where it is none, the reason. A bad row
never stops the reading. Memory is bounded by the longest row.
"""

import codecs
import csv
import io
from collections.abc import Iterator
from typing import IO, NamedTuple

from pydantic import ValidationError

MAX_ROW_BYTES = 16 << 20
"""A longer line of JSON is malformed."""
RAW_CHARACTERS = 2000
"""Of a bad row's text that is kept."""


class Line(NamedTuple):
    """A line that is not blank."""

    number: int
    """1-based."""
    data: bytes
    """With its end of line; of one that is too long the head."""
    error: str | None


class CsvRecord(NamedTuple):
    """A record below a CSV's header. Exactly one of `cells` and `error` is given."""

    number: int
    """1-based."""
    data: bytes
    cells: dict[str, str] | None
    error: str | None


def read_lines(file: IO[bytes]) -> Iterator[Line]:
    """All lines that are not blank; a byte order mark is left out."""
    number = 0
    while data := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(data) > MAX_ROW_BYTES:
            head = data[: 4 * RAW_CHARACTERS]
            while data and not data.endswith(b"\n"):
                data = file.readline(MAX_ROW_BYTES)
            yield Line(number, head, f"the line is longer than {MAX_ROW_BYTES} bytes")
            continue
        if number == 1:
            data = data.removeprefix(codecs.BOM_UTF8)
        if data.strip():
            yield Line(number, data, None)


def read_records(file: IO[bytes], name: str) -> Iterator[CsvRecord]:
    """All records that are not blank; bytes that are no UTF-8 are kept as surrogates.

    Raises:
        ValueError: a header that cannot be read, or that names a column twice or none; the message opens with `name`.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"{name}: the CSV header cannot be read: {error}") from error
    if not any(header) or len(set(header)) != len(header):
        raise ValueError(f"{name}: the first line must name the columns, each once; got {header}")
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield CsvRecord(number, b"", None, f"not CSV: {error}")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            message = f"{len(cells)} cells, but the header names {len(header)} columns"
            yield CsvRecord(number, _written(cells), None, message)
            continue
        yield CsvRecord(number, _written(cells), dict(zip(header, cells, strict=True)), None)


def condensed(error: ValidationError) -> str:
    """pydantic's findings on one line: `column: what`."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:4]:
        place = ".".join(str(part)[:80] for part in item["loc"])
        what = "unknown column" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        parts.append(f"{place}: {what}" if place else what)
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _written(cells: list[str]) -> bytes:
    raw = io.StringIO()
    csv.writer(raw).writerow([cell[:RAW_CHARACTERS] for cell in cells])
    return raw.getvalue().encode("utf-8", "surrogateescape")
