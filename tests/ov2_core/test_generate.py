"""load, ask and stream on a tiny model with random weights: the whole way from a file to text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from ov2_core.errors import BadItemError
from ov2_core.evals.clips import write_canary_clip
from ov2_core.generate import OneVisionChat
from ov2_core.model import (
    LlavaOnevision2Config,
    LlavaOnevision2ForConditionalGeneration,
    LlavaOnevision2Processor,
    load,
)
from ov2_core.model.byte_tokenizer import CONFIG_IDS, VOCABULARY_SIZE, byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    config = LlavaOnevision2Config.from_preset("tiny", text_config={"vocab_size": VOCABULARY_SIZE}, **CONFIG_IDS)
    LlavaOnevision2ForConditionalGeneration(config).save_pretrained(path)
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def chat(folder: Path) -> OneVisionChat:
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_canary_clip(path, video_id=1, num_frames=24, fps=10, columns=3, rows=2)
    return path


@pytest.mark.parametrize(("mode", "images", "times"), [("codec", 4, None), ("frames", 5, 5), ("stills", 5, 0)])
def test_stream_joins_to_the_models_own_greedy_answer(
    chat: OneVisionChat, clip: Path, mode: Any, images: int, times: int | None
) -> None:
    question = chat.prepare("What?", video=clip, input=mode, budget=images)
    assert sum(visual.num_images for visual in question.visuals) == images
    found = [seconds for runs in question.runs for seconds in runs.seconds_R if seconds is not None]
    assert times is None or len(found) == times
    assert len(question.times().splitlines()) == sum(len(runs.seconds_R) for runs in question.runs)
    with torch.no_grad():
        ids = chat.model.generate(
            **question.batch.prompt(), max_new_tokens=12, do_sample=False, eos_token_id=[505, 506], pad_token_id=506
        )
    want = chat.processor.tokenizer.decode(ids[0, question.batch.input_ids.shape[1] :], skip_special_tokens=True)
    assert "".join(chat.generate(question, max_new_tokens=12)) == want
    assert chat.ask("What?", video=clip, input=mode, budget=images, max_new_tokens=12) == want


def test_what_the_model_is_shown_changes_what_it_computes(chat: OneVisionChat) -> None:
    """No answer comes from the text alone."""
    logits = []
    for value in (0, 255):
        question = chat.prepare("What?", image=np.full((28, 28, 3), value, np.uint8))
        with torch.no_grad():
            logits.append(chat.model(**question.batch).logits[0, -1])
    assert not torch.allclose(logits[0], logits[1])


def test_a_batch_computes_what_its_samples_compute(chat: OneVisionChat, clip: Path) -> None:
    processor = chat.processor
    samples = [
        processor.encode(str(clip), prompt="What happens?", recipe="codec-4"),
        processor.encode(np.full((28, 56, 3), 99, np.uint8), prompt="?"),
        processor.encode(str(clip), prompt="And when?", recipe="uniform-5"),
    ]
    with torch.no_grad():
        together = chat.model(**processor.collate(samples)).logits
        for row, sample in enumerate(samples):
            alone = chat.model(**processor.collate([sample])).logits[0]
            torch.testing.assert_close(together[row, : sample.num_tokens], alone, rtol=0, atol=1e-5)


def test_leaving_a_stream_early_stops_the_model(chat: OneVisionChat, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    space = byte_tokenizer()(" ").input_ids[0]

    def always_a_space(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        logits = torch.zeros(*hidden.shape[:-1], VOCABULARY_SIZE)
        logits[..., space] = 1
        return logits

    monkeypatch.setattr(chat.model.lm_head, "forward", always_a_space)
    stream = chat.stream("What?", image=np.zeros((28, 28, 3), np.uint8), max_new_tokens=400)
    next(stream)
    stream.close()
    assert len(calls) < 400


def test_errors_of_the_model_reach_the_caller(chat: OneVisionChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no memory")

    monkeypatch.setattr(chat.model.lm_head, "forward", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        chat.ask("What?", image=np.zeros((28, 28, 3), np.uint8))


def test_questions_that_cannot_be_asked_are_refused(chat: OneVisionChat, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="input must be one of codec, frames, stills"):
        chat.prepare("?", video=clip, input="pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attend must be one of group, image"):
        chat.prepare("?", video=clip, attend="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exceeds the model's context"):
        chat.ask("?", video=clip, budget=4, max_new_tokens=1 << 20)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 1"):
        chat.ask("?", video=clip, budget=4, max_new_tokens=0)
    with pytest.raises(BadItemError, match=r"gone\.mp4"):
        chat.ask("?", video=tmp_path / "gone.mp4")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, chat: OneVisionChat) -> None:
    class Other(LlavaOnevision2Processor):
        image_token_id = 7

    with pytest.raises(ValueError, match=r"is 7, but config\.json says image_token_id 500"):
        OneVisionChat(chat.model, Other(byte_tokenizer()))


def test_load_refuses_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load(tmp_path)
