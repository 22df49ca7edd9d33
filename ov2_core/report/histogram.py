"""Numbers to a few bars with round edges, for the report's distributions.

Enters: values of one quantity. Leaves: a Histogram, on a logarithmic scale where the values span more than LOG_SPAN.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

LOG_SPAN = 60.0
"""Largest / smallest value above which bars are equally wide in log10."""
MAX_BARS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """Values in [low, high), or of one category."""

    label: str
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    title: str
    unit: Literal["seconds", "bytes", "count", "ratio"]
    kind: Literal["number", "category"]
    scale: Literal["linear", "log"]
    bars: list[Bar]
    median: float
    high: float
    """95th percentile."""
    largest: float


def count_numbers(
    title: str, values: npt.ArrayLike, *, unit: Literal["seconds", "bytes", "count", "ratio"]
) -> Histogram | None:
    """Bars over the range of the values, each counted once; None without values.

    Raises:
        ValueError: a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return None
    if not np.isfinite(array).all():
        raise ValueError(f"{title}: values must be finite")
    low, high = float(array.min()), float(array.max())
    log = low > 0 and LOG_SPAN < high / low < 10.0**MAX_BARS
    edges = _log_edges(low, high) if log else _linear_edges(low, high, whole=unit in ("count", "bytes"))
    index = np.clip(np.searchsorted(edges, array, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(index, minlength=len(edges) - 1)
    bars = [
        Bar(label="", low=float(edges[i]), high=float(edges[i + 1]), count=int(count)) for i, count in enumerate(counts)
    ]
    return Histogram(
        title=title,
        unit=unit,
        kind="number",
        scale="log" if log else "linear",
        bars=bars,
        median=float(np.median(array)),
        high=float(np.percentile(array, 95)),
        largest=high,
    )


def count_categories(title: str, names: Iterable[str] | Mapping[str, int], *, limit: int = 10) -> Histogram | None:
    """One bar a name, largest first, ties by name; what is past `limit` is summed as "other". None without names."""
    counts = Counter(names)
    if not counts:
        return None
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[limit:])
    shown = ordered[:limit] + ([("other", rest)] if rest else [])
    bars = [Bar(label=name, low=0, high=0, count=count) for name, count in shown]
    return Histogram(
        title=title, unit="count", kind="category", scale="linear", bars=bars, median=0, high=0, largest=ordered[0][1]
    )


def _linear_edges(low: float, high: float, *, whole: bool) -> npt.NDArray[np.float64]:
    if high - low <= 1e-9 * abs(high):
        return np.array([low, high + (1.0 if whole else max(abs(high) * 0.01, 1e-6))])
    step = _nice_step((high - low) / MAX_BARS)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return np.asarray(np.arange(first, last + 1) * step, np.float64)


def _log_edges(low: float, high: float) -> npt.NDArray[np.float64]:
    per_decade = next(n for n in (8, 5, 4, 3, 2, 1) if n * math.log10(high / low) <= MAX_BARS - 2 or n == 1)
    first, last = math.floor(math.log10(low) * per_decade), math.floor(math.log10(high) * per_decade) + 1
    return np.asarray(10.0 ** (np.arange(first, last + 1) / per_decade), np.float64)


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
