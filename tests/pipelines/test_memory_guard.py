"""The memory guard on made-up nodes; on Ray, what a worker says that holds too much or is told to stop."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.memory_guard import MemoryGuard, NodeMemory, node_memory, own_bytes, sibling_bytes

MIB = 1 << 20


def guard(*, available: int, own: int, siblings: list[int]) -> MemoryGuard:
    return MemoryGuard(
        look=lambda: NodeMemory(1000 * MIB, available * MIB),
        own=lambda: own * MIB,
        siblings=lambda: [size * MIB for size in siblings],
    )


def test_the_largest_worker_of_a_short_node_is_stopped_and_no_other() -> None:
    sizes = [300, 500, 40]
    for place, own in enumerate(sizes):
        asked = guard(available=99, own=own, siblings=sizes[:place] + sizes[place + 1 :])
        if own < 500:
            asked.check()
            continue
        with pytest.raises(MemoryError) as caught:
            asked.check()
        assert str(caught.value) == (
            "the worker holds 500 MiB, more than any other on its node, of which 99 of 1000 MiB are left"
        )


def test_nobody_is_stopped_while_there_is_memory_or_where_others_fill_the_node() -> None:
    guard(available=100, own=850, siblings=[10]).check()
    guard(available=5, own=20, siblings=[10]).check()
    dataclasses.replace(guard(available=5, own=850, siblings=[]), look=lambda: None).check()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit_mib", "expected"), [(600, (600, 250)), (2000, (1000, 400)), (None, (1000, 400))], ids=str
)
def test_a_container_has_the_memory_of_its_cgroup(
    tmp_path: Path, version: int, limit_mib: int | None, expected: tuple[int, int]
) -> None:
    """500 MiB used, of which 150 are pages of files that can be dropped."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    folder = cgroup / "memory" if version == 1 else cgroup
    folder.mkdir(parents=True)
    proc.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: {1000 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {400 * 1024} kB\n")
    unlimited = "9223372036854771712" if version == 1 else "max"
    names = (
        ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("max", "current", "inactive_file")
    )
    (folder / f"memory.{names[0]}").write_text(unlimited if limit_mib is None else str(limit_mib * MIB))
    (folder / f"memory.{names[1]}").write_text(str(500 * MIB))
    (folder / "memory.stat").write_text(f"cache 1\n{names[2]} {150 * MIB}\n")
    found = node_memory(proc, cgroup)
    assert found is not None
    assert (found.total // MIB, found.available // MIB) == expected


def test_own_and_sibling_memory_are_read_from_proc() -> None:
    before = own_bytes()
    held = bytearray(os.urandom(1) * (64 * MIB))
    assert 60 * MIB < own_bytes() - before < 80 * MIB
    del held
    sleeper = os.fork()
    if sleeper == 0:
        time.sleep(3600)
    looker = os.fork()
    if looker == 0:
        os._exit(len(sibling_bytes()))
    assert os.waitstatus_to_exitcode(os.waitpid(looker, 0)[1]) >= 1
    os.kill(sleeper, signal.SIGKILL)
    os.waitpid(sleeper, 0)
    assert node_memory(Path("/nowhere")) is None
    assert own_bytes(2**22 + 1) == 0


@pytest.mark.ray
def test_a_hog_is_charged_and_a_worker_told_to_stop_charges_nobody(local_ray: None, tmp_path: Path) -> None:
    from pipelines.drive import drive
    from pipelines.runtime import RayExecutor
    from pipelines.scheduling import Scheduler
    from pipelines.tasks import DeadlinePolicy, Task, Verdict

    class Rogue:
        """A job whose tasks do what their payload says; see runtime.Job."""

        def warm_up(self) -> None:
            """Nothing."""

        def run(self, payload: tuple[str, str]) -> tuple[Any, None]:
            what, marker = payload
            if what == "stopped" and not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(3600)
            if what == "hog":
                held = bytearray(b"x" * (400 * MIB))
                time.sleep(3600)
                del held
            return what, None

    def hungry_node() -> NodeMemory:
        """Short of memory as seen by a worker that holds 300 MiB."""
        return NodeMemory(1000 * MIB, 0 if own_bytes() > 300 * MIB else 1000 * MIB)

    class Feed:
        def __init__(self, names: list[str]) -> None:
            self.tasks = [Task(name, (name, str(tmp_path / name)), 1.0) for name in names]
            self.num_left = len(names)
            self.made: dict[str, int] = {}
            self.verdicts: dict[str, Verdict] = {}

        @property
        def finished(self) -> bool:
            return self.num_left == 0

        def pull(self) -> Task | None:
            return self.tasks.pop(0) if self.tasks else None

        def done(self, task: Task, info: Any, payload: Any) -> None:
            self.made[info] = task.failures
            self.num_left -= 1

        def condemned(self, task: Task, verdict: Verdict) -> None:
            self.verdicts[task.name] = verdict
            self.num_left -= 1

    feed = Feed(["a", "stopped", "hog", "b", "c"])
    executor = RayExecutor(Rogue(), guard=MemoryGuard(look=hungry_node, siblings=list))
    scheduler = Scheduler(feed, num_workers=2, deadlines=DeadlinePolicy(base_seconds=120.0))
    try:
        drive(executor, scheduler, clock=time.monotonic, on_tick=lambda: None)
    finally:
        executor.close()
    assert feed.made == dict.fromkeys(("a", "b", "c", "stopped"), 0)
    assert [(name, verdict.reason, verdict.attempts) for name, verdict in feed.verdicts.items()] == [
        ("hog", "out_of_memory", 3)
    ]
    assert "MiB, more than any other on its node" in feed.verdicts["hog"].message
