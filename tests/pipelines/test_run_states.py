"""Hypothesis steers several commands at one run, operation by operation: kills, retries, duplicate attempts, late writers and
sources that change. Nothing may be lost or doubled, the sum balances, and bytes are those of an undisturbed run.

A command is the real `tokenize_videos` without Ray, on a thread that stops before every storage operation and at every
failpoint, and goes on when it is told to. One that is never told to go on again is a process that was killed (nothing of its
is cleaned up); one that is told so much later is a late writer. Nobody, least of all the run, can tell the two apart.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from PIL import Image
from steered_commands import Command, pausing

from ov2_core.config import recipe, with_overrides
from ov2_core.make_sample import make_sample
from ov2_core.plan import iter_plan_quarantine, iter_plan_rows, stray_plan_files
from ov2_core.storage import commit
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run
from ov2_core.storage.writer import Member, write_tar
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos

CONFIG = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2", "area_px": "12544"})
NUM_SOURCES, NUM_VERSIONS, MAX_COMMANDS = 5, 3, 4
SETTLE_AFTER = 12
"""Advances: a run that is whole is no longer disturbed by anything."""
PLACES = (
    *("before_plan", "mid_plan", "before_upload", "after_upload", "before_commit", "after_commit", "before_publish"),
    *(
        "after_publish",
        "before_cleanup",
        "before_index",
        "mid_index",
        "put_file",
        "create_bytes",
        "mid_write",
        "write_bytes",
        "publish",
    ),
)
"""Operations and failpoints to which a command is brought by name."""


class Sources:
    """Stills of several versions, and the members that each version's sample has; one for the whole module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "manifest.jsonl"
        rows = [{"image": str(self._path(i)), "id": f"s{i}", "caption": f"Still {i}."} for i in range(NUM_SOURCES)]
        rows.insert(2, {"image": str(folder / "nowhere.png"), "id": "gone"})
        self.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.members: dict[tuple[str, str], list[Member]] = {}
        """{(id, identity): members}."""
        for version in range(NUM_VERSIONS):
            self.reset(version)
            store = Store(folder / f"plan-{version}")
            tokenize_videos(str(self.manifest), store, CONFIG, RunOptions(workers=0, progress="off"))
            for row in iter_plan_rows(store):
                made = make_sample(row, CONFIG).members
                assert made is not None
                self.members[row.id, repr(row.identity)] = list(made)
        assert len(self.members) == NUM_SOURCES * NUM_VERSIONS, "versions must differ in their identity"

    def reset(self, version: int = 0) -> None:
        for number in range(NUM_SOURCES):
            self.write(number, version)

    def write(self, number: int, version: int) -> None:
        """A still whose bytes and time stamp follow from number and version alone."""
        rng = np.random.default_rng([number, version])
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(self._path(number))
        os.utime(self._path(number), ns=(10**18, 10**18 + version))

    def _path(self, number: int) -> Path:
        return self.folder / f"still-{number}.png"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


