"""Checkpoints: weights, optimizer, random states and cursor of a step, written beside the training and whole or not at all.

    CKPT/checkpoints/step-00000200/   torch's distributed checkpoint (DCP): every rank writes its shards, any number of ranks reads
                     .../state.json   the rest, written last by the first rank: a folder without it is no checkpoint

Enters: a `Trainable` and its optimizer. Leaves: folders. Saving copies to host memory and returns; threads write the files, and
the first rank's puts state.json beside them as soon as all ranks' are on disk. Tensors are named by the model's own names, so a
checkpoint is read whole on one process (export) and on any other number of ranks (resume). Nothing of it is executed when it is
read (checkpoint_reader.py).
"""

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import async_save

from ov2_core.storage.failpoint import failpoint
from ov2_core.train.checkpoint_reader import causes, fill
from ov2_core.train.distributed import World
from ov2_core.train.run_files import write_json
from ov2_core.train.trainable import PREFIX

log = logging.getLogger(__name__)

FOLDER, STATE = "checkpoints", "state.json"
STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A checkpoint that is whole."""

    path: Path
    step: int
    state: dict[str, Any]
    """What the trainer gave to `save`."""


def find_checkpoints(run: Path) -> list[Found]:
    """Whole checkpoints of a run, oldest first."""
    found = []
    for path in sorted((run / FOLDER).glob("step-*")):
        try:
            state = json.loads((path / STATE).read_bytes())
        except FileNotFoundError:
            continue
        found.append(Found(path=path, step=int(state["step"]), state=state))
    return sorted(found, key=lambda one: one.step)


def find_checkpoint(run: Path, *, step: int | None = None, best: bool = False) -> Found:
    """The newest, that of a step, or that of the lowest validation loss.

    Raises:
        ValueError: there is none; the steps that there are are told.
    """
    found = find_checkpoints(run)
    if best:
        scored = best_of(found)
        if scored is None:
            raise ValueError(f"no checkpoint of {run} has a validation loss; train with eval_every and held_out_packs")
        return scored
    wanted = [one for one in found if step is None or one.step == step]
    if not wanted:
        there = ", ".join(str(one.step) for one in found) or "none"
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"{run} holds {what}; steps there: {there}")
    return wanted[-1]


def best_of(found: Sequence[Found]) -> Found | None:
    """The one of the lowest validation loss, the earliest of equals; None where none was validated."""
    scored = [one for one in found if one.state.get("validation_loss") is not None]
    return min(scored, key=lambda one: (one.state["validation_loss"], one.step), default=None)


class Checkpointer:
    """Saves and restores the checkpoints of one run, on all ranks."""

    def __init__(self, run: Path, world: World, *, keep_last: int) -> None:
        self.run, self.world, self.keep_last = run, world, keep_last
        self._committed: Future[None] | None = None
        # The writing threads' collectives must not mix with the training's.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._clear()

    def save(self, trainable: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Copies everything and starts writing the checkpoint of state["step"]; one that stands already is left as it is.

        Args:
            state: JSON; equal on all ranks.

        Raises:
            RuntimeError: the last one could not be written.
        """
        self.wait()
        path = self.run / FOLDER / f"step-{state['step']:08d}"
        if (path / STATE).exists():
            return
        path.mkdir(parents=True, exist_ok=True)
        tensors = {**_tensors(trainable, optimizer), **_random_states(self.world)}
        writing: Any = async_save(tensors, checkpoint_id=str(path), process_group=self._group)
        written: Future[Any] = getattr(writing, "upload_completion", writing)
        committed = self._committed = Future[None]()
        state = {"version": STATE_VERSION, **state}
        written.add_done_callback(lambda done: self._commit(done, committed, path, state))

    def wait(self) -> None:
        """Until nothing is being written, on all ranks.

        Raises:
            RuntimeError: it cannot be written.
        """
        if self._committed is None:
            return
        committed, self._committed = self._committed, None
        committed.result()
        self.world.barrier()

    def restore(self, found: Found, trainable: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Weights, optimizer and, where the world is as large as it was, random states of a checkpoint, in place."""
        _make_moments(optimizer)
        tensors = _tensors(trainable, optimizer)
        random = _random_states(self.world) if found.state["world_size"] == self.world.size else {}
        fill({**tensors, **random}, found.path)
        _set_random_states(random, self.world)

    def _commit(self, written: Future[Any], committed: Future[None], path: Path, state: dict[str, Any]) -> None:
        """In the writing thread: all ranks' files are on disk when the first rank's save is done."""
        try:
            written.result()
            if self.world.is_first:
                failpoint("train_before_commit")
                write_json(path / STATE, state)
                self._remove_old()
            committed.set_result(None)
        except BaseException as error:
            failed = RuntimeError(f"the checkpoint {path} cannot be written: {causes(error)}")
            log.error("%s; training ends at the next one", failed)
            failed.__cause__ = error
            committed.set_exception(failed)

    def _clear(self) -> None:
        """Removes what a kill left unfinished."""
        if self.world.is_first:
            for path in (self.run / FOLDER).glob("step-*"):
                if not (path / STATE).exists():
                    shutil.rmtree(path)
        self.world.barrier()

    def _remove_old(self) -> None:
        found = find_checkpoints(self.run)
        best = best_of(found)
        for one in found[: -self.keep_last]:
            if best is None or one.step != best.step:
                (one.path / STATE).unlink()  # first it ceases to be a checkpoint
                shutil.rmtree(one.path)


def _tensors(trainable: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that a step changes, by name; views of the live tensors."""
    tensors: dict[str, Tensor] = {
        f"weights.{name.removeprefix(PREFIX)}": tensor for name, tensor in trainable.state_dict().items()
    }
    names: dict[Tensor, str] = {
        parameter: name.removeprefix(PREFIX) for name, parameter in trainable.named_parameters()
    }
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{key}.{names[parameter]}"] = value
    return tensors


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's state as its first step makes it, to be filled."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            on_device = parameter.device if group.get("fused") else torch.device("cpu")
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=on_device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def _random_states(world: World) -> dict[str, Tensor]:
    states = {f"random.cpu.{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        states[f"random.cuda.{world.rank}"] = torch.cuda.get_rng_state(world.device)
    return states


def _set_random_states(states: dict[str, Tensor], world: World) -> None:
    for name, state in states.items():
        if name.startswith("random.cpu."):
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, world.device)
