"""A row's text to ChatML messages with exactly one medium placeholder.

Enters: a manifest row with `caption`, `messages`, `conversations` or nothing. Leaves: `list[Message]` whose first
user turn begins with `<video>` or `<image>`, as upstream's trainer expects, or [] for a row without text. A missing
placeholder is put in, one that stands elsewhere is moved to the front, and `<image>` for a video (LLaVA-Video's
habit) is put right; two of them, or a conversation that nobody can learn from, are errors.
"""

import re
from typing import Any

from ov2_core.config import TextConfig
from ov2_core.errors import BadItemError
from schemas.video import ManifestRow, Message

_PLACEHOLDER = re.compile(r"\s*<(?:video|image)>\s*")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def to_messages(row: ManifestRow, config: TextConfig) -> list[Message]:
    """The row's conversation.

    Raises:
        BadItemError: invalid_text, when there is more than one placeholder, a placeholder outside the user turns, an
        unknown
            speaker, or no user turn followed by an answer.
    """
    placeholder = "<video>" if row.video is not None else "<image>"
    if row.caption is not None:
        if not row.caption.strip():
            return []
        prompt = config.video_prompt if row.video is not None else config.image_prompt
        turns = [Message(role="user", content=prompt), Message(role="assistant", content=row.caption)]
    elif row.messages is not None:
        turns = list(row.messages)
    elif row.conversations is not None:
        turns = [_turn(number, item) for number, item in enumerate(row.conversations, start=1)]
    else:
        return []
    return _with_placeholder(turns, placeholder, is_caption=row.caption is not None)


def _turn(number: int, item: dict[str, Any]) -> Message:
    speaker, value = item.get("from"), item.get("value")
    if speaker not in _ROLES:
        raise _invalid(f"conversations[{number}].from must be one of {', '.join(_ROLES)}, got {speaker!r}")
    if not isinstance(value, str):
        raise _invalid(f"conversations[{number}].value must be text, got {type(value).__name__}")
    return Message.model_validate({"role": _ROLES[speaker], "content": value})


def _with_placeholder(turns: list[Message], placeholder: str, *, is_caption: bool) -> list[Message]:
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if not users:
        raise _invalid("no user turn; give at least one user turn and one answer")
    first = users[0]
    if not any(turn.role == "assistant" and turn.content.strip() for turn in turns[first + 1 :]):
        raise _invalid("no answer after the first user turn; there is nothing to learn from")
    if turns[0].role == "assistant" or (turns[0].role == "system" and first != 1):
        raise _invalid("the conversation must open with a user turn, after at most one system turn")
    checked = turns[:first] + turns[first + 1 :] if is_caption else turns
    where = [(i, m) for i, turn in enumerate(checked) for m in _PLACEHOLDER.findall(turn.content)]
    if is_caption and where:
        raise _invalid(f"the caption contains {where[0][1].strip()}, which stands for the medium; remove it")
    if len(where) > 1:
        raise _invalid(f"{len(where)} medium placeholders; a row has one medium and at most one placeholder")
    if where:
        index, found = where[0][0], where[0][1].strip()
        if turns[index].role != "user":
            raise _invalid(f"{found} stands in a {turns[index].role} turn; it belongs into the first user turn")
        before, after = _PLACEHOLDER.split(turns[index].content, maxsplit=1)
        gap = " " if before and after else ""
        turns[index] = turns[index].model_copy(update={"content": f"{before}{gap}{after}"})
    content = turns[first].content
    joined = f"{placeholder}\n{content}" if content else placeholder
    turns[first] = turns[first].model_copy(update={"content": joined})
    return turns


def _invalid(message: str) -> BadItemError:
    return BadItemError("invalid_text", message, stage="manifest")
