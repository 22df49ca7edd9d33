"""Ray for the scheduler: starting and stopping it, and an executor whose workers are Core actors.

Why Core actors and a scheduler of our own: Ray Data retries a file that kills its worker for ever and lets the whole
block fall with it, and Core has no task time-out. Here every actor runs one task at a time (a second may wait at it)
with `max_restarts=0` and `max_task_retries=0`: Ray never repeats anything behind our back, all attempts are counted in
scheduling.py, and a dead or late actor is replaced by a fresh one. A task returns two objects: a small info that the
driver reads, and a payload that stays in the object store until a worker writes the shard; it never passes through the
driver.
"""

import contextlib
import errno
import logging
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, Protocol

import ray
from ray import exceptions as ray_errors

from ov2_core.make_sample import NoneReadError, NotHereError, TransientItemError
from pipelines.memory_guard import LOOK_SECONDS, MemoryGuard
from pipelines.run_identity import Installation, WrongInstallationError
from pipelines.tasks import Cause, Done, Event, Failed, Ready, RunStoppedError, Task

log = logging.getLogger(__name__)

ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
}
"""A worker uses one thread: the pool is the parallelism, and CPU seconds mean what they say."""
_MIN_STORE_BYTES = 256 << 20
_MAX_STORE_BYTES = 8 << 30
FEW_WAITING = 8
"""Workers: when the call of one of so few has ended, the others are asked for with the next poll."""
_LAST_WORDS_SECONDS = 0.5
"""A worker that holds too much memory ends itself so long after it has said so, should the driver not be faster."""


class Job(Protocol):
    """What a worker does. Pickled to every actor; must not hold open files or connections."""

    def warm_up(self) -> None:
        """Called once in a fresh worker, before its first task: imports, compiled kernels."""

    def run(self, payload: Any) -> tuple[Any, Any]:
        """One task: (small info, payload).

        Raises:
            TransientItemError, NoneReadError, NotHereError, MemoryError; all else is a bug of the job.
        """


@contextlib.contextmanager
def ray_session(*, workers: int, address: str | None = None) -> Iterator[None]:
    """Ray while the context is open: an embedded one of `workers` CPUs, or the cluster at `address`.

    A Ray that is already initialised in this process is used as it is and left running.

    Raises:
        ValueError: nothing answers at `address`.
    """
    if address is not None:
        _check_answers(address)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # they come back through ray.get of the info
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            with _environment(ONE_THREAD):  # the embedded Ray's processes inherit it, credentials too
                ray.init(
                    address="local",  # else one that somebody else has started on this machine is joined, or refuses num_cpus
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=_object_store_bytes(),
                    **options,
                )
        else:
            # Visible in the cluster's job listing: so no credentials go this way, its nodes have their own.
            passed_on = {name: value for name, value in os.environ.items() if name.startswith("OV2_")}
            ray.init(address=address, runtime_env={"env_vars": ONE_THREAD | passed_on}, **options)
    except ConnectionError as error:
        raise ValueError(
            f"cannot join the Ray cluster at {address!r}: {error}; where its nodes set RAY_AUTH_MODE, set the same here"
        ) from error
    if threading.current_thread() is threading.main_thread() and on_term is not None:
        signal.signal(signal.SIGTERM, on_term)  # Ray's own handler would end the process with a stack trace
    try:
        with _quiet_driver():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet_driver() -> Iterator[None]:
    """Keeps Ray's notes of dead workers off stdout, where our summary goes; the scheduler tells of them in its own words."""
    from ray._private import worker as ray_worker

    printing = getattr(ray_worker, "print_to_stdstream", None)
    if printing is None:
        yield
        return
    ray_worker.print_to_stdstream = lambda data, *_, **__: log.debug("ray: %s", data.get("lines"))
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = printing


def _check_answers(address: str) -> None:
    """Ray itself tries for ten minutes, in silence. Names such as "auto" are left to it."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}); is it up, and the port right? "
            "Leave --address out to use this machine"
        ) from None  # a wrong address, not a storage that is down: exit code 2


def object_store_bytes() -> int:
    """Capacity of the object stores of the session's nodes."""
    return int(_resources().get("object_store_memory", _MIN_STORE_BYTES))


