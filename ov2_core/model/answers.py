"""Which answers of conversations a model gives, word for word, decoding greedily.

Enters: encoded samples with labels. Leaves: a bool for each answer. Greedy decoding gives an answer exactly if each of its tokens,
and the <|im_end|> behind it, is the likeliest after the ones before; so one forward over the whole conversation judges all its
answers, each given the true ones before it, and nothing is generated.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch

from ov2_core.model.batch import EncodedSample
from ov2_core.model.chatml import IGNORE_INDEX
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.processor import LlavaOnevision2Processor


def greedy_answers(
    model: LlavaOnevision2ForConditionalGeneration,
    processor: LlavaOnevision2Processor,
    samples: Sequence[EncodedSample],
) -> list[list[bool]]:
    """For each sample, in the order of its assistant turns, whether greedy decoding gives the answer.

    The model is left in the mode that it was in.
    """
    module = cast("Any", model)
    was_training, device = module.training, next(module.parameters()).device
    module.eval()
    try:
        with torch.inference_mode():
            batch = processor.collate(samples).to(device)
            logits_BLV = module(**batch.prompt()).logits
            right_BL = (logits_BLV[:, :-1].argmax(-1) == batch.labels[:, 1:]).cpu()
    finally:
        module.train(was_training)
    return [
        _by_answer((sample.labels[1:] != IGNORE_INDEX).tolist(), right_L.tolist())
        for sample, right_L in zip(samples, right_BL, strict=True)
    ]


def _by_answer(scored_L: Sequence[bool], right_L: Sequence[bool]) -> list[bool]:
    """All right, for each run of scored places. Between two answers there is always a question."""
    answers: list[bool] = []
    inside = False
    for scored, right in zip(scored_L, right_L, strict=False):  # a batch is padded on the right
        if scored and not inside:
            answers.append(True)
        if scored:
            answers[-1] = answers[-1] and right
        inside = scored
    return answers


def greedy_answer(
    model: LlavaOnevision2ForConditionalGeneration,
    processor: LlavaOnevision2Processor,
    sample: EncodedSample,
    *,
    max_new_tokens: int,
) -> str:
    """The answer that greedy decoding gives to a sample encoded with `for_generation`, without special tokens."""
    module = cast("Any", model)
    batch = processor.collate([sample]).to(next(module.parameters()).device)
    with torch.inference_mode():
        ids_BL = module.generate(**batch.prompt(), max_new_tokens=max_new_tokens, do_sample=False)
    text: str = processor.tokenizer.decode(ids_BL[0, sample.num_tokens :], skip_special_tokens=True)
    return text
