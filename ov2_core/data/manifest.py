"""Manifests: one row a source, read as a stream.

Enters: the URL of a JSONL (plain or gzip), CSV or Parquet file, local or any fsspec URL. Leaves: one `ManifestItem`
per row, in order: a `ManifestRow`, or the raw text and the reason why none could be made of it. A malformed row never
stops the reading; a file that cannot be read as its format at all does (ValueError). Memory is bounded by the longest
row.
"""

import gzip
import hashlib
import io
import json
import os
import posixpath
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast
from urllib.parse import unquote, urljoin

import fsspec
from pydantic import ValidationError

from ov2_core.data.row_files import RAW_CHARACTERS, condensed, read_lines, read_records
from ov2_core.errors import BadItemError
from ov2_core.redact import redacted, secret_in
from ov2_core.storage.source import SOURCE_SCHEMES
from schemas.video import ManifestRow

_JSON_COLUMNS = ("messages", "conversations", "tags")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestItem:
    """One manifest row. Exactly one of `row` and `error` is given; `raw` stands beside `error`."""

    line: int
    """1-based: line of a JSONL file, line or record below a CSV's header, row of a Parquet file."""
    row: ManifestRow | None = None
    raw: str | None = None
    error: str | None = None


class RawRow(NamedTuple):
    """One manifest row as it was read, cheap to hand to a worker, which parses it."""

    line: int
    data: bytes
    """As it stands in the file; empty for a row of Parquet."""
    value: dict[str, Any] | None = None
    """Its columns, of CSV and Parquet; None for a line of JSON."""
    error: str | None = None
    """Why it cannot be parsed."""


def read_manifest(uri: str) -> Iterator[ManifestItem]:
    """All rows in order, parsed; see read_rows."""
    return map(parse_row, read_rows(uri))


def parse_row(raw: RawRow) -> ManifestItem:
    """The row, or why it is none."""
    if raw.error is not None:
        return _malformed(raw.line, raw.data, raw.error)
    if raw.value is not None:
        return _item(raw.line, raw.value, raw.data)
    try:
        value = json.loads(raw.data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _malformed(raw.line, raw.data, f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return _malformed(raw.line, raw.data, f"not JSON: {error}")
    return _item(raw.line, value, raw.data)


def read_rows(uri: str) -> Iterator[RawRow]:
    """All rows in order, not parsed yet. Blank lines are no rows. A quarantine ledger is a manifest of the rows that fell.

    Raises:
        ValueError: no such file, an unknown extension, or a file that is not what its extension says.
    """
    path = uri.split("?", 1)[0].lower()
    if path.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")):
        return _guarded(uri, _read_jsonl)
    if path.endswith((".csv", ".csv.gz")):
        return _guarded(uri, _read_csv)
    if path.endswith((".parquet", ".pq")):
        return _guarded(uri, _read_parquet)
    raise ValueError(
        f"manifest {redacted(uri)}: unknown format; expected a name ending in .jsonl, .jsonl.gz, .csv or .parquet"
    )


def manifest_digest(uri: str) -> str:
    """sha256 of the manifest's bytes.

    Raises:
        ValueError: it cannot be read.
    """
    digest = hashlib.sha256()
    with _open(uri) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def resolve_uri(uri: str, manifest_uri: str) -> str:
    """An absolute path or URL. A relative one is relative to the manifest's folder; `file://` becomes a path.

    Raises:
        BadItemError: refused_uri, for control characters, chained URLs (`a::b`), schemes other than SOURCE_SCHEMES, and URLs that
            hold credentials, of the manifest itself too.
    """
    if _CONTROL.search(uri):
        raise _refused(f"{uri!r} contains control characters")
    if len(uri) > 8192:
        raise _refused(f"the URI has {len(uri)} characters; at most 8192 are allowed")
    _without_secret(uri)
    match = _SCHEME.match(uri)
    if match is not None:
        scheme = match[1].lower()
        if scheme == "file" and uri[len("file:") :].startswith("///"):
            return posixpath.normpath(unquote(uri[len("file://") :]))
        if scheme not in SOURCE_SCHEMES or not uri[match.end() :].startswith("//"):
            raise _refused(
                f"{uri!r}: only local paths, file:///... and {', '.join(sorted(SOURCE_SCHEMES))}:// URLs are read; "
                "write a local file with a colon in its name as ./name"
            )
        if "::" in uri:
            raise _refused(f"{uri!r}: chained URLs (a::b) are not read")
        return scheme + uri[match.end() - 1 :]
    if uri.startswith("/"):
        return posixpath.normpath(uri)
    base = absolute_uri(manifest_uri)
    if "://" not in base:
        return posixpath.normpath(posixpath.join(posixpath.dirname(base), uri))
    if "::" in uri:
        raise _refused(f"{uri!r}: '::' is not read below {base}")
    _without_secret(base)
    scheme, _, rest = base.partition("://")
    if scheme in ("http", "https"):
        return urljoin(base, uri)
    bucket, slash, path = rest.partition("/")
    if not slash:
        return f"{scheme}://{uri}"
    joined = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), uri))
    return f"{scheme}://{bucket}/{joined.lstrip('/')}"


