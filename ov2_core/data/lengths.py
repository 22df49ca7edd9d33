"""Tokens of a sample without decoding a picture: by the very layout that the processor uses, so counts are equal exactly.

Enters: messages and what the media's positions say (`Visual`s of samples without pictures). Leaves: lengths, and the
conversation, cut by trailing rounds where it would not fit. Imports the text layout, and with it torch: stages are built where a
tokenizer is.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ov2_core.model.chatml import IGNORE_INDEX, SPECIAL_TOKENS, TextEncoder, VisionRuns, lay_out
from ov2_core.model.processor import LlavaOnevision2Processor
from schemas.video import Message

_PLACEHOLDER = re.compile(r"<(?:image|video)>")
_PROBE = "A dog, 2.5 s — <tag> \n\n naïve 日本 🙂 <|im_end|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """Tokens of one sample."""

    num_tokens: int
    num_visual_tokens: int
    num_supervised_tokens: int
    messages: list[Message]
    """Those that count: all, or without the trailing rounds that were cut."""
    num_rounds_cut: int


class LengthCounter:
    """Counts with one processor's tokenizer and system line."""

    def __init__(self, processor: LlavaOnevision2Processor) -> None:
        self.processor = processor
        self._text = TextEncoder(processor.tokenizer)

    def measure(
        self, messages: Sequence[Message], runs: Sequence[VisionRuns], *, limit: int, may_cut: bool = True
    ) -> Length | None:
        """The length, cut to `limit` tokens if it must be; None where even the first round does not fit.

        Only whole trailing rounds (a question and its answer) that hold no placeholder are cut, as few as suffice.

        Raises:
            ValueError: placeholders and media differ, or an unknown role.
        """
        whole = self._count(messages, runs)
        if whole[0] <= limit:
            return _length(whole, runs, messages, 0)
        if not may_cut:
            return None
        rounds = _rounds(messages)
        with_media = [n for n, (start, stop) in enumerate(rounds, 1) if _has_media(messages[start:stop])]
        fewest = max(with_media, default=1)
        # The most rounds that fit: lengths grow with rounds, so halve.
        low, high, best = fewest, len(rounds) - 1, None
        while low <= high:
            middle = (low + high) // 2
            kept = _first_rounds(messages, rounds, middle)
            counted = self._count(kept, runs)
            if counted[0] <= limit:
                best, low = _length(counted, runs, kept, len(rounds) - middle), middle + 1
            else:
                high = middle - 1
        return best

    def _count(self, messages: Sequence[Message], runs: Sequence[VisionRuns]) -> tuple[int, int]:
        """(tokens, supervised tokens)."""
        system = self.processor.config.default_system
        ids, labels = self._text.encode(lay_out(messages, runs, default_system=system, for_generation=False))
        return len(ids), int((labels != IGNORE_INDEX).sum())


def layout_digest(processor: LlavaOnevision2Processor) -> str:
    """sha256 of what decides lengths: vocabulary, merges as a probe text shows them, patches and the system line."""
    tokenizer, config = processor.tokenizer, processor.config
    digest = hashlib.sha256()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for token, token_id in sorted(vocabulary.items()):
        digest.update(f"{token}\0{token_id}\n".encode("utf-8", "surrogatepass"))
    shown: dict[str, Any] = {
        "probe": tokenizer(_PROBE, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        "special": {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS},
        "patch_px": config.patch_px,
        "merge": config.merge,
        "system": config.default_system,
    }
    digest.update(json.dumps(shown, sort_keys=True).encode())
    return digest.hexdigest()


def _length(counted: tuple[int, int], runs: Sequence[VisionRuns], messages: Sequence[Message], cut: int) -> Length:
    return Length(
        num_tokens=counted[0],
        num_visual_tokens=sum(sum(run.num_tokens_R) for run in runs),
        num_supervised_tokens=counted[1],
        messages=list(messages),
        num_rounds_cut=cut,
    )


def _rounds(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """[start, stop) of each round; a system turn belongs to none."""
    starts = [i for i, turn in enumerate(messages) if turn.role == "user"]
    return list(zip(starts, [*starts[1:], len(messages)], strict=True))


def _has_media(turns: Sequence[Message]) -> bool:
    return any(_PLACEHOLDER.search(turn.content) for turn in turns if turn.role == "user")


def _first_rounds(messages: Sequence[Message], rounds: Sequence[tuple[int, int]], num: int) -> list[Message]:
    return list(messages[: rounds[num - 1][1]])
