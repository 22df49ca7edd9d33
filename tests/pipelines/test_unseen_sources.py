"""Sources that are not seen: from one node, which lacks a mount; from none; from none for a while."""

import errno
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
from simulated_workers import FakeExecutor, ListFeed

from ov2_core.config import RunConfig, recipe
from ov2_core.data.manifest import read_rows
from ov2_core.make_sample import NoneReadError, NotHereError, ProbeTask, TransientItemError, make_probe, make_sample
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run
from pipelines.drive import drive
from pipelines.each import each
from pipelines.options import RunOptions
from pipelines.plan_videos import ProbeJob
from pipelines.run_identity import Installation, WrongInstallationError
from pipelines.scheduling import NODES_ASKED, OUTAGE_SECONDS, Scheduler
from pipelines.tasks import DeadlinePolicy, Event, Failed, RunStoppedError, Task, Verdict
from pipelines.tokenize_videos import TokenizeJob, tokenize_videos
from schemas.shard import QuarantineRow
from schemas.video import ManifestRow

DEADLINES = DeadlinePolicy(base_seconds=10, factor=1, start_seconds=100)


def tasks_of(natures: list[str]) -> list[Task]:
    return [Task(f"{i}-{nature}", nature, 1.0) for i, nature in enumerate(natures)]


def run(tasks: list[Task], executor: FakeExecutor, *, num_workers: int) -> ListFeed:
    feed = ListFeed(tasks)
    scheduler = Scheduler(feed, num_workers=num_workers, deadlines=DEADLINES)
    drive(executor, scheduler, clock=lambda: executor.now, on_tick=lambda: None)
    return feed


