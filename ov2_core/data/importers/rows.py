"""Files of many rows, read as streams: JSON lines, JSON arrays, CSV, Parquet.

Enters: a path, a folder or a glob, local or any fsspec URL. Leaves: `RawRow`s in order, each a row's columns or why it has
none. A bad row never stops the reading; a file that is not what it should be does (ValueError). Memory is bounded by the
longest row (and a page of Parquet), not by the file.

A JSON array of gigabytes is cut into its items here, not by a streaming parser such as ijson: a parser stops at the first
syntax error and loses all that follows, while an item whose end can be found is one quarantined row. Python's own C
scanner (`raw_decode`) reads the good items; only a bad one is walked bracket by bracket.
"""

import codecs
import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec

from ov2_core.data.manifest import absolute_uri
from ov2_core.data.row_files import MAX_ROW_BYTES, RAW_CHARACTERS, read_lines, read_records

__all__ = ["RawRow", "list_files", "read_csv", "read_json", "read_parquet", "read_parquet_cell"]

_CHUNK_CHARACTERS = 1 << 20
_PARQUET_BATCH_ROWS = 16
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*("|\\?\Z)|[\[\]{},]', re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """One row of a file. Exactly one of `value` and `error` is given."""

    file: str
    row: int
    """1-based: line of JSON lines, item of a JSON array, record below a CSV's header, row of Parquet."""
    value: dict[str, Any] | None = None
    raw: str | None = None
    """The text as read, cut to RAW_CHARACTERS, beside `error`."""
    error: str | None = None


def list_files(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files behind a path: itself, all below a folder that end in one of `suffixes`, or a glob's matches; sorted.

    Raises:
        ValueError: nothing there.
    """
    uri = absolute_uri(path)
    try:
        fs, root = fsspec.core.url_to_fs(uri)
        if any(c in root for c in "*?["):
            found = [name for name in fs.glob(root) if fs.isfile(name)]
        elif fs.isdir(root):
            found = [name for name in fs.find(root) if name.lower().endswith(suffixes)]
        elif fs.exists(root):
            return [uri]
        else:
            found = []
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"{path}: cannot be listed: {error}") from error
    if not found:
        raise ValueError(f"{path}: no such file, and no file below it that ends in {', '.join(suffixes)}")
    return sorted(str(fs.unstrip_protocol(name)) if "://" in uri else str(name) for name in found)


def read_json(file: str) -> Iterator[RawRow]:
    """Items of a JSON array, or JSON lines where the file does not open with `[` (both names, .json and .jsonl, occur).

    Raises:
        ValueError: it cannot be opened; an array that does not end, or after which something stands.
    """
    with _open(file) as stream:
        head = stream.peek(4096).removeprefix(codecs.BOM_UTF8).lstrip()  # a longer blank head is nobody's file
        reader = _read_array if head.startswith(b"[") else _read_lines
        try:
            yield from reader(stream, file)
        except (OSError, EOFError) as error:
            raise ValueError(f"{file}: cannot be read to its end: {error}") from error


def read_csv(file: str) -> Iterator[RawRow]:
    """Records of a CSV with a header. Raises ValueError for a file without one."""
    with _open(file) as stream:
        for record in read_records(stream, file):
            if record.cells is None:
                yield _bad(file, record.number, record.data.decode("utf-8", "surrogateescape"), record.error or "")
            else:
                yield RawRow(file=file, row=record.number, value=record.cells)


def read_parquet(file: str) -> Iterator[RawRow]:
    """Rows of a Parquet file, nulls left in.

    Raises:
        ValueError: it is not Parquet, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    with _open(file) as stream:
        try:
            # Without these two options a whole row group, often hundreds of MB of images, is read before its first row. With
            # them memory is bounded by a few pages, as large as their writer made them.
            table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for index in range(batch.num_rows):
                    row += 1
                    try:
                        value = batch.slice(index, 1).to_pylist()[0]
                    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
                        yield _bad(file, row, "", f"a column cannot be decoded: {error}")
                    else:
                        yield RawRow(file=file, row=row, value=value)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not readable as Parquet after row {row}: {error}") from error


def read_parquet_cell(file: str, row: int, column: str) -> Any:
    """One cell of a Parquet file; `row` counts from 0. Reads from the start of the row's group.

    Raises:
        ValueError: it is not Parquet, has no such column, or is shorter.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(file) as stream:
        try:
            table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            first = 0
            for group in range(table.num_row_groups):
                num_rows = table.metadata.row_group(group).num_rows
                if row < first + num_rows:
                    for batch in table.iter_batches(
                        batch_size=_PARQUET_BATCH_ROWS, row_groups=[group], columns=[column]
                    ):
                        if row < first + batch.num_rows:
                            return batch.column(column)[row - first].as_py()
                        first += batch.num_rows
                first += num_rows
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{file}: row {row}, column {column!r} cannot be read: {error}") from error
    raise ValueError(f"{file}: has no row {row}")


def _open(file: str) -> io.BufferedReader:
    try:
        stream: Any = fsspec.open(file, "rb", compression="infer").open()
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"{file}: cannot be opened: {error}") from error
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream))


def _read_lines(stream: IO[bytes], file: str) -> Iterator[RawRow]:
    for line, data, problem in read_lines(stream):
        if problem is not None:
            yield _bad(file, line, data.decode("utf-8", "replace"), problem)
        else:
            yield _parsed(file, line, data.decode("utf-8", "surrogateescape"))


def _read_array(stream: IO[bytes], file: str) -> Iterator[RawRow]:
    text = _Text(stream)
    decoder = json.JSONDecoder()
    text.skip_space()
    text.advance(1)  # the opening bracket
    row = 0
    lead: str | None = None
    while True:
        gap = text.skip_space()
        if text.done:
            raise ValueError(f"{file}: the array does not end after item {row}; the file is cut, fetch it again")
        if text.starts("]"):
            text.advance(1)
            text.skip_space()
            if not text.done:
                raise ValueError(f"{file}: text stands behind the array of {row} items; expected one JSON array")
            return
        row += 1
        if row == 1 and "\n" in gap:
            lead = gap.rpartition("\n")[2]
        value, end = _item(text, decoder)
        if end is not None:
            item = text.take(end)
            yield _valued(file, row, value, item) if value is not None else _parsed(file, row, item)
        else:
            cut = text.take_to_line(lead)
            if cut is None:
                raise ValueError(
                    f"{file}: item {row} does not end within {MAX_ROW_BYTES} characters or at the end of the file, and no "
                    "later item can be told from it; mend that item, or fetch the file again if it is cut"
                )
            yield _bad(file, row, cut, f"not JSON, and its end is unclear: {_json_error(cut)}")
        text.skip_space()
        if text.starts(","):
            text.advance(1)


def _item(text: "_Text", decoder: json.JSONDecoder) -> tuple[Any, int | None]:
    """(value, end) of the item at the cursor; value None where it is no JSON; end None where no end can be found."""
    while True:
        value: Any = None
        end: int | None = None
        with contextlib.suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(text.buffer, text.position)
        if end is not None:
            after = cast("re.Match[str]", _SPACE.match(text.buffer, end)).end()
            if after < len(text.buffer) and text.buffer[after] in ",]":
                return value, end
        end = _extent(text.buffer, text.position)
        if end is not None:
            return None, end
        if len(text.buffer) - text.position > MAX_ROW_BYTES or not text.grow():
            return None, None


def _extent(buffer: str, start: int) -> int | None:
    """Where the item at `start` ends: the next `,` or `]` outside all strings and brackets. None: not in this buffer."""
    stack: list[str] = []
    for match in _TOKEN.finditer(buffer, start):
        token = match[0]
        if token[0] == '"':
            if match[1] != '"':
                return None
        elif token in "[{":
            stack.append(token)
        elif not stack:
            if token in ",]":
                return match.start()
        elif token in "]}":
            opening = "[" if token == "]" else "{"
            if opening in stack:
                while stack.pop() != opening:
                    pass
    return None


class _Text:
    """A window over a UTF-8 stream: what stands behind `position` in `buffer` is not read yet."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._ended = False
        self.buffer = ""
        self.position = 0

    @property
    def done(self) -> bool:
        return self.position >= len(self.buffer) and self._ended

    def grow(self) -> bool:
        """Reads on, as much again as is held, so that the work on a long item stays linear. False at the end."""
        if self._ended:
            return False
        wanted = max(_CHUNK_CHARACTERS, len(self.buffer) - self.position)
        data = self._stream.read(wanted)
        self._ended = not data
        self.buffer = self.buffer[self.position :] + self._decoder.decode(data, final=self._ended)
        self.position = 0
        return True

    def starts(self, character: str) -> bool:
        return self.buffer.startswith(character, self.position)

    def advance(self, count: int) -> None:
        self.position += count

    def take(self, end: int) -> str:
        taken = self.buffer[self.position : end]
        self.position = end
        return taken

    def take_to_line(self, lead: str | None) -> str | None:
        """Up to the next line that opens an item as the first one did: a newline, the same blanks, a brace."""
        if lead is None:
            return None
        at = self.buffer.find(f"\n{lead}{{", self.position + 1)
        return None if at < 0 else self.take(at)

    def skip_space(self) -> str:
        """Skips blanks, reading on as needed; returns those behind the last read."""
        while True:
            end = cast("re.Match[str]", _SPACE.match(self.buffer, self.position)).end()
            skipped = self.take(end)
            if self.position < len(self.buffer) or not self.grow():
                return skipped


def _parsed(file: str, row: int, text: str) -> RawRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _bad(file, row, text, f"not JSON: {error}")
    return _valued(file, row, value, text)


def _valued(file: str, row: int, value: Any, text: str) -> RawRow:
    if not isinstance(value, dict):
        return _bad(file, row, text, f"a row must be a JSON object, got {type(value).__name__}")
    return RawRow(file=file, row=row, value=value)


def _json_error(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return "more than one value"


def _bad(file: str, row: int, text: str, error: str) -> RawRow:
    raw = text[:RAW_CHARACTERS].encode("utf-8", "replace").decode("utf-8").rstrip("\r\n")
    return RawRow(file=file, row=row, raw=raw, error=error.encode("utf-8", "replace").decode("utf-8")[:RAW_CHARACTERS])
