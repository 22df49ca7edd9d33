"""How many samples a stage takes of each source, and which: exact counts, seeded draws.

Enters: what is asked (a weight or a count a source), what is there, the seed. Leaves: counts that sum exactly, and draws without
replacement. A draw takes the samples with the smallest hashes of (seed, source, id): it depends on neither the order of a
source nor its other samples, so a stage of 1,000 samples is a part of the stage of 10,000 with the same seed.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ov2_core.data.shuffle import text_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What is asked of one source: exactly one of weight and count."""

    name: str
    weight: float | None = None
    """Relative to the other sources with weights."""
    count: int | None = None
    """Samples."""

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.count is None):
            raise ValueError(f"source {self.name!r}: give exactly one of weight and count")
        if self.weight is not None and not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"source {self.name!r}: weight must be > 0, got {self.weight}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"source {self.name!r}: count must be >= 1, got {self.count}")


def split_exactly(total: int, weights: Sequence[float | Fraction]) -> list[int]:
    """Counts that sum to `total`, each within one of its exact share: the method of the largest remainder (Hamilton).

    Shares are exact fractions of the weights as given; equal remainders go to the first. Raises ValueError for a total below 0
    or weights that are not all > 0.
    """
    if total < 0 or not weights or min(weights) <= 0:
        raise ValueError(f"a total >= 0 and weights > 0 are needed, got {total} and {list(weights)}")
    exact = [Fraction(weight) for weight in weights]
    whole = sum(exact)
    shares = [total * weight / whole for weight in exact]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def plan_counts(shares: Sequence[Share], available: Mapping[str, int], *, limit: int | None) -> dict[str, int]:
    """Samples of each source.

    Without a limit, counts are taken as they are and weighted sources give as much as they can at their proportions: the first
    to run out decides. With a limit, that plan is scaled down to exactly `limit` samples (never up).

    Args:
        available: usable samples by source.

    Raises:
        ValueError: no source, a name twice, or a count of more samples than the source has; both numbers are named.
    """
    names = [share.name for share in shares]
    if not shares or len(set(names)) < len(names):
        raise ValueError(f"a mixture needs at least one source, each named once, got {names}")
    for share in shares:
        there = available[share.name]
        if there < 1:
            raise ValueError(
                f"source {share.name!r} has no usable sample; look at what was dropped of it, or remove it"
            )
        if share.count is not None and limit is None and share.count > there:
            raise ValueError(
                f"source {share.name!r}: {share.count} samples asked, {there} usable; lower its count, or give more data"
            )
    counts = {share.name: share.count for share in shares if share.count is not None}
    weighted = {share.name: Fraction(share.weight) for share in shares if share.weight is not None}
    if weighted:
        most = min(Fraction(available[name]) / weight for name, weight in weighted.items())
        total = math.floor(most * sum(weighted.values()))
        split = split_exactly(total, list(weighted.values()))
        while any(count > available[name] for name, count in zip(weighted, split, strict=True)):  # a rounded-up share
            total -= 1
            split = split_exactly(total, list(weighted.values()))
        counts |= dict(zip(weighted, split, strict=True))
    planned = sum(counts.values())
    if limit is not None and limit < planned:
        given = {name: n for name, n in counts.items() if n}
        scaled = dict.fromkeys(counts, 0) | dict(zip(given, split_exactly(limit, list(given.values())), strict=True))
        short = {name: n for name, n in scaled.items() if n > available[name]}
        if short:
            listed = ", ".join(f"{name} {n} of {available[name]}" for name, n in short.items())
            raise ValueError(
                f"--limit {limit} still asks for more than there is: {listed}; lower the counts or the limit"
            )
        counts = scaled
    elif any(n > available[name] for name, n in counts.items()):
        listed = ", ".join(f"{name} {n} of {available[name]}" for name, n in counts.items() if n > available[name])
        raise ValueError(f"more samples asked than usable: {listed}; lower the counts, or give more data")
    return {name: counts[name] for name in names}


def sample_hash(seed: int, source: str, id: str) -> int:
    """Place of a sample in the draws of its source; the smallest are taken first."""
    return text_hash(seed, "draw", source, id)


def smallest(hashes: Iterable[int], num: int) -> npt.NDArray[np.int64]:
    """Positions of the `num` smallest hashes (fewer where there are not so many), by hash; ties to the first."""
    kept = heapq.nsmallest(num, ((value, position) for position, value in enumerate(hashes)))
    return np.array([position for _, position in kept], np.int64)


def interleave(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """int64 [sum of counts, 2]: (source, place in the source), the sources spread evenly over the whole, each in its own order.

    So any stretch of a stage has the stage's mixture, while each source is read from its first shard to its last.
    """
    source = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(n) for n in counts]) if len(counts) else np.zeros(0, np.int64)
    at = (place + 0.5) / np.asarray(counts, np.float64)[source]
    return np.stack([source, place], axis=1)[np.lexsort((source, at))]
