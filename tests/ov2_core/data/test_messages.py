from typing import Any

import pytest

from ov2_core.config import TextConfig
from ov2_core.data.messages import to_messages
from ov2_core.errors import BadItemError
from schemas.video import ManifestRow

TEXT = TextConfig(video_prompt="What happens?", image_prompt="What is there?")


def turns(**fields: Any) -> list[tuple[str, str]]:
    medium = {} if "image" in fields else {"video": "v.mp4"}
    messages = to_messages(ManifestRow.model_validate({**medium, **fields}), TEXT)
    return [(message.role, message.content) for message in messages]


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": content} for i, content in enumerate(contents)]


def test_caption_becomes_prompt_and_answer() -> None:
    assert turns(caption="A dog.") == [("user", "<video>\nWhat happens?"), ("assistant", "A dog.")]
    assert turns(image="i.jpg", caption="A dog.") == [("user", "<image>\nWhat is there?"), ("assistant", "A dog.")]


@pytest.mark.parametrize("fields", [{}, {"caption": ""}, {"caption": "  "}])
def test_row_without_text_has_no_messages(fields: dict[str, str]) -> None:
    assert turns(**fields) == []


@pytest.mark.parametrize(
    "question",
    ["Who?", "<video>\nWho?", "<video>Who?", "Who? <video>", "  <video>  Who?", "<image>\nWho?"],
)
def test_placeholder_is_repaired_to_the_front(question: str) -> None:
    assert turns(conversations=talk(question, "He."))[0] == ("user", "<video>\nWho?")


def test_placeholder_in_mid_sentence_leaves_a_space() -> None:
    assert turns(conversations=talk("In <video> who runs?", "He."))[0][1] == "<video>\nIn who runs?"


def test_placeholder_of_a_later_user_turn_moves_to_the_first() -> None:
    found = turns(conversations=talk("Hello.", "Hi.", "<video>\nWho?", "He."))
    assert [content for _, content in found] == ["<video>\nHello.", "Hi.", "Who?", "He."]


def test_question_that_is_only_a_placeholder_stays_one() -> None:
    assert turns(conversations=talk("<video>", "He."))[0][1] == "<video>"


def test_messages_keep_a_system_turn() -> None:
    found = turns(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "He."},
        ]
    )
    assert found == [("system", "Be brief."), ("user", "<video>\nWho?"), ("assistant", "He.")]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"conversations": talk("<video><video>Who?", "He.")}, "2 medium placeholders"),
        ({"conversations": talk("<video>Who?", "He.", "<image>And?", "She.")}, "2 medium placeholders"),
        ({"conversations": talk("Who?", "<video> He.")}, "assistant turn"),
        ({"conversations": talk("Who?")}, "no answer"),
        ({"conversations": talk("Who?", "  ")}, "no answer"),
        ({"conversations": []}, "no user turn"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "must be one of"),
        ({"conversations": [{"from": "human", "value": 3}]}, "must be text"),
        ({"conversations": [{"from": "gpt", "value": "x"}, *talk("Who?", "He.")]}, "open with a user turn"),
        ({"caption": "See <video> here"}, "caption contains <video>"),
    ],
)
def test_unusable_text_is_invalid(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(BadItemError, match=match) as caught:
        turns(**fields)
    assert caught.value.reason == "invalid_text"
