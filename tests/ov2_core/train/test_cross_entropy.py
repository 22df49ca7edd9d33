"""Cross entropy by chunks against full logits: values, gradients, memory."""

import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ov2_core.train import cross_entropy
from ov2_core.train.cross_entropy import linear_cross_entropy


def make(num_rows, *, width=12, vocabulary=33, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(num_rows, width, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (num_rows,), generator=generator)
    row_weights = torch.rand(num_rows, generator=generator)
    return hidden, weight, targets, row_weights


def full_logits(hidden, weight, targets, row_weights):
    """Loss and rows in float64 from logits that all exist."""
    losses = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    return (losses * row_weights.double()).sum(), losses


@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 23), chunk_rows=st.integers(1, 30), seed=st.integers(0, 1000))
def test_chunks_equal_full_logits_in_float32(num_rows, chunk_rows, seed):
    hidden, weight, targets, row_weights = make(num_rows, seed=seed)
    loss, losses = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=chunk_rows)
    want, want_rows = full_logits(hidden, weight, targets, row_weights)
    assert loss.dtype == losses.dtype == torch.float32
    assert not losses.requires_grad
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(losses.double(), want_rows, rtol=2e-6, atol=2e-6)
    got = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.autograd.grad(want, (hidden, weight))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 4e-6 * theirs.norm() + 1e-9


def test_gradients_scale_with_what_stands_above():
    hidden, weight, targets, row_weights = make(9)
    loss, _ = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=4)
    got = torch.autograd.grad(-3 * loss + 1, (hidden, weight))
    want, _ = full_logits(hidden, weight, targets, row_weights)
    for ours, theirs in zip(got, torch.autograd.grad(-3 * want, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained", ["hidden", "weight", "none"])
def test_what_is_frozen_costs_and_gets_nothing(trained):
    hidden, weight, targets, row_weights = make(9)
    reference = torch.autograd.grad(full_logits(hidden, weight, targets, row_weights)[0], (hidden, weight))
    hidden.requires_grad_(trained == "hidden")
    weight.requires_grad_(trained == "weight")
    loss, _ = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=4)
    assert loss.requires_grad == (trained != "none")
    if trained != "none":
        loss.backward()
    for name, tensor, theirs in zip(("hidden", "weight"), (hidden, weight), reference, strict=True):
        if name == trained:
            torch.testing.assert_close(tensor.grad, theirs, rtol=1e-5, atol=1e-6)
        else:
            assert tensor.grad is None


def test_no_rows_give_no_loss_and_gradients_of_zero():
    hidden, weight, targets, row_weights = make(0)
    loss, losses = linear_cross_entropy(hidden, weight, targets, row_weights)
    assert (float(loss.detach()), losses.shape) == (0.0, (0,))
    got = torch.autograd.grad(loss, (hidden, weight))
    assert got[0].shape == (0, 12)
    assert torch.equal(got[1], torch.zeros_like(weight))


def test_bfloat16_is_as_near_as_its_logits_allow():
    hidden, weight, targets, row_weights = make(64, width=64, vocabulary=200, dtype=torch.bfloat16, scale=0.2)
    loss, losses = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=17)
    want, want_rows = full_logits(hidden, weight, targets, row_weights)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), want_rows, rtol=0, atol=0.05)
    torch.testing.assert_close(loss.double(), want, rtol=2e-3, atol=0)
    got = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip(got, torch.autograd.grad(want, (hidden, weight)), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs.double()).norm() < 0.01 * theirs.double().norm()


def test_large_logits_overflow_nothing():
    hidden, weight, targets, row_weights = make(8, scale=1e4)
    loss, losses = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=3)
    loss.backward()
    torch.testing.assert_close(
        losses.double(), full_logits(hidden, weight, targets, row_weights)[1], rtol=1e-5, atol=1e-2
    )
    assert hidden.grad.isfinite().all()


def test_a_row_that_is_not_finite_is_told_apart():
    hidden, weight, targets, row_weights = make(8)
    with torch.no_grad():
        hidden[3] = torch.nan
    loss, losses = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=5)
    assert loss.isnan()
    assert losses.isnan().tolist() == [i == 3 for i in range(8)]


class _Largest(TorchDispatchMode):
    """Most elements of any tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("chunk_rows", [1, 16, 100])
def test_full_logits_never_exist(chunk_rows):
    hidden, weight, targets, row_weights = make(1000, width=8, vocabulary=300)
    with _Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows=chunk_rows)[0].backward()
    assert largest.elements == max(chunk_rows * 300, 300 * 8, 1000 * 8)


def test_chunks_are_by_bytes_where_not_told(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 300 * 20)
    hidden, weight, targets, row_weights = make(1000, width=8, vocabulary=300)
    with _Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, row_weights)
    assert largest.elements == 1000 * 8
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 300 * 50)
    with _Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, row_weights)
    assert largest.elements == 50 * 300
