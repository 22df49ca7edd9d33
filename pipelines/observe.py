"""What others see of a pipeline at work: a record on the run's storage, and Prometheus metrics through Ray.

Enters: the counters and the scheduler of an invocation. Leaves: RUN/invocations/<began>-<hex>.json, rewritten every few
seconds (`ov2 status` reads it from anywhere, `ov2 gc` takes it for a lease), and gauges by `ray.util.metrics`, which
Ray exports with the prefix `ray_` on the port of the driver's node. Gauges, not counters: they are of this invocation,
and begin at 0 with the next. Neither can stop a run: what fails here is logged once.
"""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator

import ray
import ray.util.metrics

from ov2_core.storage.files import Store
from ov2_core.storage.invocations import invocation_rel
from pipelines.progress import Counters, show
from pipelines.scheduling import Scheduler
from schemas.run import InvocationRecord, WorkerSign

log = logging.getLogger(__name__)
SIGN_SECONDS = 10.0
WORKER_STATES = ("starting", "idle", "busy", "released")

GAUGES = {
    "ov2_rows": ("Rows of this invocation by outcome: made, filtered, quarantined.", ("stage", "outcome")),
    "ov2_rows_left": ("Rows that this invocation has still to do.", ("stage",)),
    "ov2_quarantined_rows": ("Rows quarantined by this invocation.", ("stage", "reason")),
    "ov2_shards_done": ("Committed shards of the run.", ("stage",)),
    "ov2_shards_left": ("Shards without a commit.", ("stage",)),
    "ov2_tokens": ("Visual tokens made by this invocation.", ("stage",)),
    "ov2_video_seconds": ("Seconds of video done by this invocation.", ("stage",)),
    "ov2_cpu_seconds": ("CPU seconds of workers, of this invocation.", ("stage",)),
    "ov2_workers": ("Workers by state: starting, idle, busy, released.", ("stage", "state")),
    "ov2_worker_deaths": ("Workers that died, or were killed at their deadline, in this invocation.", ("stage",)),
    "ov2_longest_task_seconds": ("How long the oldest task in flight has been running.", ("stage",)),
    "ov2_eta_seconds": ("Expected rest of this invocation; absent while unknown.", ("stage",)),
    "ov2_sign_of_life_unix_seconds": ("When the driver last came round.", ("stage",)),
}
"""{name: (description, tags)}. infra/monitoring draws them and raises alarms, under their names with `ray_` before."""

_OF_THE_MOMENT = frozenset({"ov2_workers", "ov2_longest_task_seconds", "ov2_eta_seconds"})


@contextlib.contextmanager
def observed(
    store: Store | None, counters: Counters, scheduler: Scheduler, progress: str
) -> Iterator[Callable[[], None]]:
    """Yields what a pipeline calls after every round of its loop; it shows, records and exports at a pace of its own.

    store: of the run; None leaves no record.
    """
    record = _Record(store, counters, scheduler)
    metrics = _Metrics(counters, scheduler)
    with show(counters, progress) as redraw:  # type: ignore[arg-type]

        def tick() -> None:
            counters.num_running, counters.num_deaths = scheduler.num_running, scheduler.deaths
            redraw()
            record.rewrite("running", pause_seconds=SIGN_SECONDS)
            metrics.export()

        state = "stopped"
        record.rewrite("running")
        try:
            yield tick
            state = "done"
        finally:
            record.rewrite(state)
            metrics.export(last=True)


