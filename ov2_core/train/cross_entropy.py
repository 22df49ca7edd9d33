"""Cross entropy of hidden states through the output layer, some rows at a time: the full logits never exist.

Only rows that have a target enter; of 32k tokens of a pack that is often a tenth, for pixels and questions have none. Forward
computes loss and gradient of a chunk of rows together, so that a chunk's logits are made once and thrown away: three matrix
products, as with full logits, and memory of `chunk_rows` x V. Sums are float32.

R rows with a target, E width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 256 << 20
"""Of a chunk's float32 logits; three such buffers may live at a time."""


def linear_cross_entropy(
    hidden_RE: Tensor, weight_VE: Tensor, targets_R: Tensor, row_weights_R: Tensor, *, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rows' cross entropy, and each row's.

    Args:
        hidden_RE: states that predict the targets.
        weight_VE: output layer, no bias.
        targets_R: int64, in 0..V-1.
        row_weights_R: float32; 1 / (targets of the whole step) makes sums of many calls the step's mean.
        chunk_rows: rows at a time; None: so many that logits take CHUNK_BYTES.

    Returns:
        loss, a float32 scalar with gradients to hidden_RE and weight_VE; the rows' losses [R], float32, without gradient.
    """
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_BYTES // (4 * len(weight_VE)))
    loss, losses_R = _LinearCrossEntropy.apply(hidden_RE, weight_VE, targets_R, row_weights_R, chunk_rows)  # type: ignore[no-untyped-call]
    return loss, losses_R


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RE: Tensor, weight_VE: Tensor, targets_R: Tensor, row_weights_R: Tensor, chunk_rows: int
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        losses_R = torch.empty(len(hidden_RE), dtype=torch.float32, device=hidden_RE.device)
        grad_hidden = torch.empty_like(hidden_RE) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if wants_weight else None
        for start in range(0, len(hidden_RE), chunk_rows):
            rows = slice(start, start + chunk_rows)
            hidden, targets = hidden_RE[rows], targets_R[rows, None]
            logits = (hidden @ weight_VE.T).float()
            log_sum = logits.logsumexp(1, keepdim=True)
            losses_R[rows] = (log_sum - logits.gather(1, targets))[:, 0]
            if not (wants_hidden or wants_weight):
                continue
            grad = logits.sub_(log_sum).exp_()
            grad.scatter_add_(1, targets, grad.new_full(targets.shape, -1.0))
            grad = grad.mul_(row_weights_R[rows, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight_VE
            if grad_weight is not None:
                if grad.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, hidden)
                else:
                    grad_weight += grad.T @ hidden
        ctx.grad_hidden = grad_hidden
        ctx.grad_weight = None if grad_weight is None else grad_weight.to(weight_VE.dtype)
        ctx.mark_non_differentiable(losses_R)
        return (losses_R * row_weights_R).sum(), losses_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        scale = grads[0]
        hidden, weight = ctx.grad_hidden, ctx.grad_weight
        ctx.grad_hidden = ctx.grad_weight = None
        return (
            None if hidden is None else hidden.mul_(scale.to(hidden.dtype)),  # ours alone: no second copy of [V, E]
            None if weight is None else weight.mul_(scale.to(weight.dtype)),
            None,
            None,
            None,
        )
