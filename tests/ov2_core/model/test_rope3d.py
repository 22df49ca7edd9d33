"""3D RoPE against a reference written from the description, and its in-place and differentiable forms against the plain one."""

import pytest

torch = pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

import naive_model as naive  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from ov2_core.model.rope3d import apply_rope, apply_rope_, axis_sizes, rope_angles, rope_table, rotate_qk_  # noqa: E402


@pytest.mark.parametrize(
    ("head_dim", "sizes"), [(32, (4, 6, 6)), (64, (8, 12, 12)), (96, (12, 18, 18)), (128, (16, 24, 24))]
)
def test_axis_sizes_split_half_a_head_4_6_6(head_dim, sizes):
    assert axis_sizes(head_dim) == sizes
    assert sum(sizes) == head_dim // 2


@pytest.mark.parametrize("head_dim", [0, 16, 48, 63, -32])
def test_axis_sizes_of_other_head_dims_are_refused(head_dim):
    with pytest.raises(ValueError, match=f"multiples of 32, got {head_dim}"):
        axis_sizes(head_dim)


def test_rope_angles_written_out_for_one_patch():
    """Not pairwise: lanes 0 and 1 turn by different angles, and the second half repeats the first."""
    angle = rope_angles(torch.tensor([[3, 5, 7]]), head_dim=32, theta=10000.0)[0]
    assert angle[:4].tolist() == pytest.approx([3, 3 / 10, 3 / 100, 3 / 1000])
    assert angle[4].item() == pytest.approx(5)
    assert angle[5].item() == pytest.approx(5 / 10000 ** (1 / 6))
    assert angle[10].item() == pytest.approx(7)
    assert torch.equal(angle[:16], angle[16:])
    assert angle.dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(
    head_dim=st.sampled_from([32, 64, 96]),
    theta=st.sampled_from([100.0, 1e4, 5e5]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_rope_equals_the_naive_reference(head_dim, theta, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 60, (11, 3), generator=generator).to(dtype)
    heads = torch.randn(11, 2, head_dim, generator=generator)
    got = apply_rope(heads, rope_table(positions, head_dim=head_dim, theta=theta))
    angle = naive.angles(positions.tolist(), head_dim=head_dim, theta=theta)
    for head in range(2):
        assert naive.relative_error(got[:, head], naive.rotate(heads[:, head].double().numpy(), angle)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_in_place_equals_out_of_place_over_several_cachefuls(dtype):
    positions = torch.randint(0, 60, (1300, 3))
    heads = torch.randn(1300, 2, 3, 32).to(dtype)
    table = rope_table(positions, head_dim=32, theta=1e4)
    wanted = apply_rope(heads, table)
    assert wanted.dtype == dtype
    got = apply_rope_(heads, table)
    assert got is heads
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_rotate_qk_leaves_values_alone_and_has_the_right_gradient():
    positions = torch.randint(0, 30, (6, 3))
    table = tuple(part.double() for part in rope_table(positions, head_dim=32, theta=1e4))
    weight = torch.randn(6, 3, 2, 32, dtype=torch.float64, requires_grad=True)
    plain = torch.randn(6, 3, 2, 32, dtype=torch.float64)

    def by_parts(x):
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        cos, sin = (part[:, None, None] for part in table)
        rotated = x * cos + swapped * sin
        return torch.cat([rotated[:, :2], x[:, 2:]], dim=1)

    got = rotate_qk_(weight * 1.0, table)
    wanted = by_parts(weight)
    assert torch.equal(got[:, 2], weight[:, 2])
    # Rotation itself is done in float32.
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad((got * plain).sum(), weight)
    (expected,) = torch.autograd.grad((wanted * plain).sum(), weight)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_rope_angles_of_misshapen_positions_are_refused():
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        rope_angles(torch.zeros(3, 4, dtype=torch.int64), head_dim=32, theta=1e4)
