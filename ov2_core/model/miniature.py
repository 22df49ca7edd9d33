"""A model small enough to learn from nothing in minutes on a CPU, with a tokenizer made for what it shall read.

Enters: texts, a seed. Leaves: a folder in the released layout with random weights. The parts and their names are those of the
presets; weights are 0.6 million. Each time ("1.4") is one token, in a question's timestamps as in an answer, and input and output
share their embedding: what a large model knows of numbers and of copying before it meets a video, so small a one would have to
learn on the way.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ov2_core.model.byte_tokenizer import SPECIAL_IDS, VOCABULARY_SIZE
from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.model.create import build_model
from ov2_core.model.processor import LlavaOnevision2Processor

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_PIECES = r"<|\d+\.\d+| seconds>|, | ?\w+"


def write_miniature(folder: str | Path, texts: Iterable[str], *, seed: int) -> None:
    """Model and processor, as `--init` and `--model` take them.

    Args:
        texts: of the conversations that the model will read, among them every time by itself.
        seed: of the weights.

    Raises:
        ValueError: the texts ask for more than 500 tokens.
    """
    processor = LlavaOnevision2Processor(times_tokenizer(texts))
    config = LlavaOnevision2Config.from_preset(
        "tiny", text_config=TEXT_CONFIG, vision_config=VISION_CONFIG, **processor.token_ids()
    )
    build_model(config, processor, seed=seed).save_pretrained(folder)
    processor.save_pretrained(folder)


def times_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE of at most 500 tokens beside the special ones, learned from texts: words, times, "<" and " seconds>" whole.

    Raises:
        ValueError: there are more words and times than tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    first_special = min(SPECIAL_IDS.values())
    trainer = trainers.BpeTrainer(
        vocab_size=first_special,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    kept = list(texts)
    tokenizer.train_from_iterator(kept, trainer)
    for text in kept:
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            if len(tokenizer.model.tokenize(piece)) > 1 and any(letter.isalnum() for letter in piece):
                raise ValueError(f"{piece!r} got no token of its own; give fewer words, or times of fewer decimals")
    written = json.loads(tokenizer.to_str())
    written["model"]["vocab"].update(SPECIAL_IDS)
    tokenizer = Tokenizer.from_str(json.dumps(written))
    tokenizer.add_special_tokens(list(SPECIAL_IDS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