@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_lacks_a_mount_costs_no_row(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    tasks = tasks_of(["hidden"] * 40)
    executor = FakeExecutor(seed=seed, num_nodes=2, blind=frozenset({"node-1"}))
    feed = run(tasks, executor, num_workers=4)
    assert len(feed.results) == 40
    assert executor.unseen, "the blind node was given nothing"
    once = [task.name for task in tasks if not task.copied]
    assert len(once) > 20
    assert all(executor.unseen.get(name, ["node-1"]) == ["node-1"] for name in once), "asked twice"
    warnings = [message for message in caplog.messages if "does not see" in message]
    assert len(warnings) == 1
    assert "node node-1 does not see a source that another node has read: no such file" in warnings[0]


def test_a_node_without_a_mount_that_comes_first_waits_for_the_other() -> None:
    """Workers of the other node start long after it."""

    class Late(FakeExecutor):
        def poll(self, timeout_seconds: float) -> list[Event]:
            late = self.workers.pop(0, None) if self.now < 1040 else None
            events = super().poll(timeout_seconds)
            if late is not None:
                self.workers[0] = late
            return events

    executor = Late(num_nodes=2, blind=frozenset({"node-1"}), now=1000.0)
    feed = run(tasks_of(["hidden"] * 5), executor, num_workers=2)
    assert len(feed.results) == 5
    assert executor.unseen


def test_two_blind_nodes_do_not_make_a_source_missing() -> None:
    executor = FakeExecutor(num_nodes=5, blind=frozenset({"node-1", "node-2"}))
    feed = run(tasks_of(["hidden"] * 30), executor, num_workers=5)
    assert len(feed.results) == 30


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
def test_a_missing_source_is_asked_for_at_a_few_nodes(num_nodes: int) -> None:
    executor = FakeExecutor(num_nodes=num_nodes)
    feed = run(tasks_of(["good", "missing"] + ["good"] * 20), executor, num_workers=num_nodes)
    assert {name: verdict.reason for name, verdict in feed.verdicts.items()} == {"1-missing": "source_missing"}
    asked = executor.unseen["1-missing"]
    assert len(set(asked)) == len(asked), "a node was asked twice"
    assert min(num_nodes, NODES_ASKED) <= len(asked) <= NODES_ASKED + 1, (
        "one more by a copy of the last that is at work"
    )


def test_a_transient_error_is_tried_again_elsewhere() -> None:
    executor = FakeExecutor(num_nodes=2)
    scheduler = Scheduler(ListFeed([Task("a", "good", 1.0)]), num_workers=2, deadlines=DEADLINES)
    scheduler.step(0.0)
    for number in (0, 1):
        scheduler.ready(number, 0.0, f"node-{number}")
    ((first, task),) = scheduler.step(0.0).submit
    for _ in range(2):
        scheduler.failed(first, "transient_error", "EIO", executor.now, alive=True)
        executor.now += 10.0
        ((second, again),) = scheduler.step(executor.now).submit
        assert (again, second) == (task, 1 - first)
        first = second
    scheduler.done(first, None, None, executor.now)
    assert scheduler.finished


# A storage that is away


class Outage(FakeExecutor):
    """Nothing can be read until `back`."""

    back = 0.0

    def _end(self, number: int) -> list[Event]:
        task = self.workers[number].task
        assert task is not None
        if task.payload == "good" and self.now < self.back:
            task.payload = "outage"
            events = super()._end(number)
            task.payload = "good"
            return events
        return super()._end(number)


def test_an_outage_of_minutes_costs_no_row() -> None:
    executor = Outage()
    executor.back = 200.0
    feed = run(tasks_of(["good"] * 30), executor, num_workers=4)
    assert (len(feed.results), feed.verdicts) == (30, {})
    assert executor.now > 200


def test_an_outage_without_end_gives_each_row_up() -> None:
    executor = Outage()
    executor.back = float("inf")
    feed = run(tasks_of(["good"] * 30), executor, num_workers=4)
    assert {verdict.reason for verdict in feed.verdicts.values()} == {"transient_error"}
    assert len(feed.verdicts) == 30
    assert executor.now > OUTAGE_SECONDS


def test_a_few_rows_that_cannot_be_read_do_not_hold_a_run_up() -> None:
    executor = FakeExecutor()
    feed = run(tasks_of(["good"] * 10 + ["outage"] * 5), executor, num_workers=2)
    assert len(feed.verdicts) == 5
    assert executor.now < 100


def test_a_task_of_several_of_which_none_was_read_is_divided_at_once() -> None:
    scheduler = Scheduler(feed := ListFeed([Task("several", None, 1.0)]), num_workers=1, deadlines=DEADLINES)
    scheduler.ready(0, 0.0)
    scheduler.step(0.0)
    scheduler.failed(0, "none_read", "503", 0.0, alive=True)
    assert feed.verdicts["several"] == Verdict("transient_error", "503", 1)


def test_a_full_disk_of_one_node_does_not_stop_the_others() -> None:
    scheduler = Scheduler(
        feed := ListFeed([Task("shard", None, 1.0, blamed=False)]), num_workers=3, deadlines=DEADLINES
    )
    for number in range(3):
        scheduler.ready(number, 0.0, f"node-{number}")
    ((first, _),) = scheduler.step(0.0).submit
    scheduler.failed(first, "disk_full", "no space left", 0.0, alive=True)
    ((second, _),) = scheduler.step(0.0).submit
    scheduler.done(second, "written", None, 1.0)
    assert (feed.results, scheduler.finished) == ({"shard": "written"}, True)


@pytest.mark.parametrize("num_nodes", [1, 2, 6])
def test_a_full_storage_stops_the_run(num_nodes: int) -> None:
    class Full(FakeExecutor):
        def _end(self, number: int) -> list[Event]:
            self.workers[number].task = None
            return [Failed(number, "disk_full", "no space left", True)]

    feed = ListFeed([Task("shard 7", "good", 1.0, blamed=False)])
    executor = Full(num_nodes=num_nodes)
    with pytest.raises(RunStoppedError, match="shard 7: no space left"):
        drive(
            executor,
            Scheduler(feed, num_workers=num_nodes, deadlines=DEADLINES),
            clock=lambda: executor.now,
            on_tick=lambda: None,
        )
    assert not feed.verdicts


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_a_run_whose_disk_is_full_stops_and_goes_on(
    workers: int, clip_manifest: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A store that holds plan and samples but no shard, until there is room."""

    class Full(Store):
        """In here, since workers cannot import this module."""

        def __reduce__(self) -> tuple[object, ...]:
            return Full, (self.root,)

        def put_file(self, local: Any, rel: str, *, move: bool = False) -> None:
            if rel.startswith("attempts/") and not os.path.exists(self.local("room")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().put_file(local, rel, move=move)

    if workers:
        request.getfixturevalue("local_ray")
    store = Full(tmp_path / "run")
    options = RunOptions(workers=workers, progress="off")
    room = tmp_path / "run" / "room"
    with pytest.raises(RunStoppedError, match=r"shard \d+: no space left.*free some and run again"):
        tokenize_videos(str(clip_manifest), store, recipe("uniform-4"), options)
    assert not list((tmp_path / "run").glob("commits/*"))
    room.touch()
    tokenize_videos(str(clip_manifest), store, recipe("uniform-4"), options)
    assert verify_run(Store(tmp_path / "run")).committed == 6


def test_each_of_several_items() -> None:
    def make(item: str) -> str:
        if item == "away":
            raise TransientItemError("503")
        if item == "unseen":
            raise NotHereError("no such file")
        return item.upper()

    assert each(make, ["a", "away", "unseen", "b"]) == ["A", None, None, "B"]
    assert each(make, []) == []
    with pytest.raises(TransientItemError, match="503"):
        each(make, ["away"])
    with pytest.raises(NotHereError, match="no such"):
        each(make, ["unseen"])
    with pytest.raises(NotHereError, match="no such"):
        each(make, ["unseen", "unseen"])
    for several in (["away", "away"], ["unseen", "away"]):
        with pytest.raises(NoneReadError):
            each(make, several)


# What workers say


def gone(row: Any, config: RunConfig) -> Any:
    """Rows whose id begins with "gone" have no source here."""
    from ov2_core.make_sample import ProbeOutcome, SampleOutcome, quarantine_row

    if row.id.startswith("gone"):
        lost = quarantine_row(
            line=row.line, id=row.id, uri=row.uri, reason="source_missing", stage="probe", message=f"no {row.uri}"
        )
        if isinstance(row, ProbeTask):
            return ProbeOutcome(line=row.line, quarantined=lost)
        return SampleOutcome(line=row.line, key=row.key, quarantined=lost)
    return make_probe(row, config) if isinstance(row, ProbeTask) else make_sample(row, config)


def test_jobs_on_a_cluster_ask_elsewhere(clip_folder: Path, tmp_path: Path) -> None:
    """Alone, or where all of several are not seen: NotHereError. Among others: to be tried alone."""
    rows = [{"id": name, "video": str(clip_folder / "clip_0.mp4")} for name in ("here", "gone", "gone-too")]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = recipe("uniform-4")
    here, *lost = enumerate(read_rows(str(manifest)))
    job = ProbeJob(config, str(manifest), gone, ask_elsewhere=True)
    (found, _), _ = job.run((here, *lost))
    assert [one is None for one in found] == [False, True, True]
    for unseen in (lost, lost[:1]):
        with pytest.raises(NotHereError, match="no /"):
            job.run(tuple(unseen))
    (found, _), _ = ProbeJob(config, str(manifest), gone).run(tuple(lost))
    assert [one.reason for one in found if isinstance(one, QuarantineRow)] == ["source_missing"] * 2

    plan = make_probe(
        ProbeTask(line=1, id="here", key="here", uri=rows[0]["video"], row=ManifestRow(video=rows[0]["video"])), config
    ).planned
    assert plan is not None
    planned = tuple(plan.model_copy(update={"id": row["id"], "key": row["id"]}) for row in rows)
    tokenize = TokenizeJob(
        config=config, store=Store(tmp_path), config_digest="", code_version="", make=gone, ask_elsewhere=True
    )
    outcomes, _ = tokenize.run(planned)
    assert isinstance(outcomes, list)
    assert [one is None for one in outcomes] == [False, True, True]
    for several in (planned[1:], planned[1:2]):
        with pytest.raises(NotHereError, match="no /"):
            tokenize.run(several)
    assert not RunOptions().on_cluster
    assert RunOptions(address="head:6379").on_cluster


@pytest.mark.ray
def test_what_a_worker_does_not_see_is_told_with_its_node(local_ray: None) -> None:
    from pipelines import runtime

    class Blind:
        """A job that sees nothing."""

        def warm_up(self) -> None:
            """Nothing."""

        def run(self, payload: str) -> tuple[str, None]:
            from ov2_core.make_sample import NotHereError

            raise NotHereError(f"no {payload}")

    feed = ListFeed([Task("a", "a.mp4", 0.0)])
    executor = runtime.RayExecutor(Blind())
    scheduler = Scheduler(feed, num_workers=1, deadlines=DeadlinePolicy())
    try:
        drive(executor, scheduler, clock=time.monotonic, on_tick=lambda: None)
    finally:
        executor.close()
    assert feed.verdicts["a"].reason == "source_missing"
    assert feed.verdicts["a"].message == "no a.mp4"
    assert re.fullmatch(r"[\d.]+ \([0-9a-f]{8}\)", scheduler.workers[0].node)


def test_a_node_that_does_not_see_the_run_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.write_bytes("run.json", b"one")
    installation = pickle.loads(pickle.dumps(Installation.here(runs=[store])))
    installation.check()
    for change in (lambda: store.write_bytes("run.json", b"other"), lambda: store.remove("run.json")):
        change()
        with pytest.raises(
            WrongInstallationError, match=r"no sight of the run: .*run/run\.json .* where all nodes see it"
        ):
            installation.check()
