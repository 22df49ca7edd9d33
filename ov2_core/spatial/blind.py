"""A solver that sees the text alone: if it beats chance, the questions can be guessed.

Enters: questions with choices. Leaves: per type, its accuracy beside chance. It learns: a logistic scorer over hashed features of
each choice (its letter, its words, each with each word of the question, its rank among numbers, its nearness to coordinates in the
question), fitted on half of the scenes and tested on the other half, then the other way round. Beside it, three simple guessers:
the most frequent letter, the most frequent text, the middle number.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.spatial.formats import LETTERS
from schemas.spatial import SpatialQuestion

BITS = 16
EPOCHS = 6
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)?|-?\d+(?:\.\d+)?")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_POINT = re.compile(r"\((-?\d+(?:\.\d+)?), (-?\d+(?:\.\d+)?)\)")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindScore:
    """How well one type is guessed."""

    type: str
    num_questions: int
    chance: float
    """Mean of 1 / number of choices."""
    accuracy: float
    """Of the best guesser."""
    guesser: str

    @property
    def excess(self) -> float:
        """Accuracy above chance."""
        return self.accuracy - self.chance


def blind_scores(questions: Iterable[SpatialQuestion], *, max_per_type: int = 6000) -> list[BlindScore]:
    """Scores of all types with choices, by type."""
    types: dict[str, list[SpatialQuestion]] = defaultdict(list)
    for question in questions:
        if question.choices is not None and len(types[question.type]) < max_per_type:
            types[question.type].append(question)
    return [_score(kind, group) for kind, group in sorted(types.items()) if len(group) >= 2]


def _score(kind: str, questions: Sequence[SpatialQuestion]) -> BlindScore:
    halves = [zlib.crc32(question.scene_id.encode()) % 2 for question in questions]
    right = {"learned": 0, "letter": 0, "text": 0, "middle": 0}
    for tested in (0, 1):
        train = [q for q, half in zip(questions, halves, strict=True) if half != tested]
        test = [q for q, half in zip(questions, halves, strict=True) if half == tested]
        if not train or not test:
            continue
        right["learned"] += _learned(train, test)
        letters = Counter(question.answer for question in train)
        texts = Counter(_text(question) for question in train)
        for question in test:
            options = question.choices or []
            right["letter"] += max(LETTERS[: len(options)], key=lambda c: letters[c]) == question.answer
            right["text"] += max(options, key=lambda c: texts[c]) == _text(question)
            numbers = [float(_NUMBER.findall(option)[0]) if _NUMBER.search(option) else 0.0 for option in options]
            right["middle"] += int(np.argsort(numbers, kind="stable")[len(options) // 2]) == LETTERS.index(
                question.answer
            )
    guesser = max(right, key=lambda name: right[name])
    return BlindScore(
        type=kind,
        num_questions=len(questions),
        chance=float(np.mean([1 / len(question.choices or [1]) for question in questions])),
        accuracy=right[guesser] / len(questions),
        guesser=guesser,
    )


def _text(question: SpatialQuestion) -> str:
    return (question.choices or [""])[LETTERS.index(question.answer)]


def _learned(train: Sequence[SpatialQuestion], test: Sequence[SpatialQuestion]) -> int:
    weights = np.zeros(1 << BITS)
    fit(*_arrays(train), weights, EPOCHS)
    features, starts, owners, answers = _arrays(test)
    return int(correct(features, starts, owners, answers, weights))


Ints = npt.NDArray[np.int64]


def _arrays(questions: Sequence[SpatialQuestion]) -> tuple[Ints, Ints, Ints, Ints]:
    """Features of all choices end to end, where each choice's start, each question's first choice, and the right ones."""
    features: list[int] = []
    starts, owners, answers = [0], [0], []
    for question in questions:
        for row in choice_features(question):
            features += row
            starts.append(len(features))
        owners.append(len(starts) - 1)
        answers.append(LETTERS.index(question.answer))
    return np.array(features), np.array(starts), np.array(owners), np.array(answers)


def choice_features(question: SpatialQuestion) -> list[list[int]]:
    """Hashed features of each choice."""
    choices = question.choices or []
    words = sorted(set(_WORD.findall(question.question.lower())))
    asked = _POINT.findall(question.question)
    numbers = [[float(n) for n in _NUMBER.findall(choice)] for choice in choices]
    ranks = _ranks([n[0] if n else 0.0 for n in numbers])
    near = aside = above = [0] * len(choices)
    if asked and all(_POINT.fullmatch(choice) for choice in choices):
        x, y = map(float, asked[0])
        near = _ranks([float(np.hypot(n[0] - x, n[1] - y)) for n in numbers])
        aside, above = _ranks([abs(n[0] - x) for n in numbers]), _ranks([abs(n[1] - y) for n in numbers])
    shift = ""
    if len(asked) == 2:
        (x, y), (u, v) = (tuple(map(float, point)) for point in asked)
        shift = f"{int(abs(u - x)) // 60} {int(abs(v - y)) // 60}"
    rows = []
    for k, choice in enumerate(choices):
        own = _WORD.findall(choice.lower())
        first = question.question.lower().find(choice.lower())
        others = [question.question.lower().find(c.lower()) for c in choices]
        names = [f"letter {k}", f"rank {ranks[k]} of {len(choices)}", f"near {near[k]}", f"text {choice}"]
        names += [f"aside {aside[k]}", f"above {above[k]}", f"shift {shift} {choice}"]
        names += [f"place {sorted(others).index(first)} {first >= 0}", f"length {min(9, len(choice) // 4)}"]
        names += [f"size {n // 100 if abs(n) >= 100 else round(n, 0)}" for n in numbers[k][:2]]
        names += [f"word {word}" for word in own]
        names += [f"both {word} {other}" for word in (own or [choice]) for other in words]
        names += [f"coordinate {i} {int(float(c)) // 100} {choice}" for i, p in enumerate(asked) for c in p]
        names += [
            f"against {word} {other}" for c in choices if c != choice for word in own for other in _WORD.findall(c)
        ]
        rows.append([zlib.crc32(name.encode()) & ((1 << BITS) - 1) for name in names])
    return rows


def _ranks(values: Sequence[float]) -> list[int]:
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return [int(rank) for rank in order]


@kernel()
def fit(
    features: Ints, starts: Ints, owners: Ints, answers: Ints, weights: npt.NDArray[np.float64], epochs: int
) -> None:
    """Multinomial logistic regression by gradient steps over the questions, in order; changes the weights."""
    for epoch in range(epochs):
        rate = 0.06 / (1 + epoch)
        for q in range(len(answers)):
            first, last = owners[q], owners[q + 1]
            scores = np.zeros(last - first)
            for c in range(first, last):
                for f in range(starts[c], starts[c + 1]):
                    scores[c - first] += weights[features[f]]
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            for c in range(first, last):
                step = rate * ((1.0 if c - first == answers[q] else 0.0) - shares[c - first])
                for f in range(starts[c], starts[c + 1]):
                    weights[features[f]] += step


@kernel()
def correct(features: Ints, starts: Ints, owners: Ints, answers: Ints, weights: npt.NDArray[np.float64]) -> int:
    """Questions whose right choice has the highest score."""
    count = 0
    for q in range(len(answers)):
        best, best_score = -1, -np.inf
        for c in range(owners[q], owners[q + 1]):
            score = 0.0
            for f in range(starts[c], starts[c + 1]):
                score += weights[features[f]]
            if score > best_score:
                best, best_score = c - owners[q], score
        count += best == answers[q]
    return count
