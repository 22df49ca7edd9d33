"""Iterating in a thread: what comes next is made while what is here is worked on.

Enters: an iterable, or a function over one. Leaves: the same items in the same order, at most a few ahead. An exception rises
where the item would have come. Threads are gone when the context closes, also where the consumer stops early.
"""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def iterate_ahead(items: Iterable[T], *, depth: int, name: str) -> Iterator[Iterator[T]]:
    """Yields an iterator over items that a thread makes, at most `depth` (>= 1) beyond the one in hand."""
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((kind, value), timeout=_POLL_SECONDS)
                return True
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put("item", item):
                    break
            else:
                put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def consume() -> Iterator[T]:
        while True:
            kind, value = ready.get()
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            if kind == "end":
                return
            yield value  # type: ignore[misc]

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        with contextlib.suppress(queue.Empty):
            while True:
                ready.get_nowait()
        thread.join()


def map_ahead(function: Callable[[S], T], items: Iterable[S], *, num_threads: int) -> Generator[T, None, None]:
    """function(item) for each item in order; num_threads of them are at work while the consumer has one in hand."""
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
