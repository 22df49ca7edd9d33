"""The text of a sample: vision runs, placeholders, groups."""

import re

import numpy as np

from ov2_core.report.describe import build_text, describe_sample, vision_runs
from schemas.video import Message


def test_vision_runs_cover_every_token_once_in_time_order(stored):
    runs = vision_runs(stored.record, stored.positions_NP3)
    assert sum(length for _, length in runs) == stored.record.num_tokens
    times = [t for t, _ in runs]
    assert times == sorted(set(times))
    t_patches = np.concatenate([p[:, 0] for p in stored.positions_NP3])
    for t, length in runs:
        assert length == (t_patches == t).sum() // stored.record.merge**2


def test_build_text_has_one_run_per_source_time_in_the_first_user_turn(stored):
    text = build_text(stored.record, stored.positions_NP3)
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<0.0 seconds>"
    )
    found = re.findall(r"<(\d+\.\d) seconds><\|vision_start\|><\|image_pad\|>×(\d+)<\|vision_end\|>\n", text)
    runs = vision_runs(stored.record, stored.positions_NP3)
    assert [(float(s), int(k)) for s, k in found] == [(t / stored.record.fps, k) for t, k in runs]
    assert text.endswith("Describe this video.<|im_end|>\n<|im_start|>assistant\nA clip.<|im_end|>\n")


def test_build_text_puts_the_runs_where_the_placeholder_stands(stored_factory):
    turns = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="See <video>\nWhat is it?"),
        Message(role="assistant", content="A clip of <video>"),
        Message(role="user", content="Sure?"),
    ]
    text = build_text(stored_factory(messages=turns).record, stored_factory().positions_NP3)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSee <0.0 seconds>")
    assert "<|vision_end|>\nWhat is it?<|im_end|>" in text
    assert "A clip of <video><|im_end|>" in text  # only a user turn's placeholder stands for the video
    assert text.count("You are a helpful assistant.") == 0


def test_build_text_of_a_still_has_no_timestamp(stored):
    still = stored.record.model_copy(update={"fps": None, "media": "image", "mode": "still"})
    same_time = [stored.positions_NP3[0]]
    assert "<|im_start|>user\n<|vision_start|><|image_pad|>×12<|vision_end|>\nDescribe" in build_text(still, same_time)


def test_describe_names_the_groups_budget_and_source(stored):
    text = describe_sample(stored)
    assert "videos/clip 0.mp4 (manifest line 1)" in text
    assert "96 of 192 allowed (50%)" in text
    assert re.search(r"^ +2 +4-7 +2\.00-4\.00 +20 +48 +", text, re.MULTILINE)
    assert "flags      none" in text
