"""Who runs what, when, and who is to blame: the scheduler's decisions, without Ray, threads or a clock of its own.

Enters: tasks from a feed, and what an executor reports of its workers. Leaves: assignments, results and verdicts.

A worker runs one task at a time. So when it dies or overruns its deadline, the suspect is exactly the task that
it ran, and nothing has to be bisected. But a worker may also be killed for its neighbour's memory; so a suspect gets
more chances, each with fewer neighbours, before it is charged:

    fresh  beside all others. Dies or overruns ->
    solo   on a fresh worker, one suspect in flight at a time, normal work goes on beside it.
           Overruns -> condemned. Dies ->
    quiet  on a fresh worker while nothing else runs at all. Runs when there is nothing else to do, so that waiting
    for quiet
           costs no throughput. Dies or overruns -> condemned.

An innocent neighbour of a bad task is thereby retried, never charged. Nor is a task of several items, such as short videos:
where it has failed (and failed solo, if it is dear), each of its items is tried alone. Tasks with `blamed=False` (writing a
shard) have no suspect: they are retried a few times, then the run stops with `RunStoppedError`. A task whose node was lost,
whose worker was told to stop, or that met a transient error, goes back without losing a chance, a bounded number of times.

A source that a node does not see may be missing, or the node may lack a mount: so other nodes are asked before it counts as
missing, up to NODES_ASKED, and a transient error too is tried again elsewhere. Where several tasks meet transient errors and
nothing is done meanwhile, the storage is away: they wait for it for OUTAGE_SECONDS before any is given up.

Behind a short task a worker is given the next one, so that it does not wait for the driver in between. One that was still
waiting when its worker died or was replaced goes back as if nothing had been; none waits while there is a suspect.

A worker that finds nothing to do takes a copy of the task that has run longest, once that has used up STRAGGLER_SHARE of
its deadline. The first copy to end well counts, and the other's worker is replaced; a copy that fails says nothing while the
other runs. Tasks must bear that: samples are pure, and of two writers of a shard the commit protocol lets one win.

Workers that find nothing to do for RELEASE_SECONDS are let go, so that a cluster can give their nodes back while the last tasks
run; each task at work keeps an idle one for its copy. Those let go are started again when there is more to do than workers.
"""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.tasks import (
    Cause,
    DeadlinePolicy,
    Feed,
    RunStoppedError,
    Task,
    Verdict,
)
from schemas.shard import QuarantineReason

MAX_TRANSIENT = 4
MAX_NODE_LOSSES = 8
MAX_UNBLAMED_FAILURES = 4
OUTAGE_TASKS = 8
"""That meet transient errors while nothing is done: the storage is away, and no item is to blame."""
OUTAGE_SECONDS = 300.0
"""How long that is waited for."""
OUTAGE_WAIT_SECONDS = 15.0
NODES_ASKED = 3
"""Whether a source is there; two that lack a mount do not make it missing."""
log = logging.getLogger(__name__)
MAX_START_FAILURES = 5
"""A worker, on average, without any task done meanwhile."""
FRESH_WAIT_SECONDS = 60.0
RELEASE_SECONDS = 60.0
"""A fresh worker costs some seconds; an idle one costs its node."""
STRAGGLER_SHARE = 0.25
"""Of its deadline: a task that has run for so long is copied to a worker that has nothing to do."""
QUEUE_BEHIND_SECONDS = 2.0
"""Behind a task predicted to be so short the next one waits at its worker: at the end of a run others cannot take it from there."""
DIVIDE_AT_ONCE_SECONDS = 2.0
"""About what a fresh worker takes to start."""


@dataclass(slots=True)
class _Worker:
    state: Literal["starting", "idle", "busy", "released"] = "starting"
    used: bool = False
    task: Task | None = None
    since: float = 0.0
    """When it came into its state; of a starting one below 0: `step` asks for it, 0: it was asked for before the first step."""
    waiting: Task | None = None
    """It has this task too, and begins it when `task` has ended."""
    node: str = ""
    """Of one that was released: where it was."""


@dataclass(slots=True)
class Actions:
    """What the executor shall do now."""

    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    submit: list[tuple[int, Task]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.start or self.stop or self.submit)


