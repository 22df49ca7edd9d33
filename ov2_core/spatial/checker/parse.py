"""Reading a question back: which objects, frames and points its text names. Nothing of what the generator knew comes in."""

import re
from dataclasses import dataclass
from functools import cache

from ov2_core.spatial.checker.evidence import Evidence, UnprovableError
from ov2_core.spatial.formats import LETTERS
from schemas.spatial import SpatialQuestion

_FRAME = re.compile(r"\bframe (\d+)\b|\bthe frame at (\d+(?:\.\d+)?) s\b")
_POINT = re.compile(r"\((\d{1,3}), (\d{1,3})\)")
_QUOTED = re.compile(r"'([^']+)'")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question as its text says it."""

    evidence: Evidence
    text: str
    choices: list[str] | None
    answer: str
    """The text of the choice, or the answer."""
    frames: list[int]
    """Of the scene, as shown."""

    @property
    def things(self) -> list[int]:
        """Objects named, in order."""
        return named_things(self.evidence, self.text, after="the ")

    def thing(self, text: str) -> int:
        """The one object that a choice names."""
        found = named_things(self.evidence, text)
        if len(found) != 1:
            raise UnprovableError("a choice names no object")
        return found[0]

    @property
    def named_frames(self) -> list[int]:
        """Frames of the scene that the text names, in order; the only one shown, if it names none."""
        found = []
        for match in _FRAME.finditer(self.text):
            found.append(self.frame_of(match))
        if not found:
            if len(self.frames) != 1:
                raise UnprovableError("no frame is named")
            return self.frames
        return found

    def frame_of(self, match: "re.Match[str]") -> int:
        """The scene's frame of a name."""
        if match[1] is not None:
            if not 1 <= int(match[1]) <= len(self.frames):
                raise UnprovableError("a frame is named that is not shown")
            return self.frames[int(match[1]) - 1]
        times = [frame.time_seconds for frame in self.evidence.record.frames]
        for number, time in enumerate(times):
            if f"{time:.1f}" == f"{float(match[2]):.1f}":
                return number
        raise UnprovableError("no frame stands at that time")

    def frame_named(self, text: str) -> int:
        """The frame that a choice names."""
        match = _FRAME.fullmatch(text)
        if match is None:
            raise UnprovableError("a choice names no frame")
        return self.frame_of(match)

    @property
    def points(self) -> list[tuple[int, int]]:
        """(x, y) named, 0-999."""
        return [(int(x), int(y)) for x, y in _POINT.findall(self.text)]

    @property
    def quoted(self) -> str:
        """The label in quotation marks."""
        found = _QUOTED.findall(self.text)
        if len(found) != 1:
            raise UnprovableError("no label is quoted")
        return str(found[0])

    def has(self, *words: str) -> str:
        """Which one of some words stands in the text; longer ones are looked for first."""
        for word in sorted(words, key=len, reverse=True):
            if _word(word).search(self.text):
                return word
        raise UnprovableError("the question is not understood")


@cache
def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}\b")


def named_things(evidence: Evidence, text: str, *, after: str = "") -> list[int]:
    """Objects that a text names, in order; only names behind `after`.

    Raises:
        UnprovableError: a name fits several.
    """
    if (text, after) in evidence.named:
        return list(evidence.named[text, after])
    pattern, fits = evidence.name_pattern
    found = []
    for match in pattern.finditer(text):
        name = match[1]
        if not text[: match.start()].lower().endswith(after):
            continue
        if len(fits[name]) != 1:
            raise UnprovableError("a name fits several objects")
        found.append(fits[name][0])
    evidence.named[text, after] = found
    return list(found)


def read_question(evidence: Evidence, question: SpatialQuestion) -> Asked:
    """The record as text.

    Raises:
        UnprovableError: the answer is no letter of its choices.
    """
    answer = question.answer
    if question.choices is not None:
        letters = LETTERS[: len(question.choices)]
        if len(answer) != 1 or answer not in letters:
            raise UnprovableError("the answer is no letter")
        if len(set(question.choices)) != len(question.choices):
            raise UnprovableError("two choices are alike")
        answer = question.choices[letters.index(answer)]
    return Asked(
        evidence=evidence,
        text=question.question,
        choices=question.choices,
        answer=answer,
        frames=question.frame_indices,
    )
