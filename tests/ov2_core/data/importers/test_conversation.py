import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.data.importers.conversation import Turns, converse, turns_of
from ov2_core.data.importers.media import modality_of
from ov2_core.errors import BadItemError
from schemas.records import MediaKind, MediaRef, RecordOrigin, TrainingRecord

KINDS = st.lists(st.sampled_from(["image", "video"]), max_size=4)
PIECES = st.lists(st.sampled_from(["<image>", "<video>", "word", " ", "\n", ""]), max_size=4).map("".join)


def medium(kind: MediaKind, number: int) -> MediaRef:
    return MediaRef(kind=kind, key=f"k{number}", id=f"k{number}", uri=f"/{number}")


def make(turns: Turns, kinds: list[MediaKind]) -> tuple[list[tuple[str, str]], list[str]]:
    """What converse makes, proven to be a record."""
    messages, repairs = converse(turns, kinds)
    TrainingRecord(
        id="r",
        source="s",
        modality=modality_of(kinds),
        media=[medium(kind, number) for number, kind in enumerate(kinds)],
        messages=messages,
        origin=RecordOrigin(file="f", row=1),
    )
    return [(turn.role, turn.content) for turn in messages], repairs


@settings(max_examples=300, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "user", "assistant", "system"]), PIECES), max_size=7
    ),
    kinds=KINDS,
)
def test_any_turns_become_a_record_or_a_typed_refusal(turns: Turns, kinds: list[MediaKind]) -> None:
    try:
        messages, repairs = make(turns, kinds)
    except BadItemError as error:
        reason = error.reason
    else:
        reason = None
    if reason is not None:
        assert reason == "invalid_text"
        return
    given = [text for role, text in turns if role == "assistant"]
    assert [text for role, text in messages if role == "assistant"] == [text for text in given if text.strip()][
        : len(messages)
    ] or "blank_round_dropped" in repairs
    words = "".join(text for _, text in turns).count("word")
    if not {"blank_round_dropped", "trailing_question_dropped"} & set(repairs):
        assert "".join(text for _, text in messages).count("word") == words
    if not repairs and len(kinds) != 1:
        assert [text for role, text in messages if role != "system"] == [
            text for role, text in turns if role != "system"
        ]


@settings(max_examples=100, deadline=None)
@given(kinds=KINDS, questions=st.lists(st.text(st.characters(exclude_characters="<")), min_size=1, max_size=3))
def test_a_made_conversation_is_left_as_it_is(kinds: list[MediaKind], questions: list[str]) -> None:
    turns = [turn for question in questions for turn in (("user", question or "?"), ("assistant", "A."))]
    try:
        messages, _ = make(turns, kinds)
    except BadItemError:
        return
    assert make(messages, kinds) == (messages, [])


IMAGE, VIDEO = "<image>", "<video>"


@pytest.mark.parametrize(
    ("kinds", "question", "expected", "repairs"),
    [
        (["video"], "<video>\nWhat?", "<video>\nWhat?", []),
        (["video"], "<video>What?", "<video>\nWhat?", []),
        (["video"], "<image>\nWhat?", "<video>\nWhat?", ["placeholder_renamed"]),
        (["image"], "<video>", "<image>", ["placeholder_renamed"]),
        (["image"], "What?", "<image>\nWhat?", ["placeholder_added"]),
        (["image"], "What?\n<image>", "<image>\nWhat?", ["placeholder_moved"]),
        (["image"], "In <image> who?", "<image>\nIn who?", ["placeholder_moved"]),
        (["image", "image"], "Compare <image> with <image>.", "Compare <image> with <image>.", []),
        (["image", "image"], "Compare.", "<image>\n<image>\nCompare.", ["placeholder_added"]),
        (["image", "image", "image"], "<image>\nSort.", "<image>\n<image>\n<image>\nSort.", ["placeholder_expanded"]),
        (["video", "image"], "<image> then <image>", "<video> then <image>", ["placeholder_renamed"]),
        ([], "What?", "What?", []),
    ],
)
def test_placeholder_rules(kinds: list[MediaKind], question: str, expected: str, repairs: list[str]) -> None:
    assert make([("user", question), ("assistant", "A.")], kinds) == (
        [("user", expected), ("assistant", "A.")],
        repairs,
    )


@pytest.mark.parametrize(
    ("kinds", "turns", "match"),
    [
        ([], [("user", "<image>\nQ"), ("assistant", "A")], "1 placeholders, but the row has no medium"),
        (["image"], [("user", "<image><image>Q"), ("assistant", "A")], "2 placeholders for 1 media"),
        (["image"] * 3, [("user", "<image><image>Q"), ("assistant", "A")], "2 placeholders for 3 media"),
        (["image", "video"], [("user", "<video> <image>"), ("assistant", "A")], "do not match"),
        (["image", "video"], [("user", "<image>"), ("assistant", "A")], "1 placeholders for 2 media"),
        (["image"], [("user", "Q"), ("assistant", "<image>")], "assistant turn"),
        (["image"], [("system", "<image>"), ("user", "Q"), ("assistant", "A")], "system turn"),
        (["image"], [("assistant", "A"), ("user", "Q"), ("assistant", "A")], "must alternate"),
        (["image"], [("user", "Q"), ("user", "Q"), ("assistant", "A")], "must alternate"),
        (["image"], [("user", "Q"), ("system", "S"), ("assistant", "A")], "must alternate"),
        (["image"], [("user", "Q")], "must alternate"),
        (["image"], [], "no turn"),
        (["image"], [("user", "Q"), ("assistant", " \n")], "no round has an answer"),
        (["image"], [("user", "<image>Q"), ("assistant", " "), ("user", "Q"), ("assistant", "A")], "blank answer"),
        (["image"], [("user", "Q"), ("assistant", "A"), ("user", "<image>Q")], "no answer"),
        ([], [("user", " "), ("assistant", "A")], "blank question"),
    ],
)
def test_what_may_miss_something_is_refused(kinds: list[MediaKind], turns: Turns, match: str) -> None:
    with pytest.raises(BadItemError, match=re.escape(match)) as caught:
        converse(turns, kinds)
    assert caught.value.reason == "invalid_text"


def test_rounds_without_an_answer_are_dropped_and_said() -> None:
    turns = [
        ("system", "S"),
        ("user", "<image>Q1"),
        ("assistant", "A1"),
        ("user", "Q2"),
        ("assistant", ""),
        ("user", "Q3"),
    ]
    assert make(turns, ["image"]) == (
        [("system", "S"), ("user", "<image>\nQ1"), ("assistant", "A1")],
        ["trailing_question_dropped", "blank_round_dropped"],
    )


def test_turns_of_both_schemas_of_json_text_and_of_parts() -> None:
    expected = [("user", "<image>Q"), ("assistant", "A")]
    assert turns_of([{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}], "c") == expected
    assert turns_of('[{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "A"}]', "c") == expected
    parts = [{"type": "image"}, {"type": "text", "text": "Q"}]
    assert turns_of([{"role": "user", "content": parts}, {"role": "assistant", "content": ["A"]}], "c") == expected


@pytest.mark.parametrize(
    "value",
    [None, [], "x", "{}", [1], [{"from": "bot", "value": "x"}], [{"from": "human", "value": 3}], [{"value": "x"}]],
)
def test_turns_that_are_none_are_malformed(value: object) -> None:
    with pytest.raises(BadItemError, match=r"^c") as caught:
        turns_of(value, "c")
    assert caught.value.reason == "malformed_row"
