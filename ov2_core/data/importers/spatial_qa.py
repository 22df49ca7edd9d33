"""Spatial QA (JSON lines): `scene_id, type, question, choices, answer, frames` and optionally `id`, `tags`, `difficulty`.

`frames` are stills in order: paths or {path or uri or image}. Instead of frames a row may show `video` (with start and end
seconds). Choices are written under the question as "A. ..." lines; the answer to them may be a letter, an index from 0 or the
choice's text, and becomes its letter. Other answers are text, or a number written as Python's shortest.
"""

from collections.abc import Iterator
from typing import Any

from ov2_core.data.importers.conversation import converse
from ov2_core.data.importers.item import ImportedItem, Made, import_rows
from ov2_core.data.importers.media import file_ref, make_record, seconds_of
from ov2_core.data.importers.rows import list_files, read_json
from ov2_core.errors import BadItemError
from schemas.records import MediaRef, RecordOrigin

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def import_spatial_qa(
    path: str, *, source: str = "spatial-qa", media_root: str | None = None
) -> Iterator[ImportedItem]:
    """Records of questions; scene and type become tags."""

    def make(row: dict[str, Any], origin: RecordOrigin) -> Made:
        scene, kind = _text(row, "scene_id", "scene"), _text(row, "type", "task")
        media = _media(row, source=source, origin=origin, root=media_root)
        choices = _choices(row.get("choices"))
        question = _text(row, "question")
        if choices:
            question += "\n" + "\n".join(
                f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
            )
        turns = [("user", question), ("assistant", _answer(row.get("answer"), choices))]
        messages, repairs = converse(turns, [ref.kind for ref in media])
        tags = [f"scene:{scene}", f"type:{kind}"]
        tags += [f"difficulty:{row['difficulty']}"] if row.get("difficulty") else []
        tags += [tag for tag in row.get("tags") or [] if isinstance(tag, str)]
        record = make_record(
            source=source,
            origin=origin,
            media=media,
            messages=messages,
            repairs=repairs,
            given_id=row.get("id") or f"{scene}_{kind}",
            tags=tags,
        )
        return Made(record=record)

    for file in list_files(path, (".jsonl", ".jsonl.gz", ".json")):
        yield from import_rows(read_json(file), make)


def _media(row: dict[str, Any], *, source: str, origin: RecordOrigin, root: str | None) -> list[MediaRef]:
    frames, video = row.get("frames"), row.get("video")
    if (not frames) == (not video):
        raise _bad("expected one of 'frames' (a list of stills) and 'video'")
    if video:
        start, end = seconds_of(row.get("start"), "start"), seconds_of(row.get("end"), "end")
        return [file_ref("video", video, source=source, origin=origin, root=root, start_seconds=start, end_seconds=end)]
    if not isinstance(frames, list):
        raise _bad(f"frames: expected a list, got {type(frames).__name__}")
    refs = []
    for frame in frames:
        if isinstance(frame, dict):
            frame = next((frame[name] for name in ("path", "uri", "image") if frame.get(name)), None)
        refs.append(file_ref("image", frame, source=source, origin=origin, root=root))
    return refs


def _choices(value: Any) -> list[str]:
    if not value:
        return []
    items = [value[key] for key in sorted(value)] if isinstance(value, dict) else value
    if isinstance(value, dict) and sorted(value) != list(LETTERS[: len(value)]):
        raise _bad(f"choices: expected the letters from A on, got {sorted(value)}")
    if not isinstance(items, list) or not 2 <= len(items) <= len(LETTERS):
        raise _bad(f"choices: expected a list of 2 to {len(LETTERS)}, got {value!r:.80}")
    choices = [_scalar(item, "choices") for item in items]
    if len(set(choices)) != len(choices):
        raise _bad(f"choices: two are alike: {choices}")
    return choices


def _answer(value: Any, choices: list[str]) -> str:
    if not choices:
        return _scalar(value, "answer")
    letters = LETTERS[: len(choices)]
    if isinstance(value, int) and not isinstance(value, bool) and str(value) not in choices:
        if 0 <= value < len(choices):
            return letters[value]
    else:
        text = _scalar(value, "answer")
        if text in choices:
            return letters[choices.index(text)]
        letter = text.strip("(). ")
        if len(letter) == 1 and letter in letters:
            return letter
    raise _bad(f"answer: {value!r:.80} is none of the {len(choices)} choices")


def _scalar(value: Any, name: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    raise _bad(f"{name}: expected text or a number, got {value!r:.80}")


def _text(row: dict[str, Any], *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    raise _bad(f"{names[0]}: expected text, got {row.get(names[0])!r:.80}")


def _bad(message: str) -> BadItemError:
    return BadItemError("malformed_row", message, stage="import")
