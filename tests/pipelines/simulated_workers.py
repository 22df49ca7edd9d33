"""A feed and an executor for the scheduler that live in simulated time; a task's payload is its nature."""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.scheduling import MAX_TRANSIENT
from pipelines.tasks import Done, Event, Failed, Ready, Task, Verdict

Nature = Literal[
    "good", "killer", "flaky", "hang", "slow_once", "hog", "hungry", "transient", "outage", "bug", "hidden", "missing"
]
"""hidden: seen from the nodes that are not blind."""


class ListFeed:
    """A fixed list of tasks, at most `window` of them open."""

    def __init__(self, tasks: list[Task], *, window: int = 1000) -> None:
        self.tasks, self.window = list(tasks), window
        self.open = 0
        self.results: dict[str, Any] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.ends: Counter[str] = Counter()

    @property
    def finished(self) -> bool:
        return not self.tasks and not self.open

    def pull(self) -> Task | None:
        if not self.tasks or self.open >= self.window:
            return None
        self.open += 1
        return self.tasks.pop(0)

    def done(self, task: Task, info: Any, payload: Any) -> None:
        self.results[task.name] = info
        self._end(task)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        self.verdicts[task.name] = verdict
        self._end(task)

    def _end(self, task: Task) -> None:
        self.open -= 1
        self.ends[task.name] += 1


@dataclass
class FakeWorker:
    ready: bool = False
    task: Task | None = None
    num_tasks: int = 0
    since: float = 0.0
    waiting: Task | None = None


PATIENCE_SECONDS = 5.0
"""A task that may end does so after so long at the latest, in its turn: five workers later it is still within its deadline."""


@dataclass
class FakeExecutor:
    """Ends tasks in random order, one a poll, but none so late that it would be overdue; time passes only here."""

    seed: int = 0
    unstartable: bool = False
    bad_places: frozenset[int] = frozenset()
    """Workers that never start."""
    num_nodes: int = 1
    """Worker n is on node n % num_nodes."""
    blind: frozenset[str] = frozenset()
    """Nodes that see no hidden source."""
    now: float = 0.0
    workers: dict[int, FakeWorker] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    unseen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Nodes that did not see a task's source."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def start(self, worker: int) -> None:
        self.workers[worker] = FakeWorker()

    def stop(self, worker: int) -> None:
        place = self.workers.pop(worker)
        assert place.ready, "a worker is let go while it starts"
        assert place.task is None, "a worker is let go at work"

    def submit(self, worker: int, task: Task) -> None:
        place = self.workers[worker]
        assert place.ready
        if place.task is not None:
            assert place.waiting is None, "two tasks wait at one worker"
            assert task.lane == place.task.lane == "fresh", "a suspect waits for no one, and nobody for it"
            place.waiting = task
            return
        self._begin(place, task)

    def _begin(self, place: FakeWorker, task: Task) -> None:
        running = [w.task for w in self.workers.values() if w.task is not None]
        if task.lane != "fresh":
            assert place.num_tasks == 0, "a suspect needs a fresh worker"
        if task.lane == "quiet":
            assert not running, "quiet means alone"
        if task.lane == "solo":
            assert all(other.lane == "fresh" for other in running), "one suspect at a time"
        assert all(other.lane != "quiet" for other in running), "nothing runs beside a quiet task"
        place.task = task
        place.num_tasks += 1
        place.since = self.now
        self.tries[task.name] += 1

    places: int = 0

    def num_places(self) -> int:
        return self.places

    def poll(self, timeout_seconds: float) -> list[Event]:
        self.now += 1.0
        starting = [n for n, w in self.workers.items() if not w.ready]
        busy = [n for n, w in self.workers.items() if w.task is not None and not self._stuck(w.task)]
        choices = starting + busy
        if not choices:
            return []
        number = self.random.choice(choices)
        waiting = [n for n in busy if self.now - self.workers[n].since >= PATIENCE_SECONDS]
        if waiting:
            number = min(waiting, key=lambda n: self.workers[n].since)
        if number in starting:
            if self.unstartable or number in self.bad_places:
                return [Failed(number, "worker_died", "no such image", False)]
            self.workers[number].ready = True
            return [Ready(number, self._node(number))]
        return self._end(number)

    def _stuck(self, task: Task) -> bool:
        nature = task.payload
        return nature == "hang" or (nature == "slow_once" and self.tries[task.name] == 1)

    def _end(self, number: int) -> list[Event]:
        task = self.workers[number].task
        assert task is not None
        nature: Nature = task.payload
        beside = [n for n, w in self.workers.items() if w.task is not None and n != number]
        if nature == "killer" or (nature == "flaky" and self.tries[task.name] == 1):
            return [self._die(number, "worker_died")]
        if nature == "hog" or (nature == "hungry" and beside):
            return [self._die(n, "out_of_memory") for n in [number, *beside]]
        place = self.workers[number]
        place.task = None
        if place.waiting is not None:
            waiting, place.waiting = place.waiting, None
            self._begin(place, waiting)
        if nature == "outage" or (nature == "transient" and self.tries[task.name] < MAX_TRANSIENT):
            return [Failed(number, "transient_error", "503", True)]
        if nature == "missing" or (nature == "hidden" and self._node(number) in self.blind):
            self.unseen[task.name].append(self._node(number))
            return [Failed(number, "not_here", "no such file", True)]
        if nature == "bug":
            return [Failed(number, "internal_error", "KeyError", True)]
        return [Done(number, f"result of {task.name}", None)]

    def _node(self, number: int) -> str:
        return f"node-{number % self.num_nodes}"

    def _die(self, number: int, cause: Any) -> Event:
        self.workers[number] = FakeWorker()  # the executor knows that it is dead; the scheduler asks for a new one
        return Failed(number, cause, cause, False)
