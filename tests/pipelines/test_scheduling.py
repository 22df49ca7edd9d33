"""The scheduler against an executor that lives in simulated time and does to workers what real videos do."""

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_workers import FakeExecutor, ListFeed

from pipelines.drive import GROW_SECONDS, drive
from pipelines.scheduling import (
    DIVIDE_AT_ONCE_SECONDS,
    MAX_START_FAILURES,
    QUEUE_BEHIND_SECONDS,
    STRAGGLER_SHARE,
    Scheduler,
)
from pipelines.tasks import DeadlinePolicy, Event, RunStoppedError, Task, Verdict

CONDEMNED = {
    "killer": "worker_died",
    "hang": "deadline_exceeded",
    "hog": "out_of_memory",
    "outage": "transient_error",
    "bug": "internal_error",
    "missing": "source_missing",
}
"""What each nature must end as; the others must be done."""
DEADLINES = DeadlinePolicy(base_seconds=10, factor=1, start_seconds=100)


def run(
    natures: list[str], *, num_workers: int = 2, seed: int = 0, window: int = 1000, num_nodes: int = 1
) -> tuple[ListFeed, FakeExecutor]:
    feed = ListFeed([Task(f"{i}-{nature}", nature, 1.0) for i, nature in enumerate(natures)], window=window)
    blind = frozenset({"node-0"} if min(num_nodes, num_workers) > 1 else ())
    executor = FakeExecutor(seed=seed, num_nodes=num_nodes, blind=blind)
    scheduler = Scheduler(feed, num_workers=num_workers, deadlines=DEADLINES)
    rounds = 0

    def tick() -> None:
        nonlocal rounds
        rounds += 1
        assert rounds < 100_000, "it never ends"

    drive(executor, scheduler, clock=lambda: executor.now, on_tick=tick)
    return feed, executor


@example(
    natures=["good", "good", "hungry", "good", "good", "transient", "slow_once"] + ["good"] * 5,
    num_workers=5,
    window=5,
    seed=310,
    release_seconds=60.0,
    num_nodes=1,
)
@settings(max_examples=300, deadline=None)
@given(
    natures=st.lists(
        st.sampled_from(
            [
                "good",
                "good",
                "good",
                "killer",
                "flaky",
                "hang",
                "slow_once",
                "hog",
                "hungry",
                "transient",
                "outage",
                "bug",
                "hidden",
                "missing",
            ]
        ),
        max_size=14,
    ),
    num_nodes=st.integers(1, 4),
    num_workers=st.integers(1, 5),
    window=st.integers(1, 8),
    seed=st.integers(0, 1000),
    release_seconds=st.sampled_from([0.0, 2.0, 60.0]),
)
def test_every_task_ends_once_and_only_the_guilty_are_condemned(
    natures: list[str], num_workers: int, window: int, seed: int, release_seconds: float, num_nodes: int
) -> None:
    """Of several nodes the first sees no hidden source."""
    with patch("pipelines.scheduling.RELEASE_SECONDS", release_seconds):
        feed, _ = run(natures, num_workers=num_workers, seed=seed, window=window, num_nodes=num_nodes)
    names = {f"{i}-{nature}": nature for i, nature in enumerate(natures)}
    assert feed.ends == Counter(dict.fromkeys(names, 1))
    condemned = {name: verdict.reason for name, verdict in feed.verdicts.items()}
    assert condemned == {name: CONDEMNED[nature] for name, nature in names.items() if nature in CONDEMNED}


def test_innocents_beside_a_killer_run_once() -> None:
    feed, executor = run(["good"] * 6 + ["killer"] + ["good"] * 6)
    assert [name for name in feed.verdicts] == ["6-killer"]
    assert feed.verdicts["6-killer"].attempts == 3
    assert all(executor.tries[name] == 1 for name in feed.results)


