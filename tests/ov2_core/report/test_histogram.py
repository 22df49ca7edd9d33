"""Every value stands in the bar whose range holds it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core.report.histogram import MAX_BARS, count_categories, count_numbers


@given(
    st.lists(st.floats(0, 1e12, allow_subnormal=False), min_size=1, max_size=60),
    st.sampled_from(["seconds", "bytes", "count", "ratio"]),
)
def test_bars_count_each_value_once_in_its_range(values, unit):
    histogram = count_numbers("x", values, unit=unit)
    assert sum(bar.count for bar in histogram.bars) == len(values)
    assert len(histogram.bars) <= MAX_BARS + 3
    tolerance = 1e-9 * max(values)
    for bar in histogram.bars:
        assert bar.low < bar.high
        inside = [v for v in values if bar.low - tolerance <= v <= bar.high + tolerance]
        assert bar.count <= len(inside)
    for before, after in zip(histogram.bars, histogram.bars[1:], strict=False):
        assert before.high == after.low


def test_bars_agree_with_a_count_by_hand():
    histogram = count_numbers("x", [0, 0, 1, 5, 5, 5, 9], unit="count")
    assert {(bar.low, bar.count) for bar in histogram.bars if bar.count} == {(0, 2), (1, 1), (5, 3), (9, 1)}
    assert histogram.median == 5
    assert histogram.scale == "linear"


def test_scale_is_logarithmic_for_a_wide_span_alone():
    assert count_numbers("x", [1, 10, 1000], unit="seconds").scale == "log"
    assert count_numbers("x", [1, 10, 50], unit="seconds").scale == "linear"
    assert count_numbers("x", [0, 10, 1000], unit="seconds").scale == "linear"


def test_numbers_of_nothing_are_none_and_nan_is_refused():
    assert count_numbers("x", [], unit="count") is None
    with pytest.raises(ValueError, match="finite"):
        count_numbers("x", [np.nan], unit="count")


def test_categories_are_ordered_and_cut():
    histogram = count_categories("codec", {"a": 2, "c": 5, "b": 2, "d": 1}, limit=2)
    assert [(bar.label, bar.count) for bar in histogram.bars] == [("c", 5), ("a", 2), ("other", 3)]
