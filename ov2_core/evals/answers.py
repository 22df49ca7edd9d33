"""Truth and predictions as open JSON lines: `{"id": ..., "answer": ...}` and `{"id": ..., "prediction": ...}`.

Truth must be sound, so a bad row there is an error that names it. Predictions come from any model: whatever is wrong with them
is counted and named, and the rest is scored; a file without a single prediction in it is an error. Both may be a JSON array, CSV
or Parquet too (JumpScore is published as `id, video_path, question, answer`).
"""

import codecs
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from ov2_core.data.row_files import read_lines, read_records
from ov2_core.evals.item import TruthItem


@dataclass(kw_only=True, slots=True)
class Predictions:
    """Answers by id, and what was wrong with the file."""

    answers: dict[str, str] = field(default_factory=dict)
    duplicate_ids: list[str] = field(default_factory=list)
    """The first answer to each stands."""
    bad_lines: list[str] = field(default_factory=list)
    """`line 3: what`; the item that it was meant for counts as missing."""


class _Row(NamedTuple):
    """A row as read. Exactly one of `cells` and `error` is given."""

    where: str
    """line 3, record 3, row 3"""
    cells: dict[str, Any] | None
    error: str | None


def read_truth(path: str | os.PathLike[str], parse_answer: Callable[[Mapping[str, Any]], Any]) -> list[TruthItem]:
    """All items of a truth file, in order.

    Args:
        parse_answer: a row to the suite's own form of its answer; raises ValueError for one that is none.

    Raises:
        ValueError: no such file, no rows, or a row that is none; the line and the id are named.
    """
    name = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(name))
    items: list[TruthItem] = []
    seen: set[str] = set()
    for where, row, unread in _rows(name):
        try:
            if row is None:
                raise ValueError(unread)
            id_ = _id(row)
            if id_ in seen:
                raise ValueError("this id stood in an earlier row; ids are unique in a truth file")
            items.append(TruthItem(id=id_, answer=parse_answer(row), row=dict(row), folder=folder))
            seen.add(id_)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            given = f" (id {row['id']!r})" if row is not None and "id" in row else ""
            problem = f"no `{error.args[0]}`; it has {_columns(row)}" if isinstance(error, KeyError) else error
            raise ValueError(f"{name}, {where}{given}: {problem}") from None
    if not items:
        raise ValueError(f"{name}: no rows; expected a row {{id, answer}} for each item")
    return items


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """All predictions of a file.

    A prediction that is no text (a list of numbers, null) is taken as its JSON; a missing one is a bad line.

    Raises:
        ValueError: no such file, or one with rows of which none is a prediction.
    """
    found = Predictions()
    unanswered = 0
    for where, row, unread in _rows(os.fspath(path)):
        try:
            if row is None:
                raise ValueError(unread)
            if "error" in row and "prediction" not in row:
                unanswered += 1  # asked and not answered (evals/asking.py): missing
                continue
            if "prediction" not in row:
                raise ValueError(f"no `prediction`; it has {_columns(row)}")
            id_, given = _id(row), row["prediction"]
            text = given if isinstance(given, str) else json.dumps(given)
        except (ValueError, TypeError, RecursionError) as error:
            found.bad_lines.append(f"{where}: {error}")
            continue
        if id_ in found.answers:
            found.duplicate_ids.append(id_)
        else:
            found.answers[id_] = text
    if found.bad_lines and not found.answers and not unanswered:
        raise ValueError(
            f"{os.fspath(path)}: none of its {len(found.bad_lines)} rows is a prediction; expected JSON lines "
            f'{{"id": ..., "prediction": ...}}, got {found.bad_lines[0]}'
        )
    return found


def video_of(item: TruthItem) -> str:
    """Path or URL of an item's video: its `video` or `video_path`, relative to the truth file, or to videos/ beside it.

    Raises:
        ValueError: the row names none.
    """
    given = item.row.get("video") or item.row.get("video_path")
    if not isinstance(given, str):
        raise ValueError(f"item {item.id}: no `video` in its row of the truth file; add the path of its clip")
    if "://" in given or os.path.isabs(given):
        return given
    beside = [os.path.join(item.folder, given), os.path.join(item.folder, "videos", given)]
    return next((path for path in beside if os.path.exists(path)), beside[0])


def _rows(name: str) -> Iterator[_Row]:
    """Rows of a file: Parquet and CSV by its name, else a JSON array if it opens with one, else JSON lines.

    Raises:
        ValueError: the file as a whole cannot be read.
    """
    lowered = name.lower()
    if lowered.endswith((".parquet", ".pq")):
        yield from _parquet_rows(name)
        return
    with _open(name) as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            raise ValueError(f"{name}: is compressed (gzip); unpack it first")
        if lowered.endswith(".csv"):
            for record in read_records(file, name):
                where, cells = f"record {record.number}", record.cells
                if cells is not None and any(
                    "\udc80" <= letter <= "\udcff" for cell in cells.values() for letter in cell
                ):
                    yield _Row(where, None, "is no UTF-8 text")
                else:
                    kept = cells and {key: cell for key, cell in cells.items() if cell != "" or key == "prediction"}
                    yield _Row(where, kept, record.error)
        elif file.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[") and (array := _array(file)):
            for number, value in enumerate(array, 1):
                yield _object(f"entry {number}", value)
        else:
            file.seek(0)
            for line, data, problem in read_lines(file):
                if problem is not None:
                    yield _Row(f"line {line}", None, problem)
                    continue
                try:
                    value = json.loads(data.decode("utf-8"))
                except UnicodeDecodeError:
                    yield _Row(f"line {line}", None, "is no UTF-8 text")
                except (ValueError, RecursionError) as error:
                    yield _Row(f"line {line}", None, f"is no JSON ({error})")
                else:
                    yield _object(f"line {line}", value)


def _array(file: IO[bytes]) -> list[Any] | None:
    """The whole file if it is a JSON array, and not one that a line of its own holds beside others."""
    try:
        value = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _object(where: str, value: Any) -> _Row:
    if isinstance(value, dict):
        return _Row(where, value, None)
    return _Row(where, None, f"a row must be a JSON object, got {type(value).__name__}")


def _parquet_rows(name: str) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(name).iter_batches(batch_size=512):
            for row in batch.to_pylist():
                number += 1
                yield _Row(f"row {number}", {key: value for key, value in row.items() if value is not None}, None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: cannot be read as Parquet: {error}") from None


def _open(name: str) -> Any:
    try:
        return open(name, "rb")
    except OSError as error:
        raise ValueError(f"{name}: cannot be opened: {error.strerror or error}") from None


def _id(row: Mapping[str, Any]) -> str:
    id_ = row.get("id")
    if "id" not in row:
        raise ValueError(f"no `id`; it has {_columns(row)}")
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        raise ValueError(f"expected an `id` that is text or a whole number, got {id_!r:.100}")
    if isinstance(id_, str) and any("\ud800" <= letter <= "\udfff" for letter in id_):
        raise ValueError(f"the `id` {id_!r:.100} is no valid text (half of a surrogate pair)")
    return str(id_)


def _columns(row: Mapping[str, Any] | None) -> str:
    return f"{', '.join(map(repr, row))}"[:200] if row else "nothing"
