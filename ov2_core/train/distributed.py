"""The processes of a run: who am I, which device, sums over all.

`joined()` reads torchrun's environment; without one it makes a world of a single process. A group that is there already (Ray
Train's) is used and left alone.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from ov2_core.train.rendezvous import generation_store
from ov2_core.train.run_lock import end_with_parent

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device
    tensor: int = 1
    """Neighbouring ranks that compute the same packs, each a share of every layer (tensor_parallel.py)."""

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.size % self.tensor:
            raise ValueError(f"tensor_parallel must divide the number of ranks ({self.size}), got {self.tensor}")

    @property
    def data_rank(self) -> int:
        """Which packs this rank reads."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """Ranks that read different packs."""
        return self.size // self.tensor

    @property
    def is_first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def mesh(self) -> Any:
        """All ranks, by the packs they read and by their share of layers: dimensions "data" and "tensor"."""
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self.data_size, self.tensor)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("data", "tensor"))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise over the ranks that read different packs, in float64."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) / self.tensor for value in total.tolist()]

    def gather(self, item: Any) -> list[Any]:
        """The items of ranks that read different packs, in their order. For rare and small things."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found[:: self.tensor]

    def on_first(self, action: Callable[[], None]) -> None:
        """Done by the first rank while the others wait. What it raises is raised on all of them."""
        failed: Exception | None = None
        if self.is_first:
            try:
                action()
            except Exception as error:
                failed = error
        first, *_ = self.gather(failed)
        if first is not None:
            raise failed or first

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str | None = None) -> Iterator[World]:
    """The world that this process belongs to.

    Args:
        device: "cpu" or "cuda"; None: cuda where there is one.

    Raises:
        ValueError: cuda is asked for and there is none.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is asked for, but torch sees none; take --device cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if dist.is_initialized():
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=where)
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=generation_store(TIMEOUT), rank=rank, world_size=size, timeout=TIMEOUT)
    elif "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=where)
    finally:
        dist.destroy_process_group()


def restarted(world: World) -> bool:
    """True where torchrun has restarted a rank of this world; each node counts for itself."""
    return any(world.gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0))