@pytest.mark.parametrize(("num_workers", "attempts"), [(1, 2), (2, 3)])
def test_hanging_task_is_condemned_after_two_deadlines(num_workers: int, attempts: int) -> None:
    """With a second worker that has nothing to do it is copied, once."""
    feed, executor = run(["hang", "good"], num_workers=num_workers)
    assert feed.verdicts["0-hang"].reason == "deadline_exceeded"
    assert feed.verdicts["0-hang"].attempts == attempts
    assert 2 * 11 < executor.now < 4 * 11


def test_workers_that_never_start_stop_the_run() -> None:
    executor = FakeExecutor(unstartable=True)
    scheduler = Scheduler(ListFeed([Task("a", "good", 1.0)]), num_workers=2, deadlines=DEADLINES)
    with pytest.raises(RunStoppedError, match="fail to start; the last one said: no such image"):
        drive(executor, scheduler, clock=lambda: executor.now, on_tick=lambda: None)


def test_a_place_where_no_worker_starts_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    executor = FakeExecutor(bad_places=frozenset({1}))
    feed = ListFeed([Task(str(number), "good", 1.0) for number in range(60)])
    scheduler = Scheduler(feed, num_workers=2, deadlines=DEADLINES)
    starts = 0
    start = executor.start

    def count(worker: int) -> None:
        nonlocal starts
        starts += worker == 1
        start(worker)

    executor.start = count  # type: ignore[method-assign]
    drive(executor, scheduler, clock=lambda: executor.now, on_tick=lambda: None)
    assert len(feed.results) == 60
    assert starts > 2 * MAX_START_FAILURES, "it was tried too rarely to show anything"
    assert caplog.messages.count("a worker does not start: no such image") == 1


def test_no_worker_in_time_stops_the_run() -> None:
    class Silent(FakeExecutor):
        def poll(self, timeout_seconds: float) -> list[Event]:
            self.now += 1.0
            return []

    executor = Silent()
    scheduler = Scheduler(ListFeed([Task("a", "good", 1.0)]), num_workers=1, deadlines=DEADLINES)
    with pytest.raises(RunStoppedError, match="no worker started within 100 s"):
        drive(executor, scheduler, clock=lambda: executor.now, on_tick=lambda: None)


@pytest.mark.parametrize("nature", ["killer", "outage", "bug"])
def test_task_without_a_suspect_stops_the_run_and_quarantines_nobody(nature: str) -> None:
    executor = FakeExecutor()
    feed = ListFeed([Task("shard 7", nature, 1.0, blamed=False)])
    scheduler = Scheduler(feed, num_workers=2, deadlines=DEADLINES)
    with pytest.raises(RunStoppedError, match="shard 7"):
        drive(executor, scheduler, clock=lambda: executor.now, on_tick=lambda: None)
    assert not feed.verdicts


def test_task_without_a_suspect_survives_one_death() -> None:
    executor = FakeExecutor()
    feed = ListFeed([Task("shard 7", "flaky", 1.0, blamed=False)])
    drive(
        executor, Scheduler(feed, num_workers=1, deadlines=DEADLINES), clock=lambda: executor.now, on_tick=lambda: None
    )
    assert feed.results == {"shard 7": "result of shard 7"}


def test_lost_node_is_nobodys_fault() -> None:
    feed = ListFeed([Task("a", "good", 1.0)])
    scheduler = Scheduler(feed, num_workers=1, deadlines=DEADLINES)
    for _ in range(5):
        scheduler.step(0.0)
        scheduler.ready(0, 0.0)
        (_, task) = scheduler.step(0.0).submit[0]
        assert task.lane == "fresh"
        scheduler.failed(0, "node_lost", "gone", 0.0, alive=False)
    scheduler.step(0.0)
    scheduler.ready(0, 0.0)
    scheduler.step(0.0)
    scheduler.done(0, "fine", None, 0.0)
    assert feed.results == {"a": "fine"}
    assert scheduler.finished


