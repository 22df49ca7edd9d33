"""Our own model as something that answers an evaluation's questions (evals/asking.py).

The one file between evals, which run without torch, and `generate`. Input modes are those of `ov2 generate` and "evidence", which
is codec with the policy evidence. Questions are asked one at a time, greedily.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ov2_core.evals.asking import Answer, Question
from ov2_core.generate import OneVisionChat

AskMode = Literal["codec", "evidence", "frames", "stills"]


@dataclass(kw_only=True)
class ModelAnswerer:
    """A loaded model with an input mode and a budget."""

    chat: OneVisionChat
    name: str
    """Of the model, for the record."""
    mode: AskMode = "codec"
    budget: int = 32
    overrides: Mapping[str, str] = field(default_factory=dict)
    max_new_tokens: int = 1024
    max_in_flight: int = 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(AskMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(AskMode))}, got {self.mode!r}")

    def settings(self) -> dict[str, Any]:
        names = ("mode", "budget", "max_new_tokens")
        return {"model": self.name, "overrides": dict(self.overrides)} | {name: getattr(self, name) for name in names}

    def answer(self, question: Question) -> Answer:
        """One answer, with the number of visual tokens that it was given.

        Raises:
            ValueError: the question does not fit the model's context.
            BadItemError: its media cannot be read.
        """
        overrides = {"timestamp_decimal": str(question.timestamp_decimal), **self.overrides}
        if self.mode == "evidence":
            overrides["policy"] = "evidence"
        asked = self.chat.prepare(
            question.prompt,
            video=question.video,
            image=list(question.images) or None,
            input="codec" if self.mode == "evidence" else self.mode,
            budget=self.budget,
            overrides=overrides,
        )
        text = "".join(self.chat.generate(asked, max_new_tokens=self.max_new_tokens))
        return Answer(text=text, num_visual_tokens=asked.num_visual_tokens)
