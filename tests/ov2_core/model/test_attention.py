"""Grouped attention: every backend against loops in float64; groups are blind to each other."""

import pytest

torch = pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

import naive_model as naive  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from ov2_core.model.attention import GroupLayout, choose_backend, group_lengths, grouped_attention  # noqa: E402

CPU_BACKENDS = ("auto", "grouped", "masked")
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def _qkv(num_patches, heads=2, head_dim=8, seed=0):
    """Views of a fused projection, as the encoder makes them."""
    fused = torch.randn(num_patches, 3, heads, head_dim, generator=torch.Generator().manual_seed(seed))
    return fused.unbind(1)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, backend=st.sampled_from(CPU_BACKENDS), seed=st.integers(0, 99))
def test_attention_equals_the_naive_reference(lengths, backend, seed):
    q, k, v = _qkv(sum(lengths), seed=seed)
    got = grouped_attention(q, k, v, GroupLayout(lengths), backend=backend)
    wanted = naive.grouped_attention(*(x.double().numpy() for x in (q, k, v)), lengths)
    assert naive.relative_error(got, wanted) <= 1e-5


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_attention_permutes_with_its_groups(lengths, seed):
    q, k, v = _qkv(sum(lengths), seed=seed)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [torch.arange(sum(lengths)).split(lengths)[i] for i in order]
    index = torch.cat(rows)
    straight = grouped_attention(q, k, v, GroupLayout(lengths))
    permuted = grouped_attention(q[index], k[index], v[index], GroupLayout([lengths[i] for i in order]))
    torch.testing.assert_close(permuted, straight[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_attention_does_not_see_other_groups(backend):
    lengths = [5, 3, 3, 7]
    q, k, v = (x.clone() for x in _qkv(18))
    before = grouped_attention(q, k, v, GroupLayout(lengths), backend=backend)
    for x in (q, k, v):
        x[5:8] = 1e3
    after = grouped_attention(q, k, v, GroupLayout(lengths), backend=backend)
    others = [*range(5), *range(8, 18)]
    assert torch.equal(before[others], after[others])
    assert not torch.allclose(before[5:8], after[5:8])


def test_attention_gradients_are_those_of_the_mask():
    lengths = [4, 4, 2, 6, 6]
    plain = torch.randn(22, 2, 8)
    gradients = []
    for backend in ("grouped", "masked"):
        leaves = [x.clone().requires_grad_() for x in _qkv(22)]
        (grouped_attention(*leaves, GroupLayout(lengths), backend=backend) * plain).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_grouped_backend_pads_nothing_and_needs_one_call_for_each_run(monkeypatch):
    calls = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        calls.append((tuple(q.shape), kwargs.get("attn_mask")))
        return plain(q, k, v, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    layout = GroupLayout([6, 6, 6, 2, 4, 4])
    grouped_attention(*_qkv(28), layout)
    assert calls == [((3, 2, 6, 8), None), ((1, 2, 2, 8), None), ((2, 2, 4, 8), None)]
    assert layout.num_pairs_computed("grouped") == layout.num_pairs() == 3 * 36 + 4 + 2 * 16
    assert layout.num_pairs_computed("masked") == 28 * 28


@pytest.mark.parametrize(
    ("grid", "window", "lengths"),
    [
        ([[10, 4, 6]], 4, [96, 96, 48]),
        ([[1, 4, 6]], 4, [24]),
        ([[1, 4, 6], [1, 2, 2], [4, 2, 2], [5, 2, 2]], 4, [24, 4, 16, 16, 4]),
        ([[7, 2, 2]], 3, [12, 12, 4]),
        ([[7, 2, 2]], 1, [4] * 7),
        ([[7, 2, 2]], 0, [28]),
        ([[2, 2, 2]], 8, [8]),
    ],
)
def test_group_lengths_cut_windows_along_t(grid, window, lengths):
    assert group_lengths(grid, frame_windows_size=window) == lengths


@settings(max_examples=50, deadline=None)
@given(
    grid=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5),
    window=st.integers(-1, 6),
)
def test_group_lengths_cover_every_patch_in_windows(grid, window):
    lengths = group_lengths(grid, frame_windows_size=window)
    assert sum(lengths) == sum(t * h * w for t, h, w in grid)
    if window > 0:
        assert len(lengths) == sum(-(-t // window) for t, _, _ in grid)
        assert max(lengths) <= max(min(t, window) * h * w for t, h, w in grid)
    else:
        assert lengths == [t * h * w for t, h, w in grid]


@pytest.mark.parametrize("row", [[0, 2, 2], [1, -2, 2], [1, 2]])
def test_group_lengths_of_a_bad_row_name_it(row):
    with pytest.raises(ValueError, match="row 1 must be"):
        group_lengths([[1, 2, 2], row])


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1]])
def test_group_layout_of_nothing_is_refused(lengths):
    with pytest.raises(ValueError, match="group lengths"):
        GroupLayout(lengths)


def test_attention_of_wrong_lengths_or_backend_is_refused():
    with pytest.raises(ValueError, match="sum to 7 patches, but there are 6"):
        grouped_attention(*_qkv(6), GroupLayout([3, 4]))
    with pytest.raises(ValueError, match="must be one of"):
        grouped_attention(*_qkv(6), GroupLayout([6]), backend="eager")


def test_chunks_cut_between_groups_and_cover_all():
    layout = GroupLayout([5, 5, 5, 9, 1])
    chunks = layout.chunks(8)
    assert [(start, part.lengths) for start, part in chunks] == [(0, (5, 5)), (10, (5, 9)), (24, (1,))]


def test_varlen_gets_offsets_and_the_longest_group(monkeypatch):
    """What flash attention would be asked on a GPU: the call is replaced, its arguments are those of the documented function."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no varlen attention")
    seen = {}

    def fake(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        seen.update(offsets=cu_seq_q.tolist(), same=cu_seq_k is cu_seq_q, longest=(max_q, max_k), dtype=cu_seq_q.dtype)
        return grouped_attention(query, key, value, GroupLayout([4, 2, 3]), backend="masked")

    monkeypatch.setattr(varlen, "varlen_attn", fake)
    q, k, v = _qkv(9)
    got = grouped_attention(q, k, v, GroupLayout([4, 2, 3]), backend="varlen")
    assert seen == {"offsets": [0, 4, 6, 9], "same": True, "longest": (4, 4), "dtype": torch.int32}
    torch.testing.assert_close(got, grouped_attention(q, k, v, GroupLayout([4, 2, 3])), rtol=0, atol=1e-6)


def test_backend_of_a_cpu_is_grouped():
    assert choose_backend(torch.device("cpu"), torch.float32) == "grouped"
    assert choose_backend(torch.device("cpu"), torch.bfloat16) == "grouped"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_on_a_gpu_equals_the_mask(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    lengths = [48, 48, 24, 100, 1]
    q, k, v = (x.cuda().to(dtype) for x in _qkv(221, heads=4, head_dim=64))
    backend = choose_backend(q.device, dtype)
    assert backend == ("grouped" if dtype == torch.float32 else "varlen")
    got = grouped_attention(q, k, v, GroupLayout(lengths))
    wanted = grouped_attention(q.float(), k.float(), v.float(), GroupLayout(lengths), backend="masked")
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=1e-4 if dtype == torch.float32 else 2e-2)