def test_worker_that_a_full_cluster_cannot_place_does_not_block_a_suspect() -> None:
    class OneSlot(FakeExecutor):
        """Worker 1 is never placed."""

        def poll(self, timeout_seconds: float) -> list[Event]:
            hidden = self.workers.pop(1, None)
            events = super().poll(timeout_seconds)
            if hidden is not None:
                self.workers[1] = hidden
            return events

    executor = OneSlot()
    feed = ListFeed([Task(f"{i}-flaky", "flaky", 1.0) for i in range(3)])
    drive(
        executor, Scheduler(feed, num_workers=2, deadlines=DEADLINES), clock=lambda: executor.now, on_tick=lambda: None
    )
    assert len(feed.results) == 3


def test_worker_number_must_be_positive() -> None:
    with pytest.raises(ValueError, match="workers must be >= 1"):
        Scheduler(ListFeed([]), num_workers=0, deadlines=DEADLINES)


def test_divisible_task_goes_back_to_its_feed_after_one_solo_death() -> None:
    """What holds several items is retried solo, in case a neighbour killed it, and never quiet: its items are tried instead."""
    feed = ListFeed([Task("many", None, DIVIDE_AT_ONCE_SECONDS + 1, divisible=True)])
    scheduler = Scheduler(feed, num_workers=1, deadlines=DEADLINES)
    scheduler.step(0.0)
    for attempt in (1, 2):
        scheduler.ready(0, 0.0)
        while not scheduler.in_flight:
            for number in scheduler.step(0.0).start:
                scheduler.ready(number, 0.0)
        assert "many" not in feed.verdicts
        scheduler.failed(0, "worker_died", f"death {attempt}", 0.0, alive=False)
    assert feed.verdicts["many"] == Verdict("worker_died", "death 2", 2)


@pytest.mark.parametrize("cause", ["worker_died", "out_of_memory", "deadline_exceeded", "internal_error"])
def test_cheap_divisible_task_goes_back_to_its_feed_at_once(cause: Any) -> None:
    """To try its items alone costs less than a fresh worker."""
    feed = ListFeed([Task("many", None, DIVIDE_AT_ONCE_SECONDS, divisible=True)])
    scheduler = Scheduler(feed, num_workers=1, deadlines=DEADLINES)
    scheduler.ready(0, 0.0)
    scheduler.step(0.0)
    scheduler.failed(0, cause, "once", 0.0, alive=False)
    assert feed.verdicts["many"] == Verdict(cause, "once", 1)


@pytest.mark.parametrize("cause", ["node_lost", "told_to_stop", "transient_error"])
def test_cheap_divisible_task_is_not_divided_by_a_setback(cause: Any) -> None:
    feed = ListFeed([task := Task("many", None, 1.0, divisible=True)])
    scheduler = Scheduler(feed, num_workers=1, deadlines=DEADLINES)
    scheduler.ready(0, 0.0)
    scheduler.step(0.0)
    scheduler.failed(0, cause, "its node is gone", 0.0, alive=True)
    assert not feed.verdicts
    assert scheduler.step(60.0).submit == [(0, task)]


# Stragglers


def straggling(num_workers: int = 2, **of_task: Any) -> tuple[Scheduler, ListFeed, Task]:
    """One task on worker 0 since 0 s; the others are idle. Its deadline is 11 s."""
    task = Task("slow", None, 1.0, **of_task)
    feed = ListFeed([task])
    scheduler = Scheduler(feed, num_workers=num_workers, deadlines=DEADLINES)
    for number in range(num_workers):
        scheduler.ready(number, 0.0)
    assert scheduler.step(0.0).submit == [(0, task)]
    return scheduler, feed, task


