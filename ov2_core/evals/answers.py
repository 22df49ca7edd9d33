"""Truth and predictions as open JSON lines: `{"id": ..., "answer": ...}` and `{"id": ..., "prediction": ...}`.

Truth must be sound, so a bad row there is an error that names it. Predictions come from any model: whatever is wrong with them
is counted and named, and the rest is scored. Truth may be CSV or Parquet too (JumpScore is published as
`id, video_path, question, answer`).
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    for where, row in _rows(name):
        try:
            id_ = _id(row)
            if id_ in seen:
                raise ValueError("this id stood in an earlier row; ids are unique in a truth file")
            items.append(TruthItem(id=id_, answer=parse_answer(row), row=dict(row), folder=folder))
            seen.add(id_)
        except (ValueError, KeyError) as error:
            given = f" (id {row['id']!r})" if "id" in row else ""
            problem = f"no `{error.args[0]}`" if isinstance(error, KeyError) else error
            raise ValueError(f"{name}, {where}{given}: {problem}") from None
    if not items:
        raise ValueError(f"{name}: no rows; expected JSON lines {{id, answer}}")
    return items


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """All predictions of a JSON-lines file.

    A prediction that is no text (a list of numbers, null) is taken as its JSON; a missing one is a bad line.

    Raises:
        ValueError: no such file.
    """
    found = Predictions()
    with _open(os.fspath(path)) as file:
        for line, data, problem in read_lines(file):
            try:
                if problem is not None:
                    raise ValueError(problem)
                row = json.loads(data.decode("utf-8"))
                if isinstance(row, dict) and "error" in row and "prediction" not in row:
                    continue  # asked and not answered (evals/asking.py): missing
                if not isinstance(row, dict) or "prediction" not in row:
                    raise ValueError('expected {"id": ..., "prediction": ...}')
                id_, given = _id(row), row["prediction"]
                text = given if isinstance(given, str) else json.dumps(given)
            except (ValueError, RecursionError) as error:
                found.bad_lines.append(f"line {line}: {error}")
                continue
            if id_ in found.answers:
                found.duplicate_ids.append(id_)
            else:
                found.answers[id_] = text
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


def _rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lowered = name.lower()
    if lowered.endswith((".parquet", ".pq")):
        yield from _parquet_rows(name)
        return
    with _open(name) as file:
        if lowered.endswith(".csv"):
            for record in read_records(file, name):
                if record.cells is None:
                    raise ValueError(f"{name}, record {record.number}: {record.error}")
                yield f"record {record.number}", {key: cell for key, cell in record.cells.items() if cell != ""}
            return
        for line, data, problem in read_lines(file):
            try:
                if problem is not None:
                    raise ValueError(problem)
                row = json.loads(data.decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"a row must be a JSON object, got {type(row).__name__}")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}, line {line}: {error}") from None
            yield f"line {line}", row


def _parquet_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(name).iter_batches(batch_size=512):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", {key: value for key, value in row.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: cannot be read as Parquet: {error}") from None


def _open(name: str) -> Any:
    try:
        return open(name, "rb")
    except OSError as error:
        raise ValueError(f"{name}: cannot be opened: {error.strerror or error}") from None


def _id(row: Mapping[str, Any]) -> str:
    id_ = row.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        raise ValueError(f"expected an `id` that is text or a whole number, got {id_!r}")
    return str(id_)
