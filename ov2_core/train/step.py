"""One step: gradients of all micro-batches of all ranks, summed and divided by the targets of the step; guarded; applied.

Enters: micro-batches of this rank. Leaves: `StepResult`, equal on all ranks. A loss is the mean over the scored tokens of the whole
step, so it does not depend on how packs are spread over ranks and micro-batches. A step whose loss or gradient is not finite, or
whose gradient is a spike, changes nothing and names its packs.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ov2_core.data.packed_batch import INPUT_KINDS
from ov2_core.train.config import GuardConfig
from ov2_core.train.distributed import World
from ov2_core.train.optimizer import trained_parameters
from ov2_core.train.pack_inputs import PackInputs, Sample
from ov2_core.train.trainable import Trainable

HISTORY_STEPS, LEAST_HISTORY = 64, 16
NAMED_SAMPLES = 8
"""Of a bad step, in the error's text; all stand in bad_steps.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """What the guard has found."""

    reason: str
    is_spike: bool
    """Else something is not finite."""
    samples: tuple[tuple[float, Sample], ...]
    """(mean loss, sample) of all ranks, the worst first."""

    def text(self) -> str:
        """The packs at fault and their worst samples; where no loss tells which are, all packs of the step, the worst first."""
        told = [(loss, sample) for loss, sample in self.samples if not math.isfinite(loss)] or self.samples
        packs = ", ".join(dict.fromkeys(sample.pack for _, sample in told))
        worst = "; ".join(
            f"{sample.source} {sample.id!r} of {sample.pack} (loss {loss:.4g})" for loss, sample in told[:NAMED_SAMPLES]
        )
        return f"{self.reason}; packs {packs}; samples, the worst first: {worst}"


class BadStepError(ValueError):
    """A step that the guard does not let pass; the message names packs and samples, `bad` holds them all."""

    def __init__(self, message: str, bad: BadStep) -> None:
        super().__init__(message)
        self.bad = bad


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Equal on all ranks."""

    loss: float
    """Mean over the step's scored tokens."""
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    num_targets: int
    num_patches: int
    num_packs: int
    loss_by_source: dict[str, float]
    loss_by_input: dict[str, float]
    bad: BadStep | None
    """Then nothing was applied."""


