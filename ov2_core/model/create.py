"""A model's folder or a preset's name to its processor and its model.

Enters: the path of a released-layout folder, or one of the presets of config.py. Leaves: a processor; a model. A preset has random
weights drawn from a seed. `tiny` is whole without any file: its tokenizer counts bytes (byte_tokenizer.py). The larger presets take
the tokenizer of a folder, for none comes with this repository.
"""

import os
from pathlib import Path
from typing import Any, get_args

import torch

from ov2_core.model.byte_tokenizer import VOCABULARY_SIZE, byte_tokenizer
from ov2_core.model.config import LlavaOnevision2Config, Preset
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.weights import load_model

BYTES = "tiny"
"""The preset whose tokenizer is the bytes themselves."""
PRESETS: tuple[str, ...] = get_args(Preset)


def is_preset(model: str | os.PathLike[str]) -> bool:
    """True for a preset's name that no folder of the same name hides."""
    return str(model) in PRESETS and not Path(model).is_dir()


def open_processor(
    model: str | os.PathLike[str], *, tokenizer: str | os.PathLike[str] | None = None
) -> LlavaOnevision2Processor:
    """The processor of a folder or a preset.

    Args:
        tokenizer: folder whose processor is taken instead; every preset but `tiny` needs one.

    Raises:
        ValueError: a preset without a tokenizer, or no processor in the folder.
    """
    if tokenizer is not None:
        return LlavaOnevision2Processor.from_pretrained(tokenizer)
    if not is_preset(model):
        return LlavaOnevision2Processor.from_pretrained(model)
    if str(model) != BYTES:
        raise ValueError(f"preset {model!r} has no tokenizer of its own; give a folder with Qwen3's (--tokenizer DIR)")
    return LlavaOnevision2Processor(byte_tokenizer())


def open_model(
    model: str | os.PathLike[str],
    processor: LlavaOnevision2Processor,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LlavaOnevision2ForConditionalGeneration:
    """The model of a folder, or one with random weights from a preset; in train mode, all weights trainable.

    Args:
        processor: tells a preset's model the ids of its special tokens.
        seed: of random weights; torch's global generator is left as it was.
        dtype: of all weights.

    Raises:
        ValueError: a folder whose tensors are not those of its model.
    """
    if not is_preset(model):
        made = load_model(model, dtype=dtype, device=device)
    else:
        made = build_model(preset_config(str(model), processor), processor, seed=seed)
        made.to(device=device, dtype=dtype)  # type: ignore[call-arg]
    made.train()
    return made


def build_model(
    config: LlavaOnevision2Config, processor: LlavaOnevision2Processor, *, seed: int
) -> LlavaOnevision2ForConditionalGeneration:
    """A model with random weights in float32, which ends its answers as the processor does; torch's global generator is left as
    it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = LlavaOnevision2ForConditionalGeneration(config)
    made.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    made.generation_config.pad_token_id = processor.pad_token_id
    return made


def preset_config(preset: str, processor: LlavaOnevision2Processor) -> LlavaOnevision2Config:
    """A preset's config with the token ids of a processor; `tiny` with a tokenizer of bytes needs 512 entries of vocabulary."""
    text: dict[str, Any] = {}
    if preset == BYTES and len(processor.tokenizer) <= VOCABULARY_SIZE:
        text["vocab_size"] = VOCABULARY_SIZE
    return LlavaOnevision2Config.from_preset(preset, text_config=text, **processor.token_ids())  # type: ignore[arg-type]