def test_straggler_is_copied_once_to_a_worker_with_nothing_to_do() -> None:
    scheduler, feed, task = straggling(3)
    assert not scheduler.step(STRAGGLER_SHARE * 11)
    assert scheduler.step(STRAGGLER_SHARE * 11 + 0.1).submit == [(1, task)]
    assert not scheduler.step(10.9), "worker 2 gets no third copy"
    assert feed.ends == {}


def test_a_copy_waits_while_there_is_other_work() -> None:
    scheduler, feed, _ = straggling()
    feed.tasks.append(Task("next", None, 1.0))
    assert [task.name for _, task in scheduler.step(5.0).submit] == ["next"]


@pytest.mark.parametrize("first", [0, 1])
def test_first_copy_counts_and_the_other_worker_is_replaced(first: int) -> None:
    scheduler, feed, _ = straggling()
    scheduler.step(5.0)
    scheduler.done(first, "first", None, 5.0)
    scheduler.done(1 - first, "second, in the same moment", None, 5.0)
    scheduler.failed(1 - first, "worker_died", "or dead, in the same moment", 5.0, alive=False)
    assert feed.results == {"slow": "first"}
    assert feed.ends == {"slow": 1}
    assert scheduler.finished
    assert scheduler.step(5.0).start == [1 - first]


@pytest.mark.parametrize("first", [0, 1])
def test_a_copy_that_fails_charges_nobody_while_the_other_runs(first: int) -> None:
    scheduler, feed, task = straggling()
    scheduler.step(5.0)
    scheduler.failed(first, "worker_died", "killed", 6.0, alive=False)
    assert (task.failures, scheduler.deaths) == (0, 1)
    scheduler.failed(1 - first, "worker_died", "killed too", 7.0, alive=False)
    assert (task.failures, task.lane) == (1, "solo")
    assert not feed.verdicts


def test_suspects_are_never_copied() -> None:
    scheduler, _, _ = straggling(lane="solo")
    assert not scheduler.step(10.9)


def test_a_shard_that_nobody_finishes_writing_is_copied_too() -> None:
    scheduler, _, task = straggling(blamed=False)
    assert scheduler.step(5.0).submit == [(1, task)]


def test_worker_told_to_stop_charges_nobody() -> None:
    scheduler, feed, task = straggling()
    for _ in range(5):
        (number,) = [number for number, worker in enumerate(scheduler.workers) if worker.task is task]
        scheduler.failed(number, "told_to_stop", "The process receives a SIGTERM.", 1.0, alive=False)
        for started in scheduler.step(1.0).start:
            scheduler.ready(started, 0.0)
        scheduler.step(1.0)
    assert (task.failures, task.lane, task.setbacks) == (0, "fresh", 5)
    assert not feed.verdicts


# A task that waits behind a short one


def queued(cost_seconds: float = 1.0, **of_first: Any) -> tuple[Scheduler, ListFeed, list[Task]]:
    """Three tasks and one worker, at 0 s."""
    tasks = [
        Task("first", None, cost_seconds, **of_first),
        *(Task(name, None, cost_seconds) for name in ("second", "third")),
    ]
    feed = ListFeed(tasks)
    scheduler = Scheduler(feed, num_workers=1, deadlines=DEADLINES)
    scheduler.ready(0, 0.0)
    return scheduler, feed, tasks


def test_the_next_task_waits_behind_a_short_one_and_its_clock_starts_with_it() -> None:
    scheduler, feed, (first, second, third) = queued()
    assert scheduler.step(0.0).submit == [(0, first), (0, second)]
    assert (first.attempts, second.attempts, scheduler.num_running) == (1, 0, 1)
    scheduler.done(0, "done", None, 9.0)
    assert (second.attempts, scheduler.num_running) == (1, 1)
    assert scheduler.step(9.0).submit == [(0, third)]
    assert not scheduler.overdue(19.9)
    assert [number for number, _ in scheduler.overdue(20.1)] == [0]
    for name in ("second", "third"):
        scheduler.done(0, name, None, 21.0)
    assert feed.results == {"first": "done", "second": "second", "third": "third"}
    assert scheduler.finished