@dataclass(slots=True)
class Guard:
    """Remembers gradient norms; the same on all ranks."""

    config: GuardConfig
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_STEPS))
    num_in_a_row: int = 0

    def not_finite(self, loss: float, grad_norm: float) -> str | None:
        """What is not finite; None where all is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        return None if math.isfinite(grad_norm) else f"the gradient norm is {grad_norm}"

    def spike(self, grad_norm: float) -> str | None:
        """Why a gradient is far above the usual; None where it is not, or too few steps tell what is usual."""
        if self.config.spike_ratio and len(self.norms) >= LEAST_HISTORY:
            usual = statistics.median(self.norms)
            if grad_norm > self.config.spike_ratio * usual:
                return (
                    f"the gradient norm {grad_norm:.4g} is above {self.config.spike_ratio:g} x its median {usual:.4g}"
                )
        return None

    def note(self, grad_norm: float, bad: BadStep | None) -> None:
        """Takes a step into account.

        Raises:
            BadStepError: by config: at once, or after too many in a row.
        """
        if bad is None:
            self.norms.append(grad_norm)
            self.num_in_a_row = 0
            return
        self.num_in_a_row += 1
        name = "on_spike" if bad.is_spike else "on_not_finite"
        if getattr(self.config, name) == "stop":
            raise BadStepError(
                f"{bad.text()}; look at them, then resume with --set guard.{name}=skip to leave them out", bad
            )
        if self.num_in_a_row >= self.config.max_in_a_row:
            raise BadStepError(
                f"{self.num_in_a_row} bad steps in a row (guard.max_in_a_row); the last: {bad.text()}; train on from an "
                "export of the last checkpoint with lower learning rates",
                bad,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "num_in_a_row": self.num_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms.clear()
        self.norms.extend(state["norms"])
        self.num_in_a_row = int(state["num_in_a_row"])


def run_step(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[PackInputs],
    *,
    world: World,
    guard: Guard,
    sources: Sequence[str],
    clip_norm: float,
    num_packs: int,
) -> StepResult:
    """Forward, backward and update.

    Args:
        micro_batches: of this rank, on any device; their number is equal on all ranks.
        sources: names that losses are told apart by, in the same order on all ranks.
        num_packs: of all ranks.

    Raises:
        BadStepError: see Guard.
    """
    sums = [0.0, 0.0, 0.0]
    for inputs in micro_batches:
        sums[0] += inputs.num_targets
        sums[1] += inputs.num_tokens if inputs.samples else 0
        sums[2] += inputs.num_patches
    num_targets, num_tokens, num_patches = (int(value) for value in world.sum(sums))
    sharded = any(isinstance(parameter, DTensor) for parameter in trainable.parameters())
    row_weight = (world.data_size if sharded else 1) / max(num_targets, 1)  # shards average over ranks
    sample_losses = [
        backward(trainable, inputs.to(world.device, non_blocking=True), row_weight) for inputs in micro_batches
    ]
    trainable.finish_gradients()
    for parameter in trained_parameters(trainable):
        if (
            parameter.grad is None
        ):  # a step without pictures decays the encoder's moments as any other, on any number of ranks
            parameter.grad = torch.zeros_like(parameter)
    grad_norm = clip_gradient(trainable, clip_norm)
    local = [
        (float(total), int(count), sample)
        for inputs, totals in zip(micro_batches, sample_losses, strict=True)
        for (total, count), sample in zip(totals.tolist(), inputs.samples, strict=True)
    ]
    loss, by_source, by_input = _means(local, sources, world)
    broken = guard.not_finite(loss, grad_norm)
    reason = broken or guard.spike(grad_norm)
    bad = None
    if reason is not None:
        bad = BadStep(reason=reason, is_spike=broken is None, samples=_worst_first(world.gather(local)))
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    guard.note(grad_norm, bad)
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        num_tokens=num_tokens,
        num_targets=num_targets,
        num_patches=num_patches,
        num_packs=num_packs,
        loss_by_source=by_source,
        loss_by_input=by_input,
        bad=bad,
    )


def backward(trainable: Trainable, inputs: PackInputs, row_weight: float) -> Tensor:
    """Adds the gradient of a micro-batch; (sum of losses, targets) of each sample, [samples, 2] on its device, float32."""
    loss, losses_R = trainable(inputs, row_weight)
    if loss.requires_grad:  # text says nothing to a connector that is trained alone
        loss.backward()
    return sample_sums(inputs, losses_R)


def sample_sums(inputs: PackInputs, losses_R: Tensor) -> Tensor:
    """(sum of losses, targets) of each sample, float64 [samples, 2]."""
    sums = torch.zeros(len(inputs.samples), 2, dtype=torch.float64, device=losses_R.device)
    pairs = torch.stack([losses_R.double(), torch.ones_like(losses_R, dtype=torch.float64)], 1)
    return sums.index_add_(0, inputs.target_samples, pairs)


def clip_gradient(model: nn.Module, clip_norm: float) -> float:
    """Scales the gradient to at most clip_norm (0: as it is); its norm before that, over all ranks."""
    gradients = [parameter.grad for parameter in trained_parameters(model) if parameter.grad is not None]
    meshes: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        meshes.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(group) for group in meshes.values()]
    total = math.hypot(*(float(n.full_tensor() if isinstance(n, DTensor) else n) for n in norms))
    if clip_norm > 0 and total > clip_norm:  # not finite: the guard will see to it
        torch._foreach_mul_(gradients, clip_norm / (total + 1e-6))
    return total


def _means(
    local: Sequence[tuple[float, int, Sample]], sources: Sequence[str], world: World
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Mean loss over all ranks: of all, of each source, of each kind of input."""
    names = ["", *(f"source {name}" for name in sources), *(f"input {kind}" for kind in INPUT_KINDS)]
    place = {name: i for i, name in enumerate(names)}
    sums = [0.0] * (2 * len(names))
    for total, count, sample in local:
        for name in ("", f"source {sample.source}", f"input {sample.input_kind}"):
            if name in place:
                sums[2 * place[name]] += total
                sums[2 * place[name] + 1] += count
    summed = world.sum(sums)
    means = {name: summed[2 * i] / summed[2 * i + 1] for i, name in enumerate(names) if summed[2 * i + 1]}
    return (
        means.get("", 0.0),
        {name.removeprefix("source "): mean for name, mean in means.items() if name.startswith("source ")},
        {name.removeprefix("input "): mean for name, mean in means.items() if name.startswith("input ")},
    )


def _worst_first(gathered: Sequence[Sequence[tuple[float, int, Sample]]]) -> tuple[tuple[float, Sample], ...]:
    means = [(total / max(count, 1), sample) for local in gathered for total, count, sample in local]
    return tuple(sorted(means, key=lambda found: -found[0] if math.isfinite(found[0]) else -math.inf))
