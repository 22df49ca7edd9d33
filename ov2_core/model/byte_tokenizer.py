"""A tokenizer of bytes with Qwen's special tokens: no vocabulary to download, so `tiny` models can be made and tested anywhere.

Each UTF-8 byte is a token (ids 0-255); the special tokens have the ids of the tiny released-format example, so 512 entries of
vocabulary are enough.
"""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 512
SPECIAL_IDS = {
    "<|image_pad|>": 500,
    "<|video_pad|>": 501,
    "<|vision_start|>": 502,
    "<|vision_end|>": 503,
    "<|im_start|>": 504,
    "<|im_end|>": 505,
    "<|endoftext|>": 506,
}
CONFIG_IDS = {
    "image_token_id": 500,
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
}
"""The same as fields of a model config: `from_preset("tiny", text_config={"vocab_size": VOCABULARY_SIZE}, **CONFIG_IDS)`."""


def byte_tokenizer() -> Any:
    """A PreTrainedTokenizerFast whose eos is <|im_end|> and whose padding is <|endoftext|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | SPECIAL_IDS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_IDS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
