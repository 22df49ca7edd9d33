"""The miniature: times are tokens, and the folder is one that every command opens."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from ov2_core.model.create import open_model, open_processor
from ov2_core.model.miniature import times_tokenizer, write_miniature

TIMES = [f"{index / 10:.1f}" for index in range(30)]
TEXTS = ["user\nWhen does it jump?", "system\nYou are a helpful assistant.", *TIMES, *(f"<{t} seconds>" for t in TIMES)]


def test_each_time_is_the_same_token_in_a_timestamp_and_in_an_answer() -> None:
    tokenizer = times_tokenizer(TEXTS)
    ids = {time: tokenizer.convert_tokens_to_ids(time) for time in TIMES}
    assert len(set(ids.values())) == len(TIMES)
    for time in TIMES:
        for text in (f"<{time} seconds>", f"[{time}, 9.9]"):
            assert ids[time] in tokenizer(text)["input_ids"]
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_the_texts_do_not_hold_is_spelled_in_bytes() -> None:
    tokenizer = times_tokenizer(TEXTS)
    for text in ("Größe 東京 7.25", "<|im_end|", "a\n\tb"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_more_words_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="no token of its own"):
        times_tokenizer([f"{index / 100:.2f}" for index in range(600)])


def test_the_folder_opens_and_a_seed_decides_its_weights(tmp_path: Path) -> None:
    models = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_miniature(tmp_path / name, TEXTS, seed=seed)
        processor = open_processor(tmp_path / name)
        models.append(open_model(tmp_path / name, processor))
        assert models[-1].config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    same = [torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(models[0].parameters(), models[2].parameters(), strict=True)]
    assert all(same)
    assert not all(other)
    assert models[0].generation_config.eos_token_id == open_processor(tmp_path / "a").tokenizer.eos_token_id