def absolute_uri(uri: str) -> str:
    """A URL as it is, a local path (or `file://`) as an absolute path."""
    if uri.startswith("file://"):
        return os.path.abspath(unquote(uri[len("file://") :]))
    return uri if "://" in uri else os.path.abspath(uri)


def _without_secret(uri: str) -> None:
    secret = secret_in(uri)
    if secret is not None:
        raise _refused(
            f"{uri}: holds {secret}, which would end in every plan, ledger and shard; give the plain URL and keep credentials in "
            "the environment or in fsspec's config (a signed URL expires anyway: use s3://, gs:// or a local copy)"
        )


def _refused(message: str) -> BadItemError:
    return BadItemError("refused_uri", message, stage="manifest")


def _open(uri: str) -> IO[bytes]:
    try:
        file = fsspec.open(absolute_uri(uri), "rb").open()
    except FileNotFoundError:
        raise ValueError(f"manifest {redacted(uri)}: no such file") from None
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(redacted(f"manifest {uri}: cannot be opened: {error}")) from error
    if not isinstance(file, io.BufferedIOBase) or not hasattr(file, "peek"):
        file = io.BufferedReader(file)  # a remote file's own readline takes no limit
    return cast(IO[bytes], file)


def _guarded(uri: str, read: Any) -> Iterator[RawRow]:
    with _open(uri) as file:
        try:
            if uri.split("?", 1)[0].lower().endswith(".gz"):
                with gzip.open(file, "rb") as unzipped:
                    yield from read(unzipped, uri)
            else:
                yield from read(file, uri)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(redacted(f"manifest {uri}: cannot be read to its end: {error}")) from error


def _read_jsonl(file: IO[bytes], uri: str) -> Iterator[RawRow]:
    for line, data, problem in read_lines(file):
        yield RawRow(line, data, error=problem)


def _read_csv(file: IO[bytes], uri: str) -> Iterator[RawRow]:
    for record in read_records(file, f"manifest {uri}"):
        if record.cells is None:
            yield RawRow(record.number, record.data, error=record.error or "")
        else:
            given = {name: cell for name, cell in record.cells.items() if cell != ""}
            yield RawRow(record.number, record.data, given)


def _read_parquet(file: IO[bytes], uri: str) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=512):
            for value in batch.to_pylist():
                line += 1
                yield RawRow(line, b"", _without_nulls(value))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(redacted(f"manifest {uri}: not readable as Parquet after row {line}: {error}")) from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _item(line: int, value: Any, data: bytes) -> ManifestItem:
    if not isinstance(value, dict):
        return _malformed(line, data, f"a row must be a JSON object, got {type(value).__name__}")
    given, value = value, dict(value)
    if {"reason", "stage", "row"} <= value.keys() and isinstance(value["row"], dict):
        value = dict(value["row"])
    try:
        for column in _JSON_COLUMNS:
            if isinstance(value.get(column), str):
                try:
                    value[column] = json.loads(value[column])
                except (ValueError, RecursionError) as error:
                    return _malformed(
                        line, data or _text(given), f"{column}: expected a JSON list, e.g. [...]: {error}"
                    )
        if isinstance(value.get("id"), int) and not isinstance(value["id"], bool):
            value["id"] = str(value["id"])
        row = ManifestRow.model_validate(value)
        row.model_dump_json()
    except ValidationError as error:
        return _malformed(line, data or _text(given), condensed(error))
    except (ValueError, RecursionError) as error:
        return _malformed(line, data or _text(given), f"text that is not valid Unicode, or nested too deep: {error}")
    return ManifestItem(line=line, row=row)


def _text(value: dict[str, Any]) -> bytes:
    """Of a row of Parquet, which has none of its own."""
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def _malformed(line: int, data: bytes, error: str) -> ManifestItem:
    raw = data[: 4 * RAW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:RAW_CHARACTERS]
    safe = error.encode("utf-8", "replace").decode("utf-8")
    return ManifestItem(line=line, raw=raw, error=safe[:RAW_CHARACTERS])