class Scheduler:
    """The state machine. Call `step` after events, then do what it says.

    Raises:
        RunStoppedError: from any method, when nothing can go on and no item is to blame.
    """

    def __init__(self, feed: Feed, *, num_workers: int, deadlines: DeadlinePolicy) -> None:
        if num_workers < 1:
            raise ValueError(f"the number of workers must be >= 1, got {num_workers}")
        self.feed = feed
        self.deadlines = deadlines
        self.workers = [_Worker() for _ in range(num_workers)]
        self.solo: deque[Task] = deque()
        self.quiet: deque[Task] = deque()
        self.again: deque[Task] = deque()
        """Tasks that go back to the fresh lane after a setback."""
        self.delayed: list[tuple[float, Task]] = []
        """(not before, task)."""
        self.deaths = 0
        self._stragglers: list[Task] = []
        """Of this step, the longest at work last."""
        self._start_failures = 0
        self._start_message = ""
        self._last_done = 0.0
        self._blind: set[str] = set()
        """Nodes that did not see a source that another one read."""
        self._began: float | None = None
        self._ever_ready = False

    @property
    def num_running(self) -> int:
        """Tasks that workers run now."""
        return sum(worker.task is not None for worker in self.workers)

    @property
    def in_flight(self) -> list[Task]:
        """Tasks that workers run now or will run next."""
        held = (task for worker in self.workers for task in (worker.task, worker.waiting))
        return [task for task in held if task is not None]

    @property
    def finished(self) -> bool:
        """True once the feed is finished and no task is anywhere."""
        return self.feed.finished and not (self.solo or self.quiet or self.again or self.delayed or self.in_flight)

    def grow(self, num_workers: int) -> None:
        """Adds workers up to so many; `step` asks for them. Never takes any away: on a lost node they wait for another."""
        self.workers += [_Worker(since=-1.0) for _ in range(num_workers - len(self.workers))]

    def ready(self, number: int, now: float, node: str = "") -> None:
        """A worker has started."""
        self.workers[number] = _Worker(state="idle", since=now, node=node)
        self._start_failures = 0
        self._ever_ready = True

    def done(self, number: int, info: Any, payload: Any, now: float) -> None:
        """A worker has finished its task."""
        if self.workers[number].task is None:
            return  # its task's other copy ended in the same moment
        self._last_done = now
        self._start_failures = 0  # one node that starts none does not stop a run in which others get on
        task = self._release(number, now, alive=True)
        for other in self._holders(task):
            self._release(other, now, alive=False)  # started anew, which kills what is there
        if task.missing:
            self._note_blind(task)
        self.feed.done(task, info, payload)

    def failed(self, number: int, cause: Cause, message: str, now: float, *, alive: bool) -> None:
        """A worker failed; if it is not alive, `step` asks for a new one."""
        if self.workers[number].task is None:
            if self.workers[number].since < 0:
                return  # its task's other copy ended in the same moment; it is to be replaced anyway
            self.workers[number] = _Worker(state="starting", since=-1.0)
            self._start_failures += 1
            if message != self._start_message:
                log.warning("a worker does not start: %s", message)
                self._start_message = message
            if self._start_failures >= MAX_START_FAILURES * len(self.workers):
                raise RunStoppedError(f"workers fail to start; the last one said: {message}")
            return
        if not alive:
            self.deaths += 1
        node = self.workers[number].node
        task = self._release(number, now, alive=alive)
        if cause in ("not_here", "transient_error", "disk_full"):
            task.not_at.add(node)
        if not self._holders(task):
            self._judge(task, cause, message, now)

    def overdue(self, now: float) -> list[tuple[int, str]]:
        """Workers past their deadline, with a message. Report each as failed."""
        if self._began is None:
            self._began = now
        if not self._ever_ready and now - self._began > self.deadlines.start_seconds:
            raise RunStoppedError(
                f"no worker started within {self.deadlines.start_seconds:.0f} s; "
                "has the cluster a free CPU? (ov2 doctor)"
            )
        late = []
        for number, worker in enumerate(self.workers):
            if worker.task is not None and now - worker.since > self.deadlines.seconds(worker.task):
                allowed = self.deadlines.seconds(worker.task)
                late.append(
                    (number, f"still running after {allowed:.0f} s (predicted {worker.task.cost_seconds:.1f} s)")
                )
        return late

    def step(self, now: float) -> Actions:
        """Starts dead workers anew and gives idle ones work."""
        actions = Actions()
        for number, worker in enumerate(self.workers):
            if worker.state == "starting" and worker.since < 0:
                worker.since = now
                actions.start.append(number)
            elif worker.state == "starting" and worker.since == 0.0:
                worker.since = now
        self._wake(now)
        self._settle_unseen(now, actions)
        self._stragglers = self._find_stragglers(now)
        for number, worker in enumerate(self.workers):
            if worker.state == "idle":
                self._give(number, worker, now, actions)
        for number, worker in enumerate(self.workers):
            if self._may_queue(worker) and (task := self._next_task(worker)) is not None:
                worker.waiting = task
                actions.submit.append((number, task))
        self._call_back(now, actions)
        self._let_go(now, actions)
        if not actions and not self.in_flight and not self.delayed and not self.finished and self._all_idle():
            raise AssertionError("the scheduler has work but nothing that it can assign")
        return actions

    def _all_idle(self) -> bool:
        return all(worker.state in ("idle", "released") for worker in self.workers)

    def _call_back(self, now: float, actions: Actions) -> None:
        """Starts as many workers that were let go as tasks wait for one."""
        states = [worker.state for worker in self.workers]
        released = [number for number, state in enumerate(states) if state == "released"]
        if "idle" in states or not released:
            return
        while len(self.again) < len(released) and (task := self.feed.pull()) is not None:
            self.again.append(task)
        for number in released[: max(0, len(self.again) - states.count("starting"))]:
            self._replace(number, now, actions)

    def _let_go(self, now: float, actions: Actions) -> None:
        """Ends workers that have long been idle, the longest first, but for one for each task at work."""
        idle = [number for number, worker in enumerate(self.workers) if worker.state == "idle"]
        long = [number for number in idle if now - self.workers[number].since > RELEASE_SECONDS]
        long.sort(key=lambda number: self.workers[number].since)
        for number in long[: max(0, len(idle) - max(1, self.num_running))]:
            self.workers[number] = _Worker(state="released", since=now, node=self.workers[number].node)
            actions.stop.append(number)

    def _give(self, number: int, worker: _Worker, now: float, actions: Actions) -> None:
        running = self.in_flight
        if any(task.lane == "quiet" for task in running):
            return
        if self.solo and not any(task.lane == "solo" for task in running):
            if not worker.used:
                self._submit(number, worker, self.solo.popleft(), now, actions)
                return
            if not self._fresh_coming(now):
                self._replace(number, now, actions)
                return
        task = self._next_task(worker)
        if task is not None:
            self._submit(number, worker, task, now, actions)
        elif self.quiet and not running and not self.solo:
            if not worker.used:
                self._submit(number, worker, self.quiet.popleft(), now, actions)
            elif not self._fresh_coming(now):
                self._replace(number, now, actions)
        elif late := [task for task in self._stragglers if worker.node not in task.not_at]:
            late[-1].copied = True
            self._stragglers.remove(late[-1])
            self._submit(number, worker, late[-1], now, actions)

    def _next_task(self, worker: _Worker) -> Task | None:
        for place, task in enumerate(self.again):
            if worker.node not in task.not_at:
                del self.again[place]
                return task
        return self.feed.pull()

    def _settle_unseen(self, now: float, actions: Actions) -> None:
        """Ends tasks whose source no node is left to ask for. One that met a transient error at all of them may go to any."""
        nodes = {worker.node for worker in self.workers if worker.state in ("idle", "busy")}
        stuck = [task for task in self.again if nodes and nodes <= task.not_at]
        if not stuck or any(w.state == "starting" and now - w.since < FRESH_WAIT_SECONDS for w in self.workers):
            return  # a worker that starts may be at another node
        for task in stuck:
            elsewhere = (n for n, w in enumerate(self.workers) if w.state == "released" and w.node not in task.not_at)
            if (number := next(elsewhere, None)) is not None:
                self._replace(number, now, actions)
                return
            if task.missing:
                self.again.remove(task)
                self._condemn(task, "source_missing", task.missing)
            else:
                task.not_at.clear()

    def _note_blind(self, task: Task) -> None:
        for node in sorted(task.not_at - self._blind):
            log.warning(
                "node %s does not see a source that another node has read: %s; is a folder not mounted there?",
                node,
                task.missing,
            )
        self._blind |= task.not_at

    def _may_queue(self, worker: _Worker) -> bool:
        """Whether a task may wait behind the worker's. A suspect wants workers that become free."""
        task = worker.task
        return (
            task is not None
            and worker.waiting is None
            and task.lane == "fresh"
            and not task.copied
            and task.cost_seconds <= QUEUE_BEHIND_SECONDS
            and not (self.solo or self.quiet)
        )

    def _find_stragglers(self, now: float) -> list[Task]:
        """Tasks that have used up their share of the deadline and were not copied yet, the longest at work last."""
        if not any(worker.state == "idle" for worker in self.workers):
            return []
        late = [
            (now - worker.since, worker.task)
            for worker in self.workers
            if worker.task is not None
            and worker.task.lane == "fresh"
            and not worker.task.copied
            and now - worker.since > STRAGGLER_SHARE * self.deadlines.seconds(worker.task)
        ]
        return [task for _, task in sorted(late, key=lambda entry: entry[0])]

    def _holders(self, task: Task) -> list[int]:
        """Workers that run the task."""
        return [number for number, worker in enumerate(self.workers) if worker.task is task]

    def _fresh_coming(self, now: float) -> bool:
        # A worker that a full cluster cannot place stays "starting"; do not wait for it for ever.
        return any(
            (w.state == "starting" and now - w.since < FRESH_WAIT_SECONDS) or (w.state == "idle" and not w.used)
            for w in self.workers
        )

    def _replace(self, number: int, now: float, actions: Actions) -> None:
        self.workers[number] = _Worker(state="starting", since=now)
        actions.start.append(number)

    def _submit(self, number: int, worker: _Worker, task: Task, now: float, actions: Actions) -> None:
        task.attempts += 1
        worker.state, worker.used, worker.task, worker.since = "busy", True, task, now
        actions.submit.append((number, task))

    def _wake(self, now: float) -> None:
        """Delayed tasks whose time has come go back to their lanes."""
        lanes = {"fresh": self.again, "solo": self.solo, "quiet": self.quiet}
        for when, task in self.delayed:
            if when <= now:
                lanes[task.lane].append(task)
        self.delayed = [(when, task) for when, task in self.delayed if when > now]

    def _release(self, number: int, now: float, *, alive: bool) -> Task:
        """Takes the task from the worker, which goes on with the one that waits, or is to be started anew."""
        task, waiting, node = self.workers[number].task, self.workers[number].waiting, self.workers[number].node
        assert task is not None, f"worker {number} has no task"
        if not alive:
            self.workers[number] = _Worker(state="starting", since=-1.0)
            if waiting is not None:
                self.again.appendleft(waiting)
        elif waiting is not None:
            waiting.attempts += 1
            self.workers[number] = _Worker(state="busy", used=True, task=waiting, since=now, node=node)
        else:
            self.workers[number] = _Worker(state="idle", used=True, since=now, node=node)
        return task

    def _judge(self, task: Task, cause: Cause, message: str, now: float) -> None:
        if cause == "disk_full":
            self._try_elsewhere(task, message)
            return
        if cause == "none_read":
            self._condemn(task, "transient_error", message)
            return
        if cause == "not_here":
            task.missing = message
            task.setbacks += 1
            if len(task.not_at - self._blind) >= NODES_ASKED or task.setbacks >= MAX_NODE_LOSSES:
                self._condemn(task, "source_missing", message)
            else:
                task.lane = "fresh"
                self.again.append(task)
            return
        if cause in ("transient_error", "node_lost", "told_to_stop", "object_lost"):
            task.setbacks += 1
            if cause == "transient_error" and self._is_outage(task, now):
                self.delayed.append((now + OUTAGE_WAIT_SECONDS, task))
                return
            if task.setbacks < (MAX_TRANSIENT if cause == "transient_error" else MAX_NODE_LOSSES):
                wait = 2.0**task.setbacks if cause == "transient_error" else 0.0
                self.delayed.append((now + wait, task))
                return
            self._condemn(task, "transient_error" if cause == "transient_error" else "worker_died", message)
            return
        task.failures += 1
        if not task.blamed:
            if task.failures >= MAX_UNBLAMED_FAILURES or cause == "internal_error":
                raise RunStoppedError(f"{task.name}: {message}")
            self.delayed.append((now, task))
        elif cause == "internal_error" or task.lane == "quiet" or (task.divisible and self._cheap(task)):
            self._condemn(task, cause, message)
        elif task.lane == "fresh":
            task.lane = "solo"
            self.solo.append(task)
        elif cause == "deadline_exceeded" or task.divisible:
            self._condemn(task, cause, message)
        else:
            task.lane = "quiet"
            self.quiet.append(task)

    def _try_elsewhere(self, task: Task, message: str) -> None:
        """A full disk stops the run, unless it may be one node's own."""
        task.setbacks += 1
        others = {worker.node for worker in self.workers if worker.state in ("idle", "busy")} - task.not_at
        if not others or task.setbacks >= MAX_TRANSIENT:
            raise RunStoppedError(f"{task.name}: {message}")
        log.warning("%s: %s; tried again elsewhere", task.name, message)
        task.lane = "fresh"
        self.again.append(task)

    def _is_outage(self, task: Task, now: float) -> bool:
        """Whether a task that would be given up is one of many, and none got through since it fails."""
        if task.failing_since is None:
            task.failing_since = now
        if task.setbacks < MAX_TRANSIENT or not task.blamed or self._last_done >= task.failing_since:
            return False
        failing = sum(other.failing_since is not None for _, other in self.delayed) + 1
        return failing >= OUTAGE_TASKS and now - task.failing_since < OUTAGE_SECONDS

    def _cheap(self, task: Task) -> bool:
        """Its items alone, which go to workers that are there, cost less than another try of it on a fresh one."""
        return task.cost_seconds <= DIVIDE_AT_ONCE_SECONDS

    def _condemn(self, task: Task, reason: QuarantineReason, message: str) -> None:
        if not task.blamed:
            raise RunStoppedError(f"{task.name}: {message}")
        self.feed.condemned(task, Verdict(reason, message, task.attempts))
