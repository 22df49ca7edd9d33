"""Workers with nothing to do are let go, and come back when there is."""

from typing import Any

from pipelines.scheduling import RELEASE_SECONDS, Scheduler
from pipelines.tasks import DeadlinePolicy, Task, Verdict

LATER = RELEASE_SECONDS + 1.0


class OpenFeed:
    """Tasks that a test puts in."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.done_names: list[str] = []
        self.finished = False

    def put(self, *names: str) -> None:
        self.tasks += [Task(name, None, 100.0) for name in names]  # too long to have another wait behind it

    def pull(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def done(self, task: Task, info: Any, payload: Any) -> None:
        self.done_names.append(task.name)

    def condemned(self, task: Task, verdict: Verdict) -> None:
        raise AssertionError(f"{task.name}: {verdict}")


def at_work(num_workers: int, *names: str) -> tuple[Scheduler, OpenFeed]:
    """The first workers at these tasks since 0 s, the others idle."""
    feed = OpenFeed()
    feed.put(*names)
    scheduler = Scheduler(feed, num_workers=num_workers, deadlines=DeadlinePolicy(base_seconds=1000.0))
    for number in scheduler.step(0.0).start or range(num_workers):
        scheduler.ready(number, 0.0)
    scheduler.step(0.0)
    return scheduler, feed


def states(scheduler: Scheduler) -> list[str]:
    return [worker.state for worker in scheduler.workers]


def test_idle_workers_are_let_go_but_for_one_for_each_task_at_work() -> None:
    scheduler, _ = at_work(7, "a", "b")
    assert not scheduler.step(RELEASE_SECONDS).stop, "not yet"
    assert scheduler.step(LATER).stop == [2, 3, 4]
    assert states(scheduler) == ["busy", "busy", "released", "released", "released", "idle", "idle"]
    assert not scheduler.step(2 * LATER).stop


def test_who_has_just_become_idle_stays() -> None:
    scheduler, _ = at_work(3, "a", "b")
    scheduler.done(0, "a", None, LATER)
    scheduler.done(1, "b", None, LATER)
    assert scheduler.step(LATER).stop == [2]


def test_as_many_come_back_as_tasks_wait_for_one() -> None:
    scheduler, feed = at_work(6, "a")
    assert scheduler.step(LATER).stop == [1, 2, 3, 4]
    feed.put("b", "c", "d")
    actions = scheduler.step(LATER)
    assert [(number, task.name) for number, task in actions.submit] == [(5, "b")]
    assert actions.start == [1, 2], "for c and d"
    assert not scheduler.step(LATER + 1.0), "they are on their way"
    scheduler.ready(1, LATER + 2.0)
    scheduler.ready(2, LATER + 2.0)
    assert [(number, task.name) for number, task in scheduler.step(LATER + 2.0).submit] == [(1, "c"), (2, "d")]
    assert states(scheduler) == ["busy", "busy", "busy", "released", "released", "busy"]


def test_a_run_ends_with_workers_let_go() -> None:
    scheduler, feed = at_work(4, "a")
    assert scheduler.step(LATER).stop
    scheduler.done(0, "a", None, LATER)
    feed.finished = True
    assert scheduler.finished
    assert feed.done_names == ["a"]


def test_a_suspect_still_gets_a_fresh_worker() -> None:
    scheduler, _ = at_work(4, "a")
    assert scheduler.step(LATER).stop == [1, 2]
    scheduler.failed(0, "worker_died", "killed", LATER, alive=False)
    actions = scheduler.step(LATER)
    assert actions.start == [0]
    assert [(number, task.lane) for number, task in actions.submit] == [(3, "solo")]
