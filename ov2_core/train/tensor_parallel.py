"""Tensor parallelism of the language model: neighbouring ranks compute a share each of every layer's heads and of its MLP.

Enters: the language model's layers, whole, and a mesh of ranks that read the same packs. Leaves: layers whose projections are
DTensors over the mesh: queries, keys, values, gate and up by columns, output and down by rows (Megatron-LM, arXiv 1909.08053), with
torch's own plans. Encoder, connector, embeddings and output layer stay whole on every rank of the mesh, which compute them alike.

Query and key norms act on single heads, so each rank has another part of their gradient: it is summed over the mesh after backward.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROWS = ("self_attn.o_proj", "mlp.down_proj")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def parallelize_layers(layers: Iterable[nn.Module], mesh: Any, *, num_heads: int, num_key_heads: int) -> None:
    """Shares the projections of Qwen3 layers among the ranks of a one-dimensional mesh, in place.

    Raises:
        ValueError: heads that the ranks cannot share evenly.
    """
    if num_heads % mesh.size() or num_key_heads % mesh.size():
        raise ValueError(
            f"tensor_parallel must divide the language model's {num_heads} heads and {num_key_heads} key heads, got {mesh.size()}"
        )
    plan: dict[str, Any] = {name: ColwiseParallel() for name in COLUMNS} | {name: RowwiseParallel() for name in ROWS}
    for layer in layers:
        parallelize_module(layer, mesh, plan)


def head_norm_parameters(layers: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Those whose gradients are partial on each rank."""
    return [
        parameter for layer in layers for name in HEAD_NORMS for parameter in layer.get_submodule(name).parameters()
    ]


def sum_partial_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sums the gradients over the mesh's ranks, in place."""
    local = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not local:
        return
    flat = torch.cat([gradient.flatten() for gradient in local])
    dist.all_reduce(flat, group=group)
    for gradient, summed in zip(local, flat.split([gradient.numel() for gradient in local]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def _local(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
