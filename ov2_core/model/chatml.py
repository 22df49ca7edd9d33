"""Messages and vision runs to token ids and labels: the text layout of FORMATS (ChatML).

    <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n
    <|im_start|>user\n
    <0.0 seconds><|vision_start|><|image_pad|> x K<|vision_end|>\n      one run per source time, K = its merged tokens
    <0.5 seconds><|vision_start|><|image_pad|> x K<|vision_end|>\n
    What happens?<|im_end|>\n
    <|im_start|>assistant\nA dog runs.<|im_end|>

- Loss falls on the assistant's content and its <|im_end|>, on nothing else: the newline between turns is not learned, and none
  follows the last turn.
- The last run's newline takes the place of a newline that follows `<video>` in the message. A still has no timestamp and adds no
  newline of its own (unverified against the released chat template, as is anything about several media in one turn).
- "assistant\n" and the answer are tokenized apart, so that training sees the very prompt that generation ends on.
- Special tokens come from the layout alone. Text that looks like one (a caption with "<|im_end|>") is spelled out as plain text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

IGNORE_INDEX = -100
DEFAULT_SYSTEM = "You are a helpful assistant."
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
SPECIAL_TOKENS = (IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD)

_PLACEHOLDER = re.compile(r"<(video|image)>")
_TIMESTAMP = re.compile(r"<(\d+(?:\.\d+)?) seconds>")
_CACHE_ENTRIES = 1 << 16
_CACHED_CHARACTERS = 32


class Turn(Protocol):
    """One message; schemas.video.Message is one."""

    @property
    def role(self) -> Any: ...
    @property
    def content(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionRuns:
    """What one placeholder stands for: runs of merged tokens, in order."""

    kind: str
    """ "video" or "image"."""
    seconds_R: tuple[float | None, ...]
    """Source time of each run; None for a still, which gets no timestamp."""
    num_tokens_R: tuple[int, ...]
    """Merged tokens of each run."""
    timestamp_decimal: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Plain text, or one special token repeated."""

    text: str
    count: int
    """0: `text` is plain text; else it is a special token, so many times."""
    supervised: bool


