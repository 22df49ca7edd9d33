"""How a run is carried out, as against what it makes: workers, deadlines, progress. Nothing here changes a byte of a
shard."""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from pipelines.inline import InlineExecutor
from pipelines.run_identity import Installation
from pipelines.runtime import Job, RayExecutor, cluster_cpus, cluster_gpus, ray_session
from pipelines.tasks import DeadlinePolicy, Executor


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Workers and limits of one invocation."""

    workers: int | None = None
    """Actors, one CPU each; None: as many as there are CPUs, here or in the cluster, also while that grows. 0: in this process,
    without Ray (for debugging: a crash takes the run with it)."""
    address: str | None = None
    """Of a Ray cluster; None starts an embedded one."""
    gpus_per_worker: float = 0.0
    """Of a job that computes on GPUs; below 1, several workers share one. With workers None: as many as the GPUs hold."""
    deadlines: DeadlinePolicy = field(default_factory=DeadlinePolicy)
    probe_cache: str | None = None
    """A folder on each machine's own disk in which probes are remembered (ov2_core/probe_cache.py); None: none are."""
    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """auto: live on a terminal, else a log line now and then."""

    @property
    def on_cluster(self) -> bool:
        """Workers may be on several machines."""
        return self.address is not None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must be >= 0, got {self.gpus_per_worker}")


def session(options: RunOptions) -> AbstractContextManager[None]:
    """Ray for as long as the context is open, so that several stages share one; nothing where workers is 0."""
    if options.workers == 0:
        return contextlib.nullcontext()
    return ray_session(workers=options.workers or available_cpus(), address=options.address)


@contextlib.contextmanager
def open_executor(job: Job, options: RunOptions, installation: Installation) -> Iterator[tuple[Executor, int]]:
    """(executor, number of workers) for a job; the workers are gone when the context closes.

    Args:
        installation: what the job's results depend on; workers on other nodes must have the same.
    """
    if options.workers == 0:
        yield InlineExecutor(job), 1
        return
    with session(options):
        places = functools.partial(_num_places, options.gpus_per_worker)
        num_workers = options.workers or places()
        if num_workers < 1:
            raise ValueError(
                f"workers want {options.gpus_per_worker:g} GPU each, but Ray sees {cluster_gpus():g}; take --device cpu"
            )
        follow = options.workers is None and options.address is not None
        executor = RayExecutor(
            job,
            installation=installation,
            gpus_per_worker=options.gpus_per_worker,
            places=places if follow else None,
        )
        try:
            yield executor, num_workers
        finally:
            executor.close()


def _num_places(gpus_per_worker: float) -> int:
    """Workers that the session's nodes hold now; 0 where a GPU is wanted and none is there, for the moment or at all."""
    return int(cluster_gpus() / gpus_per_worker + 1e-9) if gpus_per_worker else cluster_cpus()


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
