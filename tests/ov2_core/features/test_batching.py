"""Packing by tokens: every group once, in order, never cut, never beyond the budget unless it stands alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core.features.batching import pack_spans

SAMPLES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), max_size=12)


@given(SAMPLES, st.integers(1, 100))
def test_packing_keeps_every_group_once_and_in_order(lengths: list[list[int]], max_patches: int) -> None:
    samples = [(f"k{i}", groups) for i, groups in enumerate(lengths)]
    batches = list(pack_spans(samples, max_patches=max_patches))
    seen: dict[str, list[int]] = {key: [] for key, _ in samples}
    ended = set()
    for span in (span for batch in batches for span in batch):
        assert span.key not in ended
        assert span.first_patch == sum(seen[span.key]), "a span says where in its sample it stands"
        seen[span.key] += span.group_lengths
        if span.last:
            ended.add(span.key)
    assert seen == dict(samples)
    assert ended == set(seen)


@given(SAMPLES, st.integers(1, 100))
def test_batches_fill_the_budget_and_pass_it_only_for_one_group(lengths: list[list[int]], max_patches: int) -> None:
    batches = list(pack_spans([(str(i), groups) for i, groups in enumerate(lengths)], max_patches=max_patches))
    groups = [[n for span in batch for n in span.group_lengths] for batch in batches]
    assert all(sum(batch) <= max_patches or len(batch) == 1 for batch in groups)
    for batch, following in pairwise(groups):
        assert sum(batch) + following[0] > max_patches, "the next group would have fitted"


def test_samples_are_joined_and_parted() -> None:
    batches = list(pack_spans([("a", [4, 4]), ("b", [4, 4, 4])], max_patches=12))
    assert [[(span.key, span.first_patch, span.group_lengths) for span in batch] for batch in batches] == [
        [("a", 0, (4, 4)), ("b", 0, (4,))],
        [("b", 4, (4, 4))],
    ]


def test_packing_draws_no_further_than_it_must() -> None:
    drawn = []

    def samples():
        for i in range(9):
            drawn.append(i)
            yield str(i), [10]

    next(pack_spans(samples(), max_patches=10))
    assert len(drawn) == 2


def test_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_patches must be >= 1"):
        list(pack_spans([("a", [1])], max_patches=0))
