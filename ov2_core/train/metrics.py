"""What a run says of each step: a line of metrics.jsonl, a line of the log, scalars for TensorBoard and, if asked, for wandb.

Enters: dicts of numbers. Leaves: files below the run's folder. A resume cuts them back to its checkpoint, so that each step stands
there once, whatever was killed.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

METRICS, VALIDATION, BAD_STEPS, LINEAGE = "metrics.jsonl", "validation.jsonl", "bad_steps.jsonl", "lineage.jsonl"
STEP_FILES = (METRICS, VALIDATION, BAD_STEPS, LINEAGE)
"""JSON lines with a `step` each."""


def append_line(path: Path, fields: Mapping[str, Any]) -> None:
    """One JSON line, flushed. Numbers that JSON does not know become null."""
    with path.open("a") as file:
        file.write(json.dumps({name: _plain(value) for name, value in fields.items()}, allow_nan=False) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; a torn last one, which a kill left, is no line."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def cut_back(folder: Path, step: int) -> None:
    """Leaves the lines of steps up to `step` in all files of steps; each is replaced whole."""
    for name in STEP_FILES:
        path = folder / name
        if not path.exists():
            continue
        kept = [fields for fields in read_lines(path) if fields["step"] <= step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(fields) + "\n" for fields in kept))
        os.replace(part, path)


class StepLog:
    """The first rank's records of steps; on other ranks it does nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        first_step: int = 1,
        wandb_project: str | None = None,
        run_name: str = "",
    ) -> None:
        """
        Args:
            first_step: that will be logged; TensorBoard shows none of this or later steps that stand there already.
            wandb_project: also log there; its package must be installed.

        Raises:
            ValueError: Weights & Biases is asked for and not installed.
        """
        self.folder, self.active = folder, active
        self._board: Any = None
        self._wandb: Any = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._board = _tensorboard(folder / "tensorboard", first_step=first_step)
        if wandb_project is not None:
            try:
                import wandb
            except ImportError as error:
                raise ValueError("--wandb needs its package: pip install wandb") from error
            self._wandb = wandb.init(project=wandb_project, name=run_name or folder.name, dir=str(folder))

    def step(self, fields: Mapping[str, Any], *, text: str) -> None:
        """One training step."""
        self._write(METRICS, fields, prefix="train")
        if self.active:
            log.info("%s", text)

    def validation(self, fields: Mapping[str, Any]) -> None:
        """One validation."""
        self._write(VALIDATION, fields, prefix="validation")
        if self.active:
            log.info("step %d: validation loss %.4f", fields["step"], fields["loss"])

    def line(self, name: str, fields: Mapping[str, Any]) -> None:
        """A line of another file of steps."""
        if self.active:
            append_line(self.folder / name, fields)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, name: str, fields: Mapping[str, Any], *, prefix: str) -> None:
        if not self.active:
            return
        append_line(self.folder / name, fields)
        scalars = {f"{prefix}/{key}": value for key, value in _scalars(fields) if key != "step"}
        if self._board is not None:
            for key, value in scalars.items():
                self._board.add_scalar(key, value, fields["step"])
        if self._wandb is not None:
            self._wandb.log(scalars, step=fields["step"])


def _scalars(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard(folder: Path, *, first_step: int) -> Any:
    """A writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no tensorboard here, so no event files: pip install 'ov2-pipeline[train]'")
        return None
    return SummaryWriter(str(folder), purge_step=first_step)  # hides what a kill has left beyond the checkpoint
