"""The loop between scheduler and executor.

Enters: events of the workers. Leaves: what the scheduler decides, done, until nothing is left to do.
"""

from typing import Protocol

from pipelines.scheduling import Scheduler
from pipelines.tasks import Done, Executor, Failed, Ready

GROW_SECONDS = 10.0
"""How often a cluster is asked whether it has room for more workers."""


def drive(
    executor: Executor,
    scheduler: Scheduler,
    *,
    clock: "Clock",
    on_tick: "Tick",
    poll_seconds: float = 0.5,
) -> None:
    """Runs until the scheduler is finished. `on_tick` is called after every round.

    Raises:
        RunStoppedError: see Scheduler.
    """
    for number in range(len(scheduler.workers)):
        executor.start(number)
    next_look = clock() + GROW_SECONDS
    while not scheduler.finished:
        if clock() >= next_look:
            scheduler.grow(executor.num_places())
            next_look = clock() + GROW_SECONDS
        actions = scheduler.step(clock())
        for number in actions.start:
            executor.start(number)
        for number in actions.stop:
            executor.stop(number)
        for number, task in actions.submit:
            executor.submit(number, task)
        if scheduler.finished:
            break
        for event in executor.poll(poll_seconds):
            match event:
                case Ready(worker, node):
                    scheduler.ready(worker, clock(), node)
                case Done(worker, info, payload):
                    scheduler.done(worker, info, payload, clock())
                case Failed(worker, cause, message, alive):
                    scheduler.failed(worker, cause, message, clock(), alive=alive)
        for number, message in scheduler.overdue(clock()):
            scheduler.failed(number, "deadline_exceeded", message, clock(), alive=False)
        on_tick()
    on_tick()


class Clock(Protocol):
    """Seconds that only grow, e.g. time.monotonic."""

    def __call__(self) -> float: ...


class Tick(Protocol):
    """Called now and then from the loop."""

    def __call__(self) -> None: ...
