"""Presets and folders to models: seeds, token ids, and what is refused."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from ov2_core.model.create import is_preset, open_model, open_processor
from ov2_core.model.weights import save_weights


def test_a_preset_is_its_seeds_and_leaves_the_global_generator_alone() -> None:
    processor = open_processor("tiny")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (open_model("tiny", processor, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_preset_speaks_its_tokenizers_ids_and_ends_its_answers() -> None:
    processor = open_processor("tiny")
    model = open_model("tiny", processor)
    assert model.training
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert len(processor.tokenizer) <= model.config.text_config.vocab_size
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_a_folder_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    processor = open_processor("tiny")
    model = open_model("tiny", processor, seed=3)
    processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    save_weights(model, tmp_path)
    again = open_model(tmp_path, open_processor(tmp_path))
    assert again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_folder_hides_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_preset("tiny")
    (tmp_path / "tiny").mkdir()
    assert not is_preset("tiny")


def test_a_large_preset_asks_for_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="'8b' has no tokenizer"):
        open_processor("8b")