class _Record:
    def __init__(self, store: Store | None, counters: Counters, scheduler: Scheduler) -> None:
        self._store, self._counters, self._scheduler = store, counters, scheduler
        self._began = round(time.time(), 3)
        self._rel = invocation_rel(f"{int(self._began * 1000):015d}-{uuid.uuid4().hex[:8]}")
        self._next = 0.0
        self._complained = False

    def rewrite(self, state: str, *, pause_seconds: float = 0.0) -> None:
        """Writes the record, unless it was written within the pause."""
        if self._store is None or (pause_seconds and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + SIGN_SECONDS
        try:
            self._store.write_bytes(self._rel, self.record(state).model_dump_json(indent=1).encode())
        except Exception as error:
            if not self._complained:
                log.warning("%s cannot be written (%s); the run goes on without", self._store.url(self._rel), error)
            self._complained = True

    def record(self, state: str) -> InvocationRecord:
        """The invocation as it stands."""
        counters = self._counters
        return InvocationRecord.model_validate(
            {
                "stage": counters.stage,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "state": state,
                "began_unix_seconds": self._began,
                "seen_unix_seconds": round(time.time(), 3),
                "num_items": counters.num_items,
                "num_done": counters.num_done,
                "num_made": counters.num_made,
                "num_filtered": counters.num_filtered,
                "num_tokens": counters.num_tokens,
                "num_shards_done": counters.num_shards_done,
                "num_worker_deaths": self._scheduler.deaths,
                "cpu_seconds": round(counters.cpu_seconds, 3),
                "video_seconds": round(counters.video_seconds, 3),
                "quarantined": dict(counters.quarantined),
                "elapsed_seconds": round(counters.elapsed_seconds(), 3),
                "workers": self._workers() if state == "running" else [],
            }
        )

    def _workers(self) -> list[WorkerSign]:
        offset = time.time() - time.monotonic()
        signs = []
        for number, worker in enumerate(self._scheduler.workers):
            task = worker.task
            signs.append(
                WorkerSign(
                    number=number,
                    state=worker.state,
                    task=None if task is None else task.name,
                    since_unix_seconds=None if task is None else round(worker.since + offset, 3),
                    deadline_seconds=None if task is None else round(self._scheduler.deadlines.seconds(task), 1),
                )
            )
        return signs


class _Metrics:
    def __init__(self, counters: Counters, scheduler: Scheduler) -> None:
        self._counters, self._scheduler = counters, scheduler
        self._gauges: dict[str, ray.util.metrics.Gauge] | None = None
        self._next = 0.0

    def export(self, *, last: bool = False) -> None:
        """Sets all gauges; does nothing without Ray."""
        if not ray.is_initialized() or (not last and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + SIGN_SECONDS / 2
        if self._gauges is None:
            self._gauges = {
                name: ray.util.metrics.Gauge(name, description=description, tag_keys=tags)
                for name, (description, tags) in GAUGES.items()
            }
        for name, tags, value in gauge_values(self._counters, self._scheduler, now=time.monotonic()):
            over = last and name in _OF_THE_MOMENT  # a driver that goes on to its next stage still exports this one's
            self._gauges[name].set(0.0 if over else value, tags={"stage": self._counters.stage, **tags})


def gauge_values(counters: Counters, scheduler: Scheduler, *, now: float) -> list[tuple[str, dict[str, str], float]]:
    """(name, tags without stage, value) of every gauge that has a value now. now: of time.monotonic."""
    states = [worker.state for worker in scheduler.workers]
    since = [worker.since for worker in scheduler.workers if worker.task is not None]
    quarantined = counters.quarantined.total()
    found: list[tuple[str, dict[str, str], float]] = [
        ("ov2_rows", {"outcome": "made"}, counters.num_made),
        ("ov2_rows", {"outcome": "filtered"}, counters.num_filtered),
        ("ov2_rows", {"outcome": "quarantined"}, quarantined),
        ("ov2_shards_done", {}, counters.num_shards_done),
        ("ov2_tokens", {}, counters.num_tokens),
        ("ov2_video_seconds", {}, counters.video_seconds),
        ("ov2_cpu_seconds", {}, counters.cpu_seconds),
        ("ov2_worker_deaths", {}, scheduler.deaths),
        ("ov2_longest_task_seconds", {}, max((now - start for start in since), default=0.0)),
        ("ov2_sign_of_life_unix_seconds", {}, time.time()),
    ]
    found += [("ov2_workers", {"state": state}, states.count(state)) for state in WORKER_STATES]  # type: ignore[arg-type]
    found += [("ov2_quarantined_rows", {"reason": reason}, n) for reason, n in counters.quarantined.items()]
    if counters.num_items is not None:
        found.append(("ov2_rows_left", {}, counters.num_items - counters.num_done))
    if counters.num_shards is not None:
        found.append(("ov2_shards_left", {}, counters.num_shards - counters.num_shards_done))
    eta = counters.eta_seconds()
    if eta is not None:
        found.append(("ov2_eta_seconds", {}, eta))
    return found
