"""Parts of the model, their parameters, and AdamW over them with a learning rate for each part.

Enters: a model and a config. Leaves: what is trained and what is frozen, an optimizer, and the learning rates of any step, which
are a function of the step alone, so that nothing of the schedule needs to be saved.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import nn

from ov2_core.train.config import PartConfig, TrainConfig

Part = Literal["visual", "connector", "language"]
PARTS: tuple[Part, ...] = get_args(Part)


def part_of(name: str) -> Part:
    """The part that a parameter of the full model belongs to, by its name."""
    if ".visual.merger." in name:
        return "connector"
    return "visual" if ".visual." in name else "language"


def part_config(config: TrainConfig, part: Part) -> PartConfig:
    found: PartConfig = getattr(config, part)
    return found


def freeze(model: nn.Module, config: TrainConfig) -> None:
    """Leaves gradients to the parts that are trained; with LoRA, of the language model to the low-rank updates alone."""
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained = part_config(config, part).train
        if part == "language" and config.lora.rank:
            trained = "lora_" in name
        parameter.requires_grad_(trained)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; a group for each part with and without weight decay, named `part` and `part-no-decay`."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        decays = parameter.ndim >= 2
        group = part if decays else f"{part}-no-decay"
        made = groups.setdefault(
            group, {"params": [], "part": part, "weight_decay": config.weight_decay if decays else 0.0}
        )
        made["params"].append(parameter)
    fused = next(model.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        [groups[name] for name in sorted(groups)],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=fused or None,
    )


def learning_rate(step: int, part: PartConfig, *, num_steps: int, warmup_share: float) -> float:
    """Of step 0, 1, ...: linear warm-up to `learning_rate`, then a cosine to `min_learning_rate` at the last step, and that
    beyond it."""
    warmup = math.ceil(num_steps * warmup_share)
    if step < warmup:
        return part.learning_rate * (step + 1) / warmup
    if step >= num_steps - 1:
        return part.min_learning_rate if num_steps > 1 else part.learning_rate
    share = (step - warmup) / max(1, num_steps - 1 - warmup)
    low, high = part.min_learning_rate, part.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, *, num_steps: int
) -> dict[Part, float]:
    """Sets every group's rate for a step; the rates of the parts that are trained."""
    rates: dict[Part, float] = {}
    for group in optimizer.param_groups:
        part: Part = group["part"]
        rates[part] = learning_rate(
            step, part_config(config, part), num_steps=num_steps, warmup_share=config.warmup_share
        )
        group["lr"] = rates[part]
    return rates


def trained_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Those that have gradients."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
