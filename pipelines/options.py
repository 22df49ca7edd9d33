"""How a run is carried out, as against what it makes: workers, deadlines, progress. Nothing here changes a byte of a
shard."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipelines.inline import InlineExecutor
from pipelines.runtime import Job, RayExecutor, ray_session
from pipelines.scheduling import DeadlinePolicy, Executor


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Workers and limits of one invocation."""

    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Actors, one CPU each. 0: in this process, without Ray (for debugging: a crash takes the run with it)."""
    address: str | None = None
    """Of a Ray cluster; None starts an embedded one."""
    deadlines: DeadlinePolicy = field(default_factory=DeadlinePolicy)
    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """auto: live on a terminal, else a log line now and then."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers}")


@contextlib.contextmanager
def open_executor(job: Job, options: RunOptions) -> Iterator[Executor]:
    """An executor for a job; its workers are gone when the context closes."""
    if options.workers == 0:
        yield InlineExecutor(job)
        return
    with ray_session(workers=options.workers, address=options.address):
        executor = RayExecutor(job)
        try:
            yield executor
        finally:
            executor.close()
