"""Iterating in threads: same items, same order, bounded, errors in their place, no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from ov2_core.features.ahead import iterate_ahead, map_ahead


def test_items_come_in_order_and_no_thread_stays() -> None:
    before = threading.active_count()
    with iterate_ahead(range(100), depth=2, name="t") as items:
        assert list(items) == list(range(100))
    assert list(map_ahead(lambda x: x * x, range(50), num_threads=4)) == [x * x for x in range(50)]
    assert threading.active_count() == before


def test_producer_runs_ahead_by_its_depth_and_no_more() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    with iterate_ahead(source(), depth=3, name="t") as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(made) == 5, "one in hand, three ready, one waiting for room"


def test_an_error_rises_where_its_item_would_have_come() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    with iterate_ahead(source(), depth=9, name="t") as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="torn"):
            next(items)


def test_leaving_early_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with iterate_ahead(source(), depth=1, name="t") as items:
        next(items)
    assert closed.is_set()


def test_mapping_overlaps_with_the_consumer() -> None:
    """While the consumer holds item i, item i + 1 is being made."""
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        return i

    results = map_ahead(work, range(10), num_threads=1)
    assert next(results) == 0
    deadline = time.monotonic() + 5
    while len(begun) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun == [0, 1]
    results.close()
