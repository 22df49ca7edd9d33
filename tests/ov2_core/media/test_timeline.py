"""Timeline: every frame's tick tells its true time, and constant-rate clips count frames."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.media.timeline import fit_timeline


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(10), Fraction(15, 2)]
)
@pytest.mark.parametrize("rounding_seconds", [None, 0.001])
def test_timeline_of_a_constant_rate_counts_frames(rate, rounding_seconds):
    seconds = np.arange(4000) / float(rate)
    if rounding_seconds:  # matroska stores whole milliseconds
        seconds = np.round(seconds / rounding_seconds) * rounding_seconds
    timeline = fit_timeline(seconds, [rate])
    assert (timeline.ticks_T == np.arange(4000)).all()
    assert timeline.fps == rate
    assert not timeline.variable_rate


def test_timeline_mistrusts_a_lying_header():
    seconds = 7 + np.arange(3000) / 25
    timeline = fit_timeline(seconds, [Fraction(1000), Fraction(90000), Fraction(24)])
    assert np.abs(timeline.ticks_T / float(timeline.fps) - (seconds - 7)).max() <= 0.005


def test_timeline_of_dropped_frames_keeps_the_rate_and_skips_ticks():
    kept = np.array([0, 1, 2, 5, 6, 20, 21])
    timeline = fit_timeline(kept / 30, [Fraction(30)])
    assert timeline.ticks_T.tolist() == kept.tolist()
    assert timeline.variable_rate


def test_timeline_of_one_frame():
    timeline = fit_timeline(np.array([3.0]), [])
    assert timeline.ticks_T.tolist() == [0]
    assert timeline.fps > 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 2_000_000), min_size=1, max_size=60),
    st.sampled_from([[], [Fraction(30)], [Fraction(0), Fraction(12)]]),
)
def test_timeline_is_strictly_ascending_and_near_the_truth(steps_us, rates):
    seconds = np.cumsum([0, *steps_us]) / 1e6
    timeline = fit_timeline(seconds, rates)
    assert timeline.ticks_T[0] == 0
    assert (np.diff(timeline.ticks_T) >= 1).all()
    if min(steps_us) >= 1000:  # two frames in one millisecond cannot both be told apart and on time
        assert np.abs(timeline.ticks_T / float(timeline.fps) - seconds).max() <= 0.005 + 1e-9
