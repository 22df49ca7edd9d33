"""Greedy answers are judged word for word, the end of the turn included, and as `generate` gives them."""

from types import SimpleNamespace

import pytest
import torch

from ov2_core.model.answers import greedy_answers
from ov2_core.model.create import open_model, open_processor

TURNS = [("user", "One?"), ("assistant", "ab"), ("user", "Two?"), ("assistant", "c")]


class Scripted(torch.nn.Module):
    """A model whose likeliest next token is the true one, but for chosen (sample, answer, letter)."""

    def __init__(self, samples, wrong) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.samples, self.wrong = samples, wrong

    def forward(self, input_ids, **_) -> SimpleNamespace:
        assert not self.training
        following = torch.cat([input_ids[:, 1:], torch.zeros_like(input_ids[:, :1])], 1)
        for row, answer, letter in self.wrong:
            scored = (self.samples[row].labels != -100).nonzero()[:, 0].tolist()
            starts = [place for place in scored if place - 1 not in scored]
            following[row, starts[answer] + letter - 1] = 7
        return SimpleNamespace(logits=torch.nn.functional.one_hot(following, 512).float())


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([], [[True, True], [True]]),
        ([(0, 0, 0)], [[False, True], [True]]),
        ([(0, 0, 1)], [[False, True], [True]]),
        ([(0, 0, 2)], [[False, True], [True]]),  # its <|im_end|>
        ([(0, 1, 1), (1, 0, 0)], [[True, False], [False]]),
    ],
)
def test_an_answer_is_right_if_every_token_and_its_end_is_the_likeliest(wrong, expected) -> None:
    processor = open_processor("tiny")
    turns = [{"role": role, "content": content} for role, content in TURNS]
    samples = [processor.encode(messages=turns), processor.encode(messages=turns[2:])]
    model = Scripted(samples, wrong).train()
    assert greedy_answers(model, processor, samples) == expected
    assert model.training


def test_a_model_is_judged_as_it_generates() -> None:
    """A model that always says one byte and then the end: `generate` agrees."""
    processor = open_processor("tiny")
    model = open_model("tiny", processor, seed=1)
    with torch.no_grad():
        model.lm_head.weight[processor.tokenizer.eos_token_id].zero_()
    prompt = [{"role": "user", "content": "One?"}]
    batch = processor(messages=prompt, for_generation=True)
    model.eval()
    made = model.generate(**batch.prompt(), max_new_tokens=3, do_sample=False)[0, batch.input_ids.shape[1] :]
    ids = torch.cat([batch.input_ids[0], made])
    labels = torch.cat([torch.full_like(batch.input_ids[0], -100), made])
    sample = processor.encode(messages=[*prompt, {"role": "assistant", "content": "abc"}])
    same = type(sample)(input_ids=ids, labels=labels, vision=None)
    other = type(sample)(input_ids=ids, labels=labels.clone(), vision=None)
    other.labels[-1] = (other.labels[-1] + 1) % 256
    assert greedy_answers(model, processor, [same, other]) == [[True], [False]]