def time_runs(t_K: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Times and lengths of the runs of consecutive merged tokens with one t, across canvases."""
    starts = np.flatnonzero(np.diff(t_K, prepend=t_K[:1] - 1))
    return t_K[starts], np.diff(starts, append=len(t_K))


def format_seconds(seconds: float, decimals: int) -> str:
    """ "<0.5 seconds>"."""
    return f"<{seconds:.{decimals}f} seconds>"


def parse_seconds(text: str) -> list[float]:
    """The timestamps in a text, in order."""
    return [float(match) for match in _TIMESTAMP.findall(text)]


def parse_ticks(text: str, fps: float) -> list[int]:
    """The t of each timestamp. Exact where a tick is wider than the last decimal: fps < 10 ** decimals."""
    return [round(seconds * fps) for seconds in parse_seconds(text)]


def lay_out(
    messages: Sequence[Turn], visuals: Sequence[VisionRuns], *, default_system: str, for_generation: bool
) -> list[Segment]:
    """The conversation as segments.

    Args:
        visuals: in the order of the placeholders.
        default_system: opens a conversation that has no system turn; "" for none.
        for_generation: leave the answers after the last user turn out and end on an open assistant turn.

    Raises:
        ValueError: placeholders and visuals differ in number or kind; no user turn; an unknown role.
    """
    turns = _checked(messages, for_generation=for_generation)
    _match_placeholders(turns, visuals)
    out = _Writer()
    if default_system and turns[0].role != "system":
        out.special(IM_START)
        out.text(f"system\n{default_system}")
        out.special(IM_END)
    remaining = iter(visuals)
    for turn in turns:
        if out.segments:
            out.text("\n")
        out.special(IM_START)
        out.text(f"{turn.role}\n")
        if turn.role == "assistant":
            out.text(turn.content, supervised=True)
            out.special(IM_END, supervised=True)
            continue
        _write_content(out, turn, remaining)
        out.special(IM_END)
    if for_generation:
        out.text("\n")
        out.special(IM_START)
        out.text("assistant\n")
    return out.segments


class TextEncoder:
    """Segments to ids, by a Hugging Face tokenizer with Qwen's special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ValueError for a tokenizer that lacks one of SPECIAL_TOKENS."""
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        unknown = tokenizer.unk_token_id
        self.special_ids: dict[str, int] = {}
        for token in SPECIAL_TOKENS:
            token_id = tokenizer.convert_tokens_to_ids(token)
            if token_id is None or token_id == unknown:
                raise ValueError(
                    f"the tokenizer has no {token}; a Qwen tokenizer with {', '.join(SPECIAL_TOKENS)} is needed"
                )
            self.special_ids[token] = int(token_id)

    def encode(self, segments: Sequence[Segment]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """ids [L] and labels [L]: the id where supervised, else IGNORE_INDEX."""
        texts = self._plain({segment.text for segment in segments if segment.count == 0})
        ids: list[npt.NDArray[np.int64]] = []
        labels: list[npt.NDArray[np.int64]] = []
        for segment in segments:
            if segment.count:
                part = np.full(segment.count, self.special_ids[segment.text], np.int64)
            else:
                part = np.asarray(texts[segment.text], np.int64)
            ids.append(part)
            labels.append(part if segment.supervised else np.full(len(part), IGNORE_INDEX, np.int64))
        return np.concatenate(ids), np.concatenate(labels)

    def _plain(self, texts: set[str]) -> dict[str, list[int]]:
        """Ids of plain texts. Timestamps recur from clip to clip and are kept."""
        found = {text: self._cache[text] for text in texts if text in self._cache}
        new = sorted(texts - found.keys())
        if new:
            made = self._tokenizer(
                new, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )
            fresh = dict(zip(new, made["input_ids"], strict=True))
            found.update(fresh)
            if len(self._cache) < _CACHE_ENTRIES:
                self._cache.update({text: ids for text, ids in fresh.items() if len(text) <= _CACHED_CHARACTERS})
        return found


class _Writer:
    """Joins neighbouring text of one kind, so that it is tokenized as it will be read."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def text(self, text: str, *, supervised: bool = False) -> None:
        last = self.segments[-1] if self.segments else None
        if last is not None and last.count == 0 and last.supervised == supervised:
            self.segments[-1] = Segment(last.text + text, 0, supervised)
        elif text:
            self.segments.append(Segment(text, 0, supervised))

    def special(self, token: str, count: int = 1, *, supervised: bool = False) -> None:
        self.segments.append(Segment(token, count, supervised))


def _write_content(out: _Writer, turn: Turn, visuals: Any) -> None:
    """A system or user turn with its placeholders expanded."""
    content, at = turn.content, 0
    for match in _PLACEHOLDER.finditer(content) if turn.role == "user" else ():
        out.text(content[at : match.start()])
        runs: VisionRuns = next(visuals)
        for seconds, count in zip(runs.seconds_R, runs.num_tokens_R, strict=True):
            if seconds is not None:
                out.text(format_seconds(seconds, runs.timestamp_decimal))
            out.special(VISION_START)
            out.special(IMAGE_PAD, count)
            out.special(VISION_END)
            if seconds is not None:
                out.text("\n")
        at = match.end()
        if runs.kind == "video" and content.startswith("\n", at):
            at += 1
    out.text(content[at:])


def _checked(messages: Sequence[Turn], *, for_generation: bool) -> list[Turn]:
    turns = list(messages)
    for number, turn in enumerate(turns):
        if turn.role not in ("system", "user", "assistant") or (turn.role == "system" and number):
            raise ValueError(
                f"turn {number} has role {turn.role!r}; expected user or assistant, and system as the first alone"
            )
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not users:
        raise ValueError(f"the conversation of {len(turns)} turns has no user turn; give messages or a prompt")
    return turns[: users[-1] + 1] if for_generation else turns


def _match_placeholders(turns: Sequence[Turn], visuals: Sequence[VisionRuns]) -> None:
    kinds = [kind for turn in turns if turn.role == "user" for kind in _PLACEHOLDER.findall(turn.content)]
    if len(kinds) != len(visuals):
        raise ValueError(
            f"{len(kinds)} placeholders (<video>, <image>) in the user turns, but {len(visuals)} media given; "
            "each medium needs one placeholder"
        )
    for number, (kind, runs) in enumerate(zip(kinds, visuals, strict=True)):
        if kind != runs.kind:
            raise ValueError(
                f"placeholder {number} is <{kind}>, but medium {number} is a {runs.kind}; write <{runs.kind}>"
            )
