"""Asking a model all questions of a suite: answers as JSON lines while they come, and a run that goes on where it stopped.

Enters: items of truth, anything that answers (our own model, a server). Leaves: `{id, prediction, num_visual_tokens, seconds}` a
line, or `{id, error}` for a question that could not be asked; beside it FILE.run.json, what the answers depend on. The same command
again asks what has no prediction yet; other settings are refused, never mixed.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ov2_core.errors import BadItemError
from ov2_core.evals.answers import video_of
from ov2_core.evals.evaluate import Suite
from ov2_core.evals.item import TruthItem

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a model is asked."""

    id: str
    prompt: str
    video: str | None
    images: tuple[str, ...] = ()
    timestamp_decimal: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What it said."""

    text: str
    num_visual_tokens: int | None = None
    """None where the server does not tell."""


class Answerer(Protocol):
    """A model, wherever it runs."""

    max_in_flight: int
    """Questions at a time."""

    def settings(self) -> dict[str, Any]:
        """What answers depend on, as JSON: model, input, budget, ..."""
        ...

    def answer(self, question: Question) -> Answer:
        """One answer; called from several threads if max_in_flight > 1.

        Raises:
            ValueError, OSError, BadItemError: this question cannot be answered; the others can.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AskSummary:
    """What a run of questions came to, earlier runs of the same file included."""

    num_answered: int
    num_failed: int
    mean_visual_tokens: float | None
    mean_seconds: float | None
    """Of a question, from opening its media to its last token."""
    first_error: str | None = None
    """Of those that failed."""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def questions_of(suite: Suite, truth: Sequence[TruthItem]) -> list[Question]:
    """A question for each item.

    Raises:
        ValueError: an item without a question or without media; it is named.
    """
    found = []
    for item in truth:
        try:
            prompt = suite.question(item)
        except ValueError as error:
            raise ValueError(f"item {item.id}: {error}") from None
        stills = item.row.get("images") or ([item.row["image"]] if isinstance(item.row.get("image"), str) else [])
        images = tuple(os.path.join(item.folder, str(still)) for still in stills)
        video = None if images and not (item.row.get("video") or item.row.get("video_path")) else video_of(item)
        found.append(
            Question(id=item.id, prompt=prompt, video=video, images=images, timestamp_decimal=suite.timestamp_decimal)
        )
    return found


def ask_all(
    questions: Sequence[Question],
    answerer: Answerer,
    path: str | os.PathLike[str],
    *,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> AskSummary:
    """Asks all questions that the file has no prediction for, and appends their answers as they come.

    A question that fails is recorded with its error and asked again by the next call; it stops no other.

    Raises:
        ValueError: the file holds answers made with other settings.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_settings(path, answerer.settings())
    done = {id_ for id_, row in _rows(path).items() if "prediction" in row}
    waiting = [question for question in questions if question.id not in done]
    total = len(questions)
    with open(path, "a", encoding="utf-8") as file:
        _end_line(path, file)
        for number, row in enumerate(_answers(waiting, answerer), total - len(waiting) + 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            on_answer(number, total)
    return summary_of(path, questions)


def summary_of(path: str | os.PathLike[str], questions: Sequence[Question]) -> AskSummary:
    """Of an answer file, over the given questions."""
    rows = _rows(Path(path))
    answered = [rows[question.id] for question in questions if "prediction" in rows.get(question.id, {})]
    tokens = [row["num_visual_tokens"] for row in answered if row.get("num_visual_tokens") is not None]
    errors = (rows[question.id].get("error") for question in questions if question.id in rows)
    seconds = [row["seconds"] for row in answered if row.get("seconds") is not None]
    return AskSummary(
        num_answered=len(answered),
        num_failed=len(questions) - len(answered),
        mean_visual_tokens=sum(tokens) / len(tokens) if tokens else None,
        mean_seconds=sum(seconds) / len(seconds) if seconds else None,
        first_error=next((str(error) for error in errors if error is not None), None),
    )


def _answers(questions: Sequence[Question], answerer: Answerer) -> Iterator[dict[str, Any]]:
    """Rows in the order of finishing, at most max_in_flight questions begun and not yet given out."""
    if answerer.max_in_flight <= 1:
        yield from (_ask(question, answerer) for question in questions)
        return
    rest = iter(questions)
    with ThreadPoolExecutor(answerer.max_in_flight, thread_name_prefix="ov2-ask") as pool:
        flying: set[Future[dict[str, Any]]] = set()
        try:
            while True:
                while len(flying) < answerer.max_in_flight and (question := next(rest, None)) is not None:
                    flying.add(pool.submit(_ask, question, answerer))
                if not flying:
                    return
                landed, flying = wait(flying, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in landed)
        finally:
            for future in flying:
                future.cancel()


def _ask(question: Question, answerer: Answerer) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        answer = answerer.answer(question)
    except (ValueError, OSError, BadItemError) as error:
        log.warning("question %s: %s", question.id, error)
        return {"id": question.id, "error": f"{type(error).__name__}: {error}"}
    return {
        "id": question.id,
        "prediction": answer.text,
        "num_visual_tokens": answer.num_visual_tokens,
        "seconds": round(time.perf_counter() - began, 4),
    }


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    beside = Path(f"{path}.run.json")
    wanted = json.loads(json.dumps(settings))
    if path.exists() and path.stat().st_size and beside.exists():
        before = json.loads(beside.read_text())
        if differing := sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name)):
            what = ", ".join(f"{name}: {before.get(name)!r} -> {wanted.get(name)!r}" for name in differing)
            raise ValueError(f"{path} holds answers of other settings ({what}); give another file, or remove it")
        return
    if path.exists() and path.stat().st_size:
        raise ValueError(
            f"{path} holds answers of unknown settings (no {beside.name}); give another file, or remove it"
        )
    partial = Path(f"{beside}.part")
    partial.write_text(json.dumps(wanted, indent=2))
    os.replace(partial, beside)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """Last row by id, a prediction before an error; a line that a kill cut off is no row."""
    found: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("id"), str) and "prediction" not in found.get(row["id"], {}):
            found[row["id"]] = row
    return found


def _end_line(path: Path, file: Any) -> None:
    """Ends a last line that a kill cut off, so that the next answer stands on its own."""
    with open(path, "rb") as before:
        if before.seek(0, os.SEEK_END):
            before.seek(-1, os.SEEK_END)
            if before.read(1) != b"\n":
                file.write("\n")
