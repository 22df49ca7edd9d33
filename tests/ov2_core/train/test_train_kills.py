"""Training as processes that are killed for real: the only one, a rank, the launcher. Resumed, the curve is that of an undisturbed
run, and every pack is read once an epoch."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from train_runs import curve, finish, read_steps, run_as_child, start, train_command

from ov2_core.train.checkpoint import find_checkpoints

PROCESSES = multiprocessing.get_context("forkserver")  # pytest's own process has threads: no fork of it
PROCESSES.set_forkserver_preload(["ov2_core.train.train", "jobs.cli", "jobs.train_command", "peft", "train_runs"])

NUM_STEPS, NUM_PACKS, HELD_OUT, GLOBAL_BATCH = 9, 18, 2, 4
STEPS_PER_EPOCH = (NUM_PACKS - HELD_OUT) // GLOBAL_BATCH
SETTINGS = [f"global_batch={GLOBAL_BATCH}", "save_every=2", f"held_out_packs={HELD_OUT}", "eval_every=3"]
DROPOUT = ["lora.rank=2", "lora.dropout=0.2"]
"""So that a lost random state would show."""


def options(settings: list[str]) -> list[str]:
    return ["--max-steps", str(NUM_STEPS), *(f"--set={setting}" for setting in settings)]


def train_alone(stage: Path, out: Path, settings: list[str], *, failpoint: str = "") -> Any:
    """Begins a training of one process."""
    command = train_command(stage, out, *options(settings), "--resume")
    arguments = command[command.index("jobs.cli") + 1 :]
    child = PROCESSES.Process(
        target=run_as_child, args=(arguments, {"OV2_FAILPOINT": failpoint}, out.with_suffix(".log"))
    )
    child.start()
    return child


def killed(child: Any) -> bool:
    """Waits for its end; True if it was killed, False if it came to its end by itself."""
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return bool(child.exitcode)


def check_files(run: Path) -> None:
    """Each step once in every file, each pack of training once an epoch."""
    for name in ("metrics.jsonl", "lineage.jsonl"):
        assert [line["step"] for line in read_steps(run, name)] == list(range(1, NUM_STEPS + 1)), name
    assert [line["step"] for line in read_steps(run, "validation.jsonl")] == [3, 6, 9]
    for epoch in range(2):
        first = epoch * STEPS_PER_EPOCH
        seen = Counter(
            pack for line in read_steps(run, "lineage.jsonl")[first : first + STEPS_PER_EPOCH] for pack in line["packs"]
        )
        assert len(seen) == NUM_PACKS - HELD_OUT
        assert set(seen.values()) == {1}


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_steps(run, "validation.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(train_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, never killed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert not killed(train_alone(train_stage, out, SETTINGS + DROPOUT)), out.with_suffix(".log").read_text()
    check_files(out)
    return out


def test_a_run_killed_again_and_again_joins_the_undisturbed_one(
    train_stage: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    points = {
        "train_before_checkpoint:1": {0},
        "train_before_step:6": {2, 4},  # the next save has waited for the first
        "train_after_checkpoint:2": {4, 6, 8},  # killed while the second is written
        "train_before_commit:1": {4, 6, 8},
    }
    for point, left in points.items():
        assert killed(train_alone(train_stage, out, SETTINGS + DROPOUT, failpoint=point)), point
        assert max((one.step for one in find_checkpoints(out)), default=0) in left, point
    assert not killed(train_alone(train_stage, out, SETTINGS + DROPOUT))
    assert curve(out) == curve(undisturbed)
    assert losses(out) == losses(undisturbed)
    check_files(out)
    assert [one.step for one in find_checkpoints(out)][-2:] == [8, 9]


def test_a_run_killed_at_random_moments_joins_the_undisturbed_one(
    train_stage: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, chance = tmp_path / "run", random.Random(5)
    for _ in range(2):
        child = train_alone(train_stage, out, SETTINGS + DROPOUT)
        wait_for_step(out, len(read_steps(out, "metrics.jsonl")) + 1)
        time.sleep(chance.uniform(0, 1.5))
        child.kill()
        child.join(30)
    assert not killed(train_alone(train_stage, out, SETTINGS + DROPOUT))
    assert curve(out) == curve(undisturbed)
    assert losses(out) == losses(undisturbed)
    check_files(out)


def wait_for_step(run: Path, step: int) -> None:
    """Until it stands in metrics.jsonl, which may be torn while it is written."""

    def there() -> bool:
        path = run / "metrics.jsonl"
        return path.exists() and path.read_bytes().count(b"\n") >= step

    wait_for(there)


def wait_for(condition: Callable[[], bool], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.02)


def children_of(process: int) -> list[int]:
    """Process ids, at once and of those."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children_of(int(child))]
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_two_ranks_survive_the_death_of_a_rank_and_of_the_launcher(train_stage: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    log = tmp_path / "log"
    assert finish(train_command(train_stage, whole, *options(SETTINGS), ranks=2), log) == 0, log.read_text()[-3000:]
    check_files(whole)

    command = train_command(train_stage, out, *options(SETTINGS), ranks=2, max_restarts=1)
    marker = tmp_path / "a-rank-is-dead"
    launcher = start(command, log, failpoint="train_before_step:4", marker=marker)
    try:
        wait_for(marker.exists)
        wait_for_step(out, 5)
        ranks = children_of(launcher.pid)
        assert len(ranks) >= 2
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait(10)
        wait_for(lambda: not any(is_running(rank) for rank in ranks), seconds=10)  # none goes on writing
    finally:
        launcher.kill()
        launcher.wait()
    assert len(read_steps(out, "metrics.jsonl")) < NUM_STEPS
    shutil.copytree(out, tmp_path / "on-one")

    resumed = [*train_command(train_stage, out, *options(SETTINGS), ranks=2), "--resume"]
    assert finish(resumed, log) == 0, log.read_text()[-3000:]
    assert curve(out) == curve(whole)
    assert losses(out) == losses(whole)
    check_files(out)

    assert not killed(train_alone(train_stage, tmp_path / "on-one", SETTINGS))
    check_files(tmp_path / "on-one")
    for (step, loss, norm), (_, wanted_loss, wanted_norm) in zip(curve(tmp_path / "on-one"), curve(whole), strict=True):
        assert abs(loss - wanted_loss) < 1e-4, step
        assert abs(norm - wanted_norm) < 1e-3 * wanted_norm, step
