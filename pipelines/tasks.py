"""What scheduler, feeds and executors say to each other: tasks, verdicts, deadlines, events.

Enters: nothing. Leaves: plain records and protocols; scheduling.py has the decisions, runtime.py and inline.py the workers.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from schemas.shard import QuarantineReason

ChargedCause = Literal["worker_died", "out_of_memory", "deadline_exceeded", "internal_error"]
Setback = Literal["node_lost", "told_to_stop", "transient_error", "object_lost", "not_here", "none_read", "disk_full"]
"""not_here: the task's source is not seen from the worker's node. none_read: of its several items, each met a transient error.
disk_full: of the worker's node, or of the storage."""
Cause = ChargedCause | Setback
Lane = Literal["fresh", "solo", "quiet"]


class RunStoppedError(RuntimeError):
    """The run cannot go on, and no single item is to blame. What is committed stays; the same command resumes."""


@dataclass(slots=True, eq=False)
class Task:
    """One call of the job. `payload` is opaque here."""

    name: str
    """For messages: the sample's key, the manifest line, the shard."""
    payload: Any
    cost_seconds: float
    """Predicted CPU seconds."""
    blamed: bool = True
    divisible: bool = False
    """It holds several items: when it has failed, solo too if it is dear, or none of them was read, it goes back to the feed,
    condemned, which tries them one by one."""
    lane: Lane = "fresh"
    attempts: int = 0
    """Times that a worker began it."""
    failures: int = 0
    """Deaths and overruns."""
    setbacks: int = 0
    """Node losses and transient errors."""
    failing_since: float | None = None
    """When it first met a transient error."""
    not_at: set[str] = field(default_factory=set)
    """Nodes that could not read its source; the next try is on another, where there is one."""
    missing: str = ""
    """What the last of them said where it sees no such source; empty: no node said that."""
    copied: bool = False
    """A second worker was given it too, once and for all: what hangs would else be copied for ever."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condemned task's quarantine reason."""

    reason: QuarantineReason
    message: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlinePolicy:
    """Wall-clock seconds that a task may take: base + factor x predicted CPU seconds."""

    base_seconds: float = 120.0
    factor: float = 30.0
    start_seconds: float = 600.0
    """How long the first worker may take to start."""

    def __post_init__(self) -> None:
        if self.base_seconds <= 0 or self.factor < 0 or self.start_seconds <= 0:
            raise ValueError(f"deadlines must be > 0, got {self}")

    def seconds(self, task: Task) -> float:
        """The task's allowance."""
        return self.base_seconds + self.factor * task.cost_seconds


class Feed(Protocol):
    """Where tasks come from and results go; bounds what is open."""

    @property
    def finished(self) -> bool:
        """True once no task will come any more and none is awaited."""

    def pull(self) -> Task | None:
        """The next task, or None while there is none (for now, or at all)."""

    def done(self, task: Task, info: Any, payload: Any) -> None:
        """A task's result. `payload` may be a reference to it."""

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """The task will not be tried again."""


class Executor(Protocol):
    """Workers, numbered from 0. Replaced by a fake in tests."""

    def start(self, worker: int) -> None:
        """Begins to start a fresh worker in this place; what was there is killed. Reports Ready, or Failed."""

    def stop(self, worker: int) -> None:
        """Ends an idle worker. Reports nothing."""

    def submit(self, worker: int, task: Task) -> None:
        """Runs a task, after the one that the worker runs. Reports Done or Failed, in the order of submission."""

    def poll(self, timeout_seconds: float) -> "list[Event]":
        """What has happened since; waits at most so long for a first event."""

    def num_places(self) -> int:
        """Workers that there is room for now, on a cluster that may have grown; 0: their number is fixed."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has started."""

    worker: int
    node: str = ""
    """Where, as a user would name it."""


@dataclass(frozen=True, slots=True)
class Done:
    """A worker has returned its task's result and goes on."""

    worker: int
    info: Any
    payload: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker failed at its task, or while starting. `alive`: it may take another task, and goes on with what waits."""

    worker: int
    cause: Cause
    message: str
    alive: bool


Event = Ready | Done | Failed
