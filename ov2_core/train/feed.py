"""Micro-batches of one step after the other, made ready in a thread while the last step computes.

Enters: a StageLoader whose batches are micro-batches. Leaves: `StepBatches`, with the loader's state once the step is done. A step
ends with its last micro-batch or with the epoch, so an epoch's last step may be smaller and no pack is read twice in one.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ov2_core.data.loader import StageLoader
from ov2_core.train.pack_inputs import PackInputs, pack_inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatches:
    """One step of this rank."""

    micro_batches: tuple[PackInputs, ...]
    """As many on each rank."""
    epoch: int
    first: int
    last: int
    """Positions [first, last) of the loader's order that all ranks take together."""
    packs: tuple[int, ...]
    """Their numbers."""
    state: dict[str, Any]
    """Of the loader, after the step."""
    skipped: Counter[str]
    """Samples of this rank left out, by tar."""
    num_bytes: int
    """Read by this rank."""
    wait_seconds: float
    """That the trainer stood still for it."""


class StepFeed:
    """Iterates over steps, without end. A context manager: leaving it ends the thread."""

    def __init__(self, loader: StageLoader, *, accumulation: int, pin: bool = False) -> None:
        """
        Args:
            accumulation: micro-batches of a step.
            pin: put tensors in page-locked memory.
        """
        self._loader, self._accumulation, self._pin = loader, accumulation, pin
        self._ready: queue.Queue[StepBatches | BaseException] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="step-feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatches]:
        return self

    def __next__(self) -> StepBatches:
        """The next step. Raises what the loader raised."""
        began = time.perf_counter()
        made = self._ready.get()
        if isinstance(made, BaseException):
            raise made
        return replace(made, wait_seconds=time.perf_counter() - began)

    def close(self) -> None:
        """Ends the thread and the loader."""
        self._stop.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(0.05)
        self._loader.close()

    def __enter__(self) -> "StepFeed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self) -> None:
        try:
            while not self._stop.is_set():
                for made in self._epoch():
                    self._put(made)
                    if self._stop.is_set():
                        return
        except BaseException as error:
            self._put(error)

    def _epoch(self) -> Iterator[StepBatches]:
        loader, taken = self._loader, list[PackInputs]()
        skipped, num_bytes = Counter[str](), 0
        first = int(loader.state_dict()["cursor"])
        end = loader.reading.epoch_end(first)
        for batch in loader:
            inputs = pack_inputs(batch)
            taken.append(inputs.pin_memory() if self._pin else inputs)
            skipped.update(batch.skipped)
            num_bytes += batch.num_bytes
            state = loader.state_dict()
            last = int(state["cursor"])
            if len(taken) < self._accumulation and last < end:
                continue
            yield StepBatches(
                micro_batches=tuple(taken),
                epoch=first // loader.reading.num_packs,
                first=first,
                last=last,
                packs=tuple(loader.packs_between(first, last)),
                state=state,
                skipped=skipped,
                num_bytes=num_bytes,
                wait_seconds=0.0,
            )
            first, taken, skipped, num_bytes = last, [], Counter(), 0

    def _put(self, made: StepBatches | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(made, timeout=0.05)
                return
            except queue.Full:
                continue
