"""What a run shows of itself: records on its storage, gauges for Prometheus. No Ray."""

import time
from pathlib import Path
from typing import Any

import pytest

from ov2_core.storage.files import Store
from ov2_core.storage.invocations import load_invocations
from pipelines.observe import GAUGES, gauge_values, observed
from pipelines.progress import Counters
from pipelines.scheduling import Scheduler
from pipelines.tasks import DeadlinePolicy, Task


class NoFeed:
    """A feed that gives one task and waits for ever."""

    finished = False

    def __init__(self) -> None:
        self.tasks = [Task("clip-7", "payload", 2.0)]

    def pull(self) -> Task | None:
        return self.tasks.pop() if self.tasks else None

    def done(self, task: Task, info: Any, payload: Any) -> None: ...

    def condemned(self, task: Task, verdict: Any) -> None: ...


@pytest.fixture
def scheduler() -> Scheduler:
    """Two workers, one at work since 5 s ago, one starting."""
    found = Scheduler(NoFeed(), num_workers=2, deadlines=DeadlinePolicy(base_seconds=10, factor=3))
    found.ready(0, 0.0)
    found.step(time.monotonic() - 5)
    return found


@pytest.fixture
def counters() -> Counters:
    found = Counters("tokenize", num_items=10, num_done=4, num_made=3, num_shards=5, num_shards_done=2)
    found.quarantined["not_media"] = 1
    return found


def test_every_gauge_gets_a_value_under_its_own_tags(counters: Counters, scheduler: Scheduler) -> None:
    values = gauge_values(counters, scheduler, now=time.monotonic())
    assert {name for name, _, _ in values} == GAUGES.keys()
    for name, tags, _ in values:
        assert {"stage", *tags} == set(GAUGES[name][1])
    plain = {(name, *tags.values()): value for name, tags, value in values}
    assert plain["ov2_rows", "made"] + plain["ov2_rows", "quarantined"] == counters.num_done
    assert (plain["ov2_rows_left",], plain["ov2_shards_left",]) == (6, 3)
    assert (plain["ov2_workers", "busy"], plain["ov2_workers", "starting"], plain["ov2_workers", "idle"]) == (1, 1, 0)
    assert 5 <= plain["ov2_longest_task_seconds",] < 15


def test_record_follows_the_run_to_its_end(tmp_path: Path, counters: Counters, scheduler: Scheduler) -> None:
    store = Store(tmp_path / "run")
    with observed(store, counters, scheduler, "off"):
        (record,) = load_invocations(store)
        assert (record.state, record.stage, record.num_done) == ("running", "tokenize", 4)
        busy, starting = record.workers
        assert (busy.state, busy.task, busy.deadline_seconds) == ("busy", "clip-7", 16.0)
        assert busy.since_unix_seconds == pytest.approx(time.time() - 5, abs=5)
        assert (starting.state, starting.task) == ("starting", None)
        counters.num_done = 10
    (record,) = load_invocations(store)
    assert (record.state, record.num_done, record.workers) == ("done", 10, [])


def test_record_of_a_run_that_stopped_says_so(tmp_path: Path, counters: Counters, scheduler: Scheduler) -> None:
    store = Store(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), observed(store, counters, scheduler, "off"):
        raise KeyboardInterrupt
    assert [record.state for record in load_invocations(store)] == ["stopped"]


def test_ticks_rewrite_at_a_pace(tmp_path: Path, counters: Counters, scheduler: Scheduler) -> None:
    store = Store(tmp_path / "run")
    with observed(store, counters, scheduler, "off") as tick:
        before = (tmp_path / "run/invocations").stat().st_mtime_ns
        for _ in range(50):
            tick()
        assert (tmp_path / "run/invocations").stat().st_mtime_ns == before


def test_store_that_refuses_the_record_does_not_stop_the_run(
    tmp_path: Path, counters: Counters, scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with observed(Store(tmp_path / "run"), counters, scheduler, "off") as tick:
        tick()
    assert caplog.text.count("goes on without") == 1
