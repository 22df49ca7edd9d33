"""Attention of packed sequences against a mask in float64 and against transformers' own sdpa, forward and backward."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_inputs import small_model
from torch import nn

from ov2_core.model.attention import GroupLayout
from ov2_core.model.packed_attention import packed_attention, use_packed_attention

LENGTHS = st.lists(st.integers(1, 17), min_size=1, max_size=6)


def heads(length, *, num, width=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(1, num, length, width, generator=generator, dtype=torch.float64)
    return made.to(dtype).requires_grad_()


def naive_attention(query_HLD, key_KLD, value_KLD, lengths):
    """Row by row over the definition: [L, H, D]."""
    each = len(query_HLD) // len(key_KLD)
    out, start = [], 0
    for length in lengths:
        for i in range(start, start + length):
            row = []
            for head in range(len(query_HLD)):
                keys, values = (x[head // each, start : i + 1] for x in (key_KLD, value_KLD))
                weights = torch.softmax(keys @ query_HLD[head, i] / query_HLD.shape[-1] ** 0.5, 0)
                row.append(weights @ values)
            out.append(torch.stack(row))
        start += length
    return torch.stack(out)


@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, num_keys=st.sampled_from([1, 2, 4]), seed=st.integers(0, 100))
def test_packed_attention_equals_loops_forward_and_backward(lengths, num_keys, seed):
    total = sum(lengths)
    inputs = [heads(total, num=n, seed=seed + i) for i, n in enumerate((4, num_keys, num_keys))]
    got, weights = packed_attention(nn.Module(), *inputs, None, segments=GroupLayout(lengths))
    want = naive_attention(*(x[0] for x in inputs), lengths)
    assert weights is None
    assert got.shape == (1, total, 4, 8)
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-12)
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((got[0] * direction).sum(), inputs),
        torch.autograd.grad((want * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS)
def test_backends_agree_on_causal_packs(lengths):
    inputs = [heads(sum(lengths), num=n, seed=i, dtype=torch.float32) for i, n in enumerate((4, 2, 2))]
    segments = GroupLayout(lengths)
    made = [
        packed_attention(nn.Module(), *inputs, None, segments=segments, backend=backend)[0]
        for backend in ("grouped", "masked")
    ]
    torch.testing.assert_close(*made, rtol=0, atol=1e-5)
    grads = [torch.autograd.grad(one.square().sum(), inputs) for one in made]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [[7], [1, 9], [5, 5, 5], [3, 1, 12, 2]])
def test_language_model_with_packs_equals_transformers_sdpa_on_single_sequences(lengths):
    ours, theirs = small_model().model.language_model, small_model().model.language_model
    theirs.set_attn_implementation("sdpa")
    use_packed_attention(ours)
    ids = torch.randint(0, 400, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = ours(
        input_ids=ids, position_ids=positions, use_cache=False, segments=GroupLayout(lengths)
    ).last_hidden_state[0]
    single = torch.cat([theirs(input_ids=part, use_cache=False).last_hidden_state[0] for part in ids.split(lengths, 1)])
    torch.testing.assert_close(packed, single, rtol=0, atol=2e-5)
    direction = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    for hidden in (packed, single):
        (hidden * direction).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = (mine.grad - other.grad).norm() / other.grad.norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


def test_a_change_in_one_sequence_leaves_the_others_bit_for_bit():
    model = small_model().model.language_model
    use_packed_attention(model)
    lengths = [6, 9, 4]
    ids = torch.randint(0, 400, (1, 19), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 6:15] = torch.arange(9)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    a, b = (
        model(input_ids=x, position_ids=positions, use_cache=False, segments=GroupLayout(lengths)).last_hidden_state[0]
        for x in (ids, changed)
    )
    assert torch.equal(a[:6], b[:6])
    assert torch.equal(a[15:], b[15:])
    assert not torch.equal(a[6:15], b[6:15])


def test_a_token_does_not_see_what_follows():
    query, key, value = (heads(9, num=2, seed=i) for i in range(3))
    out, _ = packed_attention(nn.Module(), query, key, value, None, segments=GroupLayout([4, 5]))
    (seen,) = torch.autograd.grad(out[0, 6].sum(), value)
    assert (seen[0, :, [*range(4), 7, 8]] == 0).all()
    assert (seen[0, :, 4:7] != 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": None}, "one row and `segments`"),
        ({"segments": GroupLayout([4])}, "sum to 4 patches, but there are 6"),
        ({"dropout": 0.1}, "no dropout"),
        ({"scaling": 1.0}, r"scales by 1 / sqrt\(D\)"),
        ({"mask": torch.ones(1, 1, 6, 6)}, "no mask"),
        ({"backend": "flash"}, "must be one of"),
    ],
)
def test_what_packed_attention_cannot_do_is_refused(change, message):
    query, key, value = (heads(6, num=2, seed=i) for i in range(3))
    options = {"segments": GroupLayout([6]), **change}
    mask = options.pop("mask", None)
    with pytest.raises(ValueError, match=message):
        packed_attention(nn.Module(), query, key, value, mask, **options)


def test_two_rows_are_refused():
    rows = torch.zeros(2, 2, 6, 8)
    with pytest.raises(ValueError, match="got 2 rows"):
        packed_attention(nn.Module(), rows, rows, rows, None, segments=GroupLayout([6]))
