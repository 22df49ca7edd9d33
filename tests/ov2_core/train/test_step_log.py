"""What a run logs: lines that a resume cuts back, and event files that show each step once."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ov2_core.train.metrics import METRICS, StepLog, cut_back, read_lines


def log_steps(folder: Path, first: int, last: int, *, loss: float) -> None:
    log = StepLog(folder, active=True, first_step=first)
    for step in range(first, last + 1):
        log.step({"step": step, "loss": loss, "loss_by_source": {"a": loss}}, text="")
    log.close()


def test_a_resume_shows_each_step_once(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 6, loss=1.0)
    cut_back(tmp_path, 4)  # killed after step 6, the last checkpoint was of step 4
    log_steps(tmp_path, 5, 7, loss=2.0)
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path / METRICS)] == [
        *((step, 1.0) for step in range(1, 5)),
        *((step, 2.0) for step in range(5, 8)),
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("train/loss", "train/loss_by_source/a"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            *((step, 1.0) for step in range(1, 5)),
            *((step, 2.0) for step in range(5, 8)),
        ]


def test_a_torn_last_line_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    cut_back(tmp_path, 9)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    log = StepLog(tmp_path, active=True)
    log.step({"step": 1, "loss": float("nan"), "by": {"a": float("inf")}}, text="")
    log.close()
    assert json.loads((tmp_path / METRICS).read_text()) == {"step": 1, "loss": None, "by": {"a": None}}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "run", active=False)
    log.step({"step": 1, "loss": 1.0}, text="")
    log.line("lineage.jsonl", {"step": 1})
    log.close()
    assert not (tmp_path / "run").exists()
