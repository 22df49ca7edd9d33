"""Checkpoints: weights, optimizer, random states and cursor of a step, written beside the training and whole or not at all.

    CKPT/checkpoints/step-00000200/   torch's distributed checkpoint (DCP): every rank writes its shards, any number of ranks reads
                     .../state.json   the rest, written last by the first rank: a folder without it is no checkpoint

Enters: a `Trainable` and its optimizer. Leaves: folders. Saving copies to host memory and returns; files are written by a thread,
and the next save, or `wait`, finishes it. Tensors are named by the model's own names, so a checkpoint is read whole on one process
(export) and on any other number of ranks (resume). Nothing in it is code: it is read with DCP's planner and JSON alone.
"""

import json
import logging
import os
import shutil
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from ov2_core.train.distributed import World
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


def find_checkpoint(run: Path, step: int | None = None) -> Found:
    """The newest, or that of a step.

    Raises:
        ValueError: there is none; the steps that there are are told.
    """
    found = find_checkpoints(run)
    wanted = [one for one in found if step is None or one.step == step]
    if not wanted:
        there = ", ".join(str(one.step) for one in found) or "none"
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"{run} holds {what}; steps there: {there}")
    return wanted[-1]


class Checkpointer:
    """Saves and restores the checkpoints of one run, on all ranks."""

    def __init__(self, run: Path, world: World, *, keep_last: int) -> None:
        self.run, self.world, self.keep_last = run, world, keep_last
        self._writing: tuple[Any, Path, dict[str, Any]] | None = None
        # The writing thread's collectives must not mix with the training's.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._clear()

    def save(self, trainable: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Starts writing the checkpoint of state["step"]; a step that stands already is left as it is.

        Args:
            state: JSON; equal on all ranks.
        """
        self.wait()
        path = self.run / FOLDER / f"step-{state['step']:08d}"
        if (path / STATE).exists():
            return
        path.mkdir(parents=True, exist_ok=True)
        tensors = {**_tensors(trainable, optimizer), **_random_states(self.world)}
        writing = async_save(tensors, checkpoint_id=str(path), process_group=self._group)
        self._writing = (writing, path, {"version": STATE_VERSION, **state})

    def wait(self) -> None:
        """Finishes what is being written.

        Raises:
            OSError, RuntimeError: it cannot be written.
        """
        if self._writing is None:
            return
        writing, path, state = self._writing
        self._writing = None
        future: Future[Any] = getattr(writing, "upload_completion", writing)
        future.result()
        self.world.barrier()
        if self.world.is_first:
            part = path / (STATE + ".part")
            with part.open("w") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path / STATE)
            self._remove_old()
        self.world.barrier()

    def restore(self, found: Found, trainable: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Weights, optimizer and, where the world is as large as it was, random states of a checkpoint, in place."""
        _make_moments(optimizer)
        tensors = _tensors(trainable, optimizer)
        random = _random_states(self.world) if found.state["world_size"] == self.world.size else {}
        load({**tensors, **random}, checkpoint_id=str(found.path))
        _set_random_states(random, self.world)

    def _clear(self) -> None:
        """Removes what a kill left unfinished."""
        if self.world.is_first:
            for path in (self.run / FOLDER).glob("step-*"):
                if not (path / STATE).exists():
                    shutil.rmtree(path)
        self.world.barrier()

    def _remove_old(self) -> None:
        found = find_checkpoints(self.run)
        scored = [one for one in found if one.state.get("validation_loss") is not None]
        best = min(scored, key=lambda one: (one.state["validation_loss"], one.step), default=None)
        for one in found[: -self.keep_last]:
            if best is None or one.step != best.step:
                (one.path / STATE).unlink()  # first it ceases to be a checkpoint
                shutil.rmtree(one.path)


def read_weights(found: Found, model: nn.Module) -> None:
    """The weights of a checkpoint into a whole model of the same shape, on one process."""
    tensors = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    load(tensors, checkpoint_id=str(found.path), no_dist=True)


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
