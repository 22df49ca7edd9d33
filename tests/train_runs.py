"""Training runs as processes, for tests that kill them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def train_command(stage: Path, out: Path, *options: str, ranks: int = 1, max_restarts: int = 0) -> list[str]:
    """`ov2 train` of `tiny` on one process, or on several under torchrun."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        launcher += ["--max-restarts", str(max_restarts)]
    where = ["--stage", str(stage), "--recipe", "stage1", "--init", "tiny", "--out", str(out), "--device", "cpu"]
    return [*launcher, "-m", "jobs.cli", "train", *where, "--loader-workers", "1", *options]


def start(command: list[str], log: Path, *, failpoint: str | None = None, marker: Path | None = None) -> Any:
    """Begins a command; its output goes to `log`. With a failpoint, the first process that gets there is killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("OV2_FAILPOINT", None)
    if failpoint is not None:
        environment["OV2_FAILPOINT"] = failpoint
    if marker is not None:
        environment["OV2_FAILPOINT_MARKER"] = str(marker)
    with log.open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)


def finish(command: list[str], log: Path, *, timeout_seconds: float = 120, **options: Any) -> int:
    """Exit status of a command that has run to its end."""
    process = start(command, log, **options)
    try:
        return int(process.wait(timeout_seconds))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def read_steps(run: Path, name: str) -> list[dict[str, Any]]:
    """Lines of a file of steps."""
    path = run / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every step."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_steps(run, "metrics.jsonl")]


def run_as_child(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Entry of a forkserver's child, which has torch in memory already: an `ov2` command."""
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    from jobs.cli import main

    torch.set_num_threads(1)
    sys.argv = ["ov2", *arguments]
    main()
