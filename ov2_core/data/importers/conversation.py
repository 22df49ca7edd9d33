"""A source's turns to messages whose placeholders match the media, by the rules of docs/curriculum.md ("Placeholders").

Enters: (role, text) pairs and the kinds of the row's media in order. Leaves: messages and the names of the repairs made.
The principle: what is merely written differently is repaired and the repair recorded; what may mean that a medium or an
answer is missing is refused (BadItemError invalid_text).
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from ov2_core.errors import BadItemError
from schemas.records import MediaKind
from schemas.video import Message

_PLACEHOLDER = re.compile(r"<(image|video)>")
_SPACED = re.compile(r"\s*<(?:image|video)>\s*")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Turns = list[tuple[str, str]]


def turns_of(value: Any, column: str) -> Turns:
    """Turns of `conversations` [{from, value}] or `messages` [{role, content}], or of the JSON text of either.

    `content` may be a list of parts, [{"type": "text", "text": ...}, {"type": "image"}], as Qwen's tools write it.

    Raises:
        BadItemError: malformed_row.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _malformed(f"{column}: expected a list, got text that is not JSON: {error}") from error
    if not isinstance(value, list) or not value:
        raise _malformed(f"{column}: expected a list of turns, got {_shown(value)}")
    return [_turn(f"{column}[{number}]", item) for number, item in enumerate(value)]


def text_of(row: dict[str, Any]) -> Turns:
    """Turns of the row's `messages` or `conversations`, whichever it has. Raises BadItemError: malformed_row."""
    found = [name for name in ("messages", "conversations") if row.get(name) is not None]
    if len(found) != 1:
        raise _malformed(f"expected one of 'messages' and 'conversations', got {found or 'neither'}")
    return turns_of(row[found[0]], found[0])


def converse(turns: Turns, kinds: Sequence[MediaKind]) -> tuple[list[Message], list[str]]:
    """Messages that satisfy TrainingRecord, and the repairs made.

    Raises:
        BadItemError: invalid_text.
    """
    repairs: list[str] = []
    system, rounds = _rounds(turns, repairs)
    users = [user for user, _ in rounds]
    users = _matched(users, kinds, repairs)
    messages = [Message(role="system", content=system)] if system is not None else []
    for user, (_, answer) in zip(users, rounds, strict=True):
        messages += [Message(role="user", content=user), Message(role="assistant", content=answer)]
    return messages, repairs


def _rounds(turns: Turns, repairs: list[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """The system text and (question, answer) pairs, blank and unanswered ones dropped where no medium hangs on them."""
    system: str | None = None
    turns = list(turns)
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
        if not system.strip():
            system = None
    for role, text in [("system", system or "")] + [turn for turn in turns if turn[0] != "user"]:
        if found := _PLACEHOLDER.search(text):
            raise _invalid(f"{found[0]} stands in a {role} turn; placeholders belong into user turns")
    if turns and turns[-1][0] == "user" and len(turns) > 1:
        if _PLACEHOLDER.search(turns[-1][1]):
            raise _invalid("the last user turn has a medium but no answer")
        turns.pop()
        repairs.append("trailing_question_dropped")
    roles = [role for role, _ in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise _invalid(
            f"user and assistant must alternate and end on an answer, got {', '.join(roles[:8]) or 'no turn'}"
        )
    pairs = [(turns[i][1], turns[i + 1][1]) for i in range(0, len(turns), 2)]
    kept = []
    for user, answer in pairs:
        has_media = _PLACEHOLDER.search(user) is not None
        if answer.strip() and (user.strip() or len(pairs) == 1):
            kept.append((user, answer))
        elif has_media:
            raise _invalid("a round with a medium has a blank answer")
        else:
            repairs.append("blank_round_dropped")
    if not kept:
        raise _invalid("no round has an answer; there is nothing to learn from")
    return system, kept


def _matched(users: list[str], kinds: Sequence[MediaKind], repairs: list[str]) -> list[str]:
    """User turns whose placeholders are those of the media."""
    found = [kind for text in users for kind in _PLACEHOLDER.findall(text)]
    if not kinds:
        if found:
            raise _invalid(f"{len(found)} placeholders, but the row has no medium")
        if not users[0].strip():
            raise _invalid("a blank question without a medium")
        return users
    marks = [f"<{kind}>" for kind in kinds]
    if not found:
        repairs.append("placeholder_added")
        question = users[0].lstrip()
        return ["\n".join([*marks, question] if question else marks), *users[1:]]
    uniform = len(set(kinds)) == 1
    if len(found) == 1 and len(kinds) > 1 and uniform:
        repairs.append("placeholder_expanded")
        return [_PLACEHOLDER.sub("\n".join(marks), text) for text in users]
    if len(found) != len(kinds):
        raise _invalid(f"{len(found)} placeholders for {len(kinds)} media")
    if found != list(kinds):
        if not uniform and set(found) != {"image"}:
            raise _invalid(f"placeholders {found} do not match the media {list(kinds)}")
        repairs.append("placeholder_renamed")
        rest = iter(marks)
        users = [_PLACEHOLDER.sub(lambda _: next(rest), text) for text in users]
    return _to_front(users, marks[0], repairs) if len(kinds) == 1 else users


def _to_front(users: list[str], mark: str, repairs: list[str]) -> list[str]:
    """A single medium opens the conversation, as upstream's trainer expects."""
    index = next(i for i, text in enumerate(users) if _PLACEHOLDER.search(text))
    before, after = _SPACED.split(users[index], maxsplit=1)
    if index or before:
        repairs.append("placeholder_moved")
    gap = " " if before and after else ""
    users = [*users[:index], f"{before}{gap}{after}", *users[index + 1 :]]
    if not users[index].strip() and index:
        raise _invalid("a later user turn holds a medium and nothing else")
    users[0] = f"{mark}\n{users[0]}" if users[0].strip() else mark
    return users


def _turn(place: str, item: Any) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise _malformed(f"{place}: expected an object, got {_shown(item)}")
    speaker = item.get("from", item.get("role"))
    content = item.get("value", item.get("content"))
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise _malformed(f"{place}: the speaker must be one of {', '.join(_ROLES)}, got {_shown(speaker)}")
    if isinstance(content, list):
        content = "".join(_part(f"{place}.content[{number}]", part) for number, part in enumerate(content))
    if not isinstance(content, str):
        raise _malformed(f"{place}: expected text, got {_shown(content)}")
    return _ROLES[speaker], content


def _part(place: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        if part.get("type") in ("image", "video"):
            return f"<{part['type']}>"
        if isinstance(part.get("text"), str):
            return str(part["text"])
    raise _malformed(f"{place}: expected text, an image or a video, got {_shown(part)}")


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if not isinstance(value, (dict, list)) else type(value).__name__


def _malformed(message: str) -> BadItemError:
    return BadItemError("malformed_row", message, stage="import")


def _invalid(message: str) -> BadItemError:
    return BadItemError("invalid_text", message, stage="import")
