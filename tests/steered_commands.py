"""Commands that go on only when a test tells them to: each on a thread that stops before every operation of a Store and at every
failpoint. One that is never told to go on again is a process that was killed; one that is told so much later is a late writer.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from ov2_core import make_sample, plan
from ov2_core.media import decode
from ov2_core.storage import commit, files, index, writer
from ov2_core.storage.files import Store
from pipelines import extract_features, generate_spatial_qa, materialize_stage

FAILING = (
    *(commit, files, writer, index, plan, make_sample, decode),
    *(extract_features, generate_spatial_qa, materialize_stage),
)
"""Modules with failpoints."""
OPERATIONS = (
    *("read_bytes", "size", "list", "list_sizes", "write_bytes", "create_bytes"),
    *("put_file", "publish", "remove", "remove_empty_dirs", "remove_temporaries"),
)
_current = threading.local()


class Abandoned(BaseException):
    """Ends the thread of a killed command after the last look at its run."""


class Command:
    """A command that does one operation at a time."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.stops: list[str] = []
        """Where it has stopped so far."""
        self.ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def advance(self, count: int, place: str | None = None) -> None:
        """So many operations, or to the end, or to the next one of that name."""
        for _ in range(count):
            if self.ended:
                return
            self._go.release()
            self._stopped.acquire()
            if self.stops[-1:] == [place]:
                return

    def abandon(self) -> None:
        """Ends the thread; what it does on its way out happens in a folder that nobody looks at any more."""
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def pause(self, place: str) -> None:
        """Called by the command itself, before an operation."""
        self.stops.append(place)
        if not self._abandoned:
            self._stopped.release()
            self._go.acquire()
        if self._abandoned:
            raise Abandoned

    def _main(self) -> None:
        _current.command = self
        self._go.acquire()
        try:
            if not self._abandoned:
                self._function()
        except BaseException as error:
            self.error = error
        self.ended = True
        self._stopped.release()


def pause(place: str) -> None:
    """Stops the command whose thread calls; threads of tests pass."""
    command = getattr(_current, "command", None)
    if command is not None:
        command.pause(place)


def _paused(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def operation(*args: Any, **options: Any) -> Any:
        pause(name)
        return original(*args, **options)

    return operation


@contextlib.contextmanager
def pausing() -> Iterator[None]:
    """Every operation of a Store and every failpoint is a place to stop."""
    with pytest.MonkeyPatch.context() as patch:
        for module in FAILING:
            patch.setattr(module, "failpoint", pause)
        for name in OPERATIONS:
            patch.setattr(Store, name, _paused(name, getattr(Store, name)))
        yield


def late_at_every_operation(
    command: Callable[[str], object],
    judge: Callable[[str], None],
    folder: str,
    *,
    begin: Callable[[str], None] = lambda run: None,
) -> int:
    """For each n, a command stops before its n-th operation while the same command runs to its end; then it goes on. Both must
    end well, and the judge be content. Returns how many operations an undisturbed command takes.

    command, judge: of a run in the folder that they are given; `begin` makes what the command finds there.
    """
    count = 0
    with pausing():
        while True:
            run = f"{folder}/run-{count}"
            begin(run)
            late, other = Command(partial(command, run)), Command(partial(command, run))
            late.advance(count + 1)
            if late.ended:
                other.abandon()
                assert late.error is None, repr(late.error)
                judge(run)
                return count
            for one in (other, late):
                one.advance(10**6)
                if one.error is not None:
                    raise AssertionError(f"stopped before operation {count}, {late.stops[count]}") from one.error
            judge(run)
            count += 1