def test_nothing_waits_behind_a_long_task() -> None:
    scheduler, _, (first, *_) = queued(QUEUE_BEHIND_SECONDS + 0.1)
    assert scheduler.step(0.0).submit == [(0, first)]
    assert not scheduler.step(5.0)


def test_what_waited_at_a_worker_that_died_goes_back_uncharged() -> None:
    scheduler, _, (first, second, third) = queued()
    scheduler.step(0.0)
    scheduler.failed(0, "worker_died", "killed", 1.0, alive=False)
    assert (first.lane, second.lane, second.failures, second.attempts) == ("solo", "fresh", 0, 0)
    scheduler.failed(0, "worker_died", "what waited fell with it", 1.0, alive=False)
    assert (second.lane, second.failures) == ("fresh", 0)
    assert scheduler.step(1.0).start == [0]
    scheduler.ready(0, 0.0)
    assert scheduler.step(2.0).submit == [(0, first)], "nothing waits behind a suspect"
    scheduler.done(0, None, None, 3.0)
    assert scheduler.step(3.0).submit == [(0, second), (0, third)]


def test_a_worker_goes_on_with_what_waits_after_an_error() -> None:
    scheduler, _, (first, second, _) = queued()
    scheduler.step(0.0)
    scheduler.failed(0, "transient_error", "503", 1.0, alive=True)
    assert (first.setbacks, second.attempts, scheduler.num_running) == (1, 1, 1)


def test_workers_drain_for_a_suspect() -> None:
    scheduler, _, _ = queued()
    suspect = Task("suspect", None, 1.0, lane="solo")
    scheduler.step(0.0)
    scheduler.solo.append(suspect)
    scheduler.done(0, None, None, 1.0)
    assert not scheduler.step(1.0), "the worker still has one, and gets no more"
    scheduler.done(0, None, None, 2.0)
    assert scheduler.step(2.0).start == [0], "used: the suspect wants a fresh one"
    scheduler.ready(0, 0.0)
    assert scheduler.step(3.0).submit == [(0, suspect)]


def test_what_waited_at_a_replaced_worker_is_not_lost() -> None:
    scheduler, feed, task = straggling()
    feed.tasks += [Task("other", None, 1.0), Task("waits", None, 1.0), Task("last", None, 1.0)]
    assert [(n, t.name) for n, t in scheduler.step(0.0).submit] == [(1, "other"), (0, "waits"), (1, "last")]
    for _ in range(2):
        scheduler.done(1, None, None, 1.0)
    assert scheduler.step(5.0).submit == [(1, task)], "the straggler's copy"
    scheduler.done(1, "copy", None, 6.0)
    actions = scheduler.step(6.0)
    assert (actions.start, [(n, t.name) for n, t in actions.submit]) == ([0], [(1, "waits")])
    scheduler.done(1, None, None, 7.0)
    assert scheduler.finished
    assert feed.ends == {"slow": 1, "other": 1, "waits": 1, "last": 1}


# A cluster that grows


def test_workers_join_as_a_cluster_grows_and_stay_when_it_shrinks() -> None:
    feed = ListFeed([Task(str(i), "good", 1.0) for i in range(60)])
    executor = FakeExecutor(places=3)
    scheduler = Scheduler(feed, num_workers=1, deadlines=DEADLINES)
    seen = []

    def tick() -> None:
        seen.append(len(scheduler.workers))
        if executor.now > 30:
            executor.places = 2

    drive(executor, scheduler, clock=lambda: executor.now, on_tick=tick)
    assert seen[: int(GROW_SECONDS) - 1] == [1] * (int(GROW_SECONDS) - 1)
    assert seen[-1] == 3
    assert set(executor.workers) == {0, 1, 2}
    assert executor.now > 40
    assert all(feed.ends[str(i)] == 1 for i in range(60))
