"""What an evaluation is made of: rows of truth, answers to them, scores of one item.

Every metric of a suite is a number in [0, 1] for each item, more is better, and the suite's value is its mean over items; so a
missing or unreadable answer is a plain 0 in the mean, and confidence intervals are those of a mean.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["read", "unreadable", "missing"]
"""unreadable: there is an answer, but nothing in it is what was asked for. Both are wrong; they are counted apart."""

Tone = Literal["truth", "hit", "miss", "false"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Something at a time, or over a time, on an item's timeline."""

    start_seconds: float
    end_seconds: float
    tone: Tone
    """truth: was found; miss: truth that was not found; hit and false: of the prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemScore:
    """One item's metrics and what they were made of."""

    metrics: dict[str, float]
    """The same names for every item of a group."""
    status: Status = "read"
    groups: tuple[str, ...] = ()
    """Types that the item belongs to; each gets means of its own."""
    detail: dict[str, Any] = field(default_factory=dict)
    """As JSON: parsed prediction, parsed truth, counts."""
    truth_marks: tuple[Mark, ...] = ()
    predicted_marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthItem:
    """A row of a truth file."""

    id: str
    answer: Any
    """As the suite reads it."""
    row: dict[str, Any]
    """The whole row: video, question, type, ..."""
    folder: str
    """Of the file: relative paths in the row are relative to it."""