def cluster_cpus() -> int:
    """CPUs of the session's nodes, at least 1."""
    return max(1, int(_resources().get("CPU", 1)))


def cluster_gpus() -> float:
    """GPUs of the session's nodes."""
    return float(_resources().get("GPU", 0.0))


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def fetch(reference: Any) -> Any:
    """The payload behind a reference; a value that is no reference is returned as it is.

    Raises:
        ObjectLostError: it is gone with its node.
    """
    if not isinstance(reference, ray.ObjectRef):
        return reference
    try:
        return ray.get(reference)
    except (ray_errors.ObjectLostError, ray_errors.ObjectFetchTimedOutError, ray_errors.OwnerDiedError) as error:
        raise ObjectLostError(str(error).splitlines()[0]) from error


class ObjectLostError(Exception):
    """A payload is no longer in the object store."""


class RayExecutor:
    """Workers as actors; see tasks.Executor.

    Args:
        installation: that every worker must have before it is given anything; one that has another does not start.
        places: how many workers the cluster holds now, where their number shall follow it.
    """

    def __init__(
        self,
        job: Job,
        *,
        installation: Installation | None = None,
        gpus_per_worker: float = 0.0,
        guard: MemoryGuard | None = None,
        places: Callable[[], int] | None = None,
    ) -> None:
        self._places = places
        self._gpus_per_worker = gpus_per_worker
        self._guard = guard or MemoryGuard()
        self._job = ray.put(_by_bytes(job))
        self._installation = installation
        self._actor_class: Any = ray.remote(_Worker)
        self._actors: dict[int, Any] = {}
        self._calls: dict[int, deque[tuple[Any, Any]]] = {}
        """Of each worker, in the order of submission: (info or ready reference, payload reference; None while it starts)."""

    def start(self, worker: int) -> None:
        """Kills what is there and asks Ray for a fresh actor."""
        self._drop(worker)
        actor = self._actor_class.options(
            max_restarts=0, max_task_retries=0, num_cpus=1, num_gpus=self._gpus_per_worker
        ).remote(self._job, self._guard, self._installation)
        self._actors[worker] = actor
        self._calls[worker] = deque([(actor.ready.remote(), None)])

    def stop(self, worker: int) -> None:
        """Kills the actor."""
        self._drop(worker)

    def submit(self, worker: int, task: Task) -> None:
        """Runs the job on the task's payload."""
        info, payload = self._actors[worker].run.remote(task.payload)
        self._calls[worker].append((info, payload))

    def poll(self, timeout_seconds: float) -> list[Event]:
        """Waits for a first event, then takes all there are; of few workers just the first, as each wait has its price.

        Only a worker's first call is waited for: of two that end in one moment Ray may tell of the second first.
        """
        first = {calls[0][0]: worker for worker, calls in self._calls.items() if calls}
        if not first:
            time.sleep(min(timeout_seconds, 0.05))
            return []
        ready, rest = ray.wait(list(first), num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if ready and len(rest) > FEW_WAITING:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            ready += more
        return [self._event(first[reference]) for reference in ready]

    def num_places(self) -> int:
        """Workers that the cluster holds now; 0 where their number is fixed."""
        return 0 if self._places is None else self._places()

    def close(self) -> None:
        """Kills all workers."""
        for worker in list(self._actors):
            self._drop(worker)

    def _drop(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)
        self._calls.pop(worker, None)

    def _event(self, worker: int) -> Event:
        reference, payload = self._calls[worker].popleft()
        try:
            info = ray.get(reference)
        except Exception as error:
            cause, message, alive = _explain(error)
            log.debug("worker %d: %s: %s", worker, cause, message)
            return Failed(worker, cause, message, alive and payload is not None)
        return Ready(worker, info) if payload is None else Done(worker, info, payload)


class _Worker:
    """Runs the job on a thread of its own, always the same one, and looks after its memory meanwhile."""

    def __init__(self, job: bytes, guard: MemoryGuard, installation: Installation | None) -> None:
        os.environ.update(ONE_THREAD)
        self._pickled, self._installation = job, installation
        self._guard = guard
        self._calls: queue.SimpleQueue[tuple[Future[Any], Any, tuple[Any, ...]]] = queue.SimpleQueue()
        threading.Thread(
            target=self._serve, name="job", daemon=True
        ).start()  # daemon: a worker told to stop does not wait

    def ready(self) -> str:
        self._call(self._begin)
        return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"

    def _begin(self) -> None:
        if self._installation is not None:
            try:
                self._installation.check()
            except WrongInstallationError as error:
                raise WrongInstallationError(f"node {ray.util.get_node_ip_address()} has {error}") from None
        self._job: Job = pickle.loads(self._pickled)
        self._job.warm_up()

    @ray.method(num_returns=2)
    def run(self, payload: Any) -> tuple[Any, Any]:
        found: tuple[Any, Any] = self._call(self._job.run, payload)
        return found

    def _call(self, function: Any, *arguments: Any) -> Any:
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        while not wait([future], timeout=LOOK_SECONDS).done:
            try:
                self._guard.check()
            except MemoryError:
                last_words = threading.Timer(_LAST_WORDS_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
                last_words.daemon = True
                last_words.start()
                raise
        return future.result()

    def _serve(self) -> None:
        while True:
            future, function, arguments = self._calls.get()
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)


def _by_bytes(job: Job) -> bytes:
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(job)  # type: ignore[no-untyped-call]
    return data


def _explain(error: Exception) -> tuple[Cause, str, bool]:
    """(cause, message, whether the worker lives) of what ray.get raised for a task."""
    if isinstance(error, ray_errors.RayTaskError):
        inner = error.cause if isinstance(error.cause, Exception) else error
        if is_disk_full(inner):
            return (
                "disk_full",
                f"no space left for a worker: {str(inner).splitlines()[0]}; free some and run again",
                True,
            )
        if isinstance(inner, TransientItemError):
            return "transient_error", str(inner), True
        if isinstance(inner, ObjectLostError):
            return "object_lost", str(inner), True
        if isinstance(inner, NoneReadError):
            return "none_read", str(inner), True
        if isinstance(inner, NotHereError):
            return "not_here", str(inner), True
        if isinstance(inner, WrongInstallationError):
            return "internal_error", str(inner), False
        if isinstance(inner, MemoryError):
            return "out_of_memory", f"MemoryError: {inner}", False
        return "internal_error", f"{type(inner).__name__}: {inner}"[-1500:], True
    text = str(error)
    if is_disk_full(error):
        return "disk_full", f"no space left for a worker: {text.splitlines()[0]}; free some and run again", True
    brief = _brief(text)
    if isinstance(error, ray_errors.OutOfMemoryError) or "low on memory" in text:
        return "out_of_memory", f"killed for memory: {brief}", False
    if isinstance(error, ray_errors.NodeDiedError) or "node has died" in text or "node was terminated" in text:
        return "node_lost", brief, False
    if isinstance(error, ray_errors.ActorUnavailableError):
        # Of a worker that dies alone its node tells at once; here nobody answers for it: the node is gone, or cut off.
        return "node_lost", brief, False
    if "received a SIGTERM" in text or "receives a SIGTERM" in text:
        return "told_to_stop", brief, False
    if isinstance(error, ray_errors.RuntimeEnvSetupError):
        raise RunStoppedError(f"a worker's environment cannot be set up: {brief}")
    if isinstance(error, ray_errors.ObjectLostError):
        return "object_lost", brief, True
    return "worker_died", f"the worker process died: {brief}", False


def _brief(text: str) -> str:
    """Ray's account of a death without its advice, which names every cause there is."""
    told = " ".join(text.split()).partition("Some common causes include")[0]
    detail = told.rpartition("Worker exit detail: ")[2]
    return detail.strip()[:600]


def is_disk_full(error: BaseException) -> bool:
    """Of the machine that it was raised on, or of the storage."""
    return isinstance(error, ray_errors.OutOfDiskError | ray_errors.ObjectStoreFullError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def _object_store_bytes() -> int:
    with contextlib.suppress(OSError, ValueError):
        free = os.statvfs("/dev/shm")
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        wanted = min(total // 8, int(0.8 * free.f_bavail * free.f_frsize))
        return max(_MIN_STORE_BYTES, min(_MAX_STORE_BYTES, wanted))
    return _MIN_STORE_BYTES
