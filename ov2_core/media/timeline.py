"""The constant-rate timeline on which t counts: t = round(seconds * fps), seconds = t / fps (FORMATS: token shards).

In: the frames' presentation times. Out: a rate and the tick of each frame. A constant-rate clip gets its own rate, so t is
the frame's index. A variable-rate clip gets the lowest common rate that puts every frame within 5 ms of its true time on a
tick of its own; 1000 ticks a second is the last resort.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

COMMON_RATES = tuple(Fraction(n, d) for n, d in (
    (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (100, 1), (120, 1),
))  # fmt: skip
MAX_ERROR_SECONDS = 0.005
MAX_RATE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Ticks of T frames, strictly ascending from 0."""

    fps: Fraction
    ticks_T: npt.NDArray[np.int32]
    variable_rate: bool
    """Some frame does not follow its predecessor by exactly one tick."""


def fit_timeline(seconds_T: npt.NDArray[np.float64], header_rates: Sequence[Fraction]) -> Timeline:
    """Fit a timeline to strictly ascending presentation times.

    Args:
        seconds_T: [T >= 1] presentation times; the first becomes t = 0.
        header_rates: what the container says, most trusted first; rates outside (0, 1000] are ignored.
    """
    relative_T = seconds_T - seconds_T[0]
    header = [r for r in header_rates if 0 < r <= MAX_RATE]
    if len(relative_T) == 1:
        fps = header[0] if header else Fraction(25)
        return Timeline(fps=fps, ticks_T=np.zeros(1, np.int32), variable_rate=False)
    candidates = [*header, _mean_rate(relative_T), *COMMON_RATES, Fraction(MAX_RATE)]
    for fps in candidates:
        ticks_T = np.rint(relative_T * float(fps)).astype(np.int64)
        steps = np.diff(ticks_T)
        if steps.min() >= 1 and np.abs(ticks_T / float(fps) - relative_T).max() <= MAX_ERROR_SECONDS:
            break
    else:  # two frames within half a millisecond: keep them apart, later ones shifted by a tick
        ticks_T = np.arange(len(ticks_T)) + np.maximum.accumulate(ticks_T - np.arange(len(ticks_T)))
        steps = np.diff(ticks_T)
    return Timeline(fps=fps, ticks_T=ticks_T.astype(np.int32), variable_rate=bool((steps != 1).any()))


def _mean_rate(relative_T: npt.NDArray[np.float64]) -> Fraction:
    """The frames' mean rate, snapped to a common one within 0.1 %: headers may lie, and many carry rounded rates."""
    rate = (len(relative_T) - 1) / float(relative_T[-1])
    for common in COMMON_RATES:
        if abs(rate / float(common) - 1) < 1e-3:
            return common
    return Fraction(min(rate, float(MAX_RATE))).limit_denominator(1001)
