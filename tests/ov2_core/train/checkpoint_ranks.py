"""A small model that processes share, and a process that saves and restores it: `checkpoint_ranks.py FOLDER`.

Saves to FOLDER/two, restores it into another model, and restores FOLDER/one. FOLDER/report.json gets what each rank saw, whole.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ov2_core.train.checkpoint import Checkpointer, find_checkpoint
from ov2_core.train.distributed import joined


class Net(nn.Module):
    """Rows that two ranks share unevenly, a vector, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 2))
        self.model[1].requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.model(rows)


def make(*, seed: int, shard: bool) -> tuple[Net, torch.optim.AdamW]:
    torch.manual_seed(seed)
    net = Net()
    if shard:
        for layer in net.model:
            fully_shard(layer)
        fully_shard(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    return net, optimizer


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net(torch.linspace(-1, 1, 24).view(4, 6)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def contents(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[float]]:
    """Weights and moments, whole, by name."""
    found = {name: whole(tensor) for name, tensor in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key} {name}"] = whole(value)
    return {name: tensor.flatten().tolist() for name, tensor in found.items()}


def main(folder: Path) -> None:
    with joined("cpu") as world:
        net, optimizer = make(seed=3, shard=True)
        train_step(net, optimizer)
        torch.manual_seed(100 + world.rank)
        checkpoints = Checkpointer(folder / "two", world, keep_last=2)
        checkpoints.save(net, optimizer, {"step": 1, "world_size": world.size})
        seen = {"saved": contents(net, optimizer), "draw_after_save": float(torch.rand(()))}
        train_step(net, optimizer)  # while it is being written
        checkpoints.wait()
        net, optimizer = make(seed=2, shard=True)
        checkpoints.restore(find_checkpoint(folder / "two"), net, optimizer)
        seen |= {"restored": contents(net, optimizer), "draw_after_restore": float(torch.rand(()))}
        net, optimizer = make(seed=2, shard=True)
        Checkpointer(folder / "one", world, keep_last=2).restore(find_checkpoint(folder / "one"), net, optimizer)
        seen["restored_from_one"] = contents(net, optimizer)
        found = world.gather(seen)
        if world.is_first:
            (folder / "report.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