class RunMachine(RuleBasedStateMachine):
    """Several commands at one run."""

    sources: Sources
    num_steps = 0
    num_settled = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="ov2-states-")
        self.num_runs = 0
        self.commands: list[Command] = []
        self.killed: list[Command] = []
        self.begin_run()
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(pausing())

    def begin_run(self) -> None:
        self.num_runs += 1
        self.run = Path(self.folder) / f"run-{self.num_runs}"
        self.changed: set[str] = set()
        self.seen: set[tuple[str, int, int]] = set()
        self.num_advances = 0
        self.sources.reset()

    @property
    def tokenize(self) -> Callable[[], object]:
        run = self.run
        return lambda: tokenize_videos(
            str(self.sources.manifest), Store(run), CONFIG, RunOptions(workers=0, progress="off")
        )

    @precondition(lambda self: len(self.commands) < MAX_COMMANDS)
    @rule()
    def begin(self) -> None:
        """A first attempt, a retry, or a duplicate."""
        self.commands.append(Command(self.tokenize))

    @precondition(lambda self: self.commands)
    @rule(which=st.integers(0, MAX_COMMANDS - 1), count=st.integers(1, 60))
    def advance(self, which: int, count: int) -> None:
        command = self.commands[which % len(self.commands)]
        command.advance(count)
        self.num_advances += 1
        self.put_away(command)

    @precondition(lambda self: self.commands)
    @rule(which=st.integers(0, MAX_COMMANDS - 1), place=st.sampled_from(PLACES))
    def advance_to(self, which: int, place: str) -> None:
        """To where two commands meet most."""
        command = self.commands[which % len(self.commands)]
        command.advance(100, place)
        self.num_advances += 1
        self.put_away(command)

    @precondition(lambda self: self.commands)
    @rule(which=st.integers(0, MAX_COMMANDS - 1))
    def kill(self, which: int) -> None:
        self.killed.append(self.commands.pop(which % len(self.commands)))

    @rule(number=st.integers(0, NUM_SOURCES - 1), version=st.integers(0, NUM_VERSIONS - 1))
    def change_source(self, number: int, version: int) -> None:
        self.sources.write(number, version)
        self.changed.add(f"s{number}")

    @precondition(lambda self: self.num_advances >= SETTLE_AFTER)
    @rule()
    def settle(self) -> None:
        """The command is given again and runs to its end, whoever else has stopped wherever; so is it once more when those who were
        not killed have come back as late writers. The next rule begins another run."""
        for _ in range(2):
            command = Command(self.tokenize)
            command.advance(10**6)
            assert command.error is None, repr(command.error)
            self.check_whole()
            while self.commands:
                self.commands[0].advance(10**6)
                self.put_away(self.commands[0])
        type(self).num_settled += 1
        self.begin_run()

    @invariant()
    def glob_shows_whole_committed_shards_alone(self) -> None:
        type(self).num_steps += 1
        for path in (self.run / "shards").glob("[!.]*"):
            stat = path.stat()
            version = (path.name, stat.st_ino, stat.st_mtime_ns)
            if version in self.seen:
                continue
            self.seen.add(version)
            record = commit.load_commit(Store(self.run), int(path.name.partition(".")[0].removeprefix("shard-")))
            if path.suffix == ".tar":
                assert hashlib.sha256(path.read_bytes()).hexdigest() == record.tar_digest
            else:
                assert path.read_bytes() == commit.sidecar_bytes(record)

    def put_away(self, command: Command) -> None:
        """A command that has ended has ended well."""
        if command.ended:
            self.commands.remove(command)
            assert command.error is None, repr(command.error)

    def check_whole(self) -> None:
        store = Store(self.run)
        assert verify_run(store).errors == []
        assert stray_plan_files(store) == []
        planned = {row.line: row for row in iter_plan_rows(store)}
        ends = Counter(row.line for row in iter_plan_quarantine(store))
        for record in iter_commits(store):
            ends.update(row.line for row in (*record.samples, *record.filtered, *record.quarantined))
            for fallen in record.quarantined:
                assert fallen.reason == "source_changed"
                assert fallen.id in self.changed
            rows = [planned[sample.line] for sample in record.samples]
            if rows:
                members = [(row.key, self.sources.members[row.id, repr(row.identity)]) for row in rows]
                expected = write_tar(os.path.join(self.folder, "expected.tar"), members)
                assert expected.digest == record.tar_digest
        assert ends == Counter(range(1, NUM_SOURCES + 2))

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            for command in (*self.commands, *self.killed):
                if not command.ended:
                    command.abandon()
            self.patches.close()
            shutil.rmtree(self.folder, ignore_errors=True)


def run_machine(sources: Sources, *, max_examples: int, num_steps: int, derandomize: bool) -> type[RunMachine]:
    machine = type("Machine", (RunMachine,), {"sources": sources})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=num_steps,
            derandomize=derandomize,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return machine


def test_commands_steered_into_each_other_leave_a_whole_run(sources: Sources) -> None:
    machine = run_machine(sources, max_examples=8, num_steps=20, derandomize=True)
    assert machine.num_settled >= 8


def steered(sources: Sources, steer: Callable[[RunMachine], object]) -> None:
    """A course that random ones meet too seldom."""
    machine = type("Machine", (RunMachine,), {"sources": sources})()
    try:
        steer(machine)
        machine.glob_shows_whole_committed_shards_alone()
    finally:
        machine.teardown()


LATE_AT = (
    *range(2, 9),
    "mid_probe",
    "before_plan",
    "put_file",
    "mid_plan",
    "after_plan",
    "before_commit",
    "before_upload",
)


@pytest.mark.parametrize("place", LATE_AT)
def test_late_command_changes_nothing_though_all_sources_have_changed(sources: Sources, place: str | int) -> None:
    """Had it come to its plan, that one stands; else the plan of those who came after it, though it would have made another.

    place: a name, or so many operations after the beginning, before it plans anything.
    """

    def steer(machine: RunMachine) -> None:
        machine.begin()
        if isinstance(place, int):
            machine.advance(0, place)
        else:
            machine.advance_to(0, place)
        assert machine.commands, "it has not come there"
        for number in range(NUM_SOURCES):
            machine.change_source(number, 1)
        machine.settle()

    steered(sources, steer)


@pytest.mark.parametrize("place", PLACES)
def test_two_commands_at_the_same_place_leave_a_whole_run(sources: Sources, place: str) -> None:
    def steer(machine: RunMachine) -> None:
        for which in range(2):
            machine.begin()
            machine.advance_to(which, place)
        for _ in range(2):
            for which in reversed(range(len(machine.commands))):
                machine.advance(which, 10)
        while machine.commands:
            machine.advance(0, 10**6)

    steered(sources, steer)


@pytest.mark.slow
def test_commands_steered_into_each_other_at_length(sources: Sources) -> None:
    machine = run_machine(sources, max_examples=100, num_steps=40, derandomize=True)
    sys.stderr.write(f"{machine.num_steps} steps, {machine.num_settled} runs\n")
    assert machine.num_steps >= 2000
