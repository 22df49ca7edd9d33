"""OneVision-Encoder and connector against a float64 reference; groups, packing, gradients, memory."""

import pytest

torch = pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

import naive_model as naive  # noqa: E402
from model_inputs import codec_positions, pixels_for, small_vision_config  # noqa: E402

from ov2_core.model import OneVisionEncoder  # noqa: E402
from ov2_core.model.attention import group_lengths  # noqa: E402
from ov2_core.model.rope3d import rope_table  # noqa: E402

MIXED = [[1, 4, 2], [5, 2, 2], [1, 2, 2], [1, 2, 2], [2, 2, 4]]
"""Stills and videos of several sizes."""


def _encoder(*, seed=0, **fields):
    torch.manual_seed(seed)
    encoder = OneVisionEncoder(small_vision_config(**fields)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def _inputs(grid, config, *, seed=0):
    return pixels_for(grid, config, seed=seed), codec_positions(grid, config.spatial_merge_size, seed=seed)


@pytest.mark.parametrize(
    ("fields", "grid", "window"),
    [
        ({}, MIXED, 4),
        ({}, MIXED, 2),
        ({}, [[3, 2, 2]], 0),
        ({"num_attention_heads": 1}, [[3, 2, 4]], 2),
        ({"hidden_size": 96, "num_attention_heads": 3}, [[1, 2, 2], [5, 2, 2]], 3),
        ({"hidden_size": 96, "num_attention_heads": 1}, [[2, 2, 2]], 4),
        ({"spatial_merge_size": 1}, [[1, 3, 2], [3, 1, 2]], 2),
        ({"spatial_merge_size": 3, "rope_theta": 500.0, "layer_norm_eps": 1e-3}, [[2, 3, 6]], 1),
        ({"patch_size": 3, "num_channels": 1, "num_hidden_layers": 3}, [[2, 2, 2]], 4),
    ],
)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_encoder_equals_the_naive_reference(fields, grid, window, with_gradients):
    encoder = _encoder(**fields)
    config, weights = encoder.config, encoder.state_dict()
    lengths = group_lengths(grid, frame_windows_size=window)
    pixels, positions = _inputs(grid, config)
    with torch.set_grad_enabled(with_gradients):
        hidden = encoder.encode(pixels, positions, lengths)
        tokens = encoder(pixels, positions, lengths)
    wanted = naive.encode(
        weights,
        pixels,
        positions.tolist(),
        lengths,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        theta=config.rope_theta,
        eps=config.layer_norm_eps,
    )
    assert naive.relative_error(hidden.detach(), wanted) <= 1e-5
    wanted = naive.merge(weights, wanted, merge=config.spatial_merge_size, eps=config.layer_norm_eps)
    assert naive.relative_error(tokens.detach(), wanted) <= 1e-5


def test_merger_equals_the_naive_reference():
    encoder = _encoder(spatial_merge_size=3)
    hidden = torch.randn(36, 64) * 3
    got = encoder.merge(hidden).detach()
    wanted = naive.merge(encoder.state_dict(), hidden, merge=3, eps=1e-6)
    assert got.shape == (4, 48)
    assert naive.relative_error(got, wanted) <= 1e-5


@pytest.mark.parametrize("backend", ["grouped", "masked"])
def test_packed_equals_one_by_one(backend):
    encoder = _encoder()
    encoder.attention_backend = backend
    pixels, positions = _inputs(MIXED, encoder.config)
    with torch.no_grad():
        packed = encoder(pixels, positions, group_lengths(MIXED))
        alone, start = [], 0
        for row in MIXED:
            stop = start + row[0] * row[1] * row[2]
            alone.append(encoder(pixels[start:stop], positions[start:stop], group_lengths([row])))
            start = stop
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-5)


def test_permuting_groups_permutes_tokens():
    encoder = _encoder()
    lengths = group_lengths(MIXED)
    pixels, positions = _inputs(MIXED, encoder.config)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(3)).tolist()
    rows = torch.arange(len(pixels)).split(lengths)
    index = torch.cat([rows[i] for i in order])
    with torch.no_grad():
        straight = encoder(pixels, positions, lengths)
        permuted = encoder(pixels[index], positions[index], [lengths[i] for i in order])
    token_rows = torch.arange(len(straight)).split([length // 4 for length in lengths])
    torch.testing.assert_close(permuted, straight[torch.cat([token_rows[i] for i in order])], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk_patches", [1, 20, None])
def test_tokens_do_not_move_when_another_groups_pixels_change(chunk_patches):
    encoder = _encoder()
    encoder.chunk_patches = chunk_patches
    lengths = group_lengths(MIXED)
    pixels, positions = _inputs(MIXED, encoder.config)
    start = sum(lengths[:1])
    changed = pixels.clone()
    changed[start : start + lengths[1]] += 10
    with torch.no_grad():
        before, after = encoder(pixels, positions, lengths), encoder(changed, positions, lengths)
    moved = slice(start // 4, (start + lengths[1]) // 4)
    others = [i for i in range(len(before)) if i not in range(moved.start, moved.stop)]
    assert torch.equal(before[others], after[others])
    assert (before[moved] - after[moved]).abs().min(dim=1).values.max() > 1e-3


def test_absolute_time_matters():
    """Lanes of a pair turn by different angles, so moving all of a group in time changes it (as released)."""
    encoder = _encoder()
    pixels, positions = _inputs([[1, 2, 4]], encoder.config)
    with torch.no_grad():
        here = encoder(pixels, positions, [8])
        later = encoder(pixels, positions + torch.tensor([40, 0, 0], dtype=torch.int32), [8])
    assert (here - later).abs().max() > 1e-2


@pytest.mark.parametrize("chunk_patches", [1, 10, 25, 10_000])
def test_inference_by_chunks_equals_the_whole_with_gradients(chunk_patches):
    encoder = _encoder()
    encoder.chunk_patches = chunk_patches
    pixels, positions = _inputs(MIXED, encoder.config)
    kept = pixels.clone()
    whole = encoder(pixels, positions, group_lengths(MIXED))
    assert whole.requires_grad
    with torch.no_grad():
        chunks = encoder(pixels, positions, group_lengths(MIXED))
    torch.testing.assert_close(chunks, whole.detach(), rtol=0, atol=1e-5)
    assert torch.equal(pixels, kept), "inputs must not be written to"


def test_frozen_encoder_makes_no_graph():
    encoder = _encoder().requires_grad_(False)
    tokens = encoder.encode(*_inputs([[1, 2, 2]], encoder.config), [4])
    assert not tokens.requires_grad


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    encoder = _encoder().train()
    pixels, positions = _inputs(MIXED, encoder.config)
    pixels.requires_grad_()

    def gradients():
        encoder.zero_grad()
        pixels.grad = None
        encoder(pixels, positions, group_lengths(MIXED)).square().sum().backward()
        found = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
        return {**found, "pixels": pixels.grad.clone()}

    plain = gradients()
    encoder.encoder.gradient_checkpointing = True
    encoder.encoder._gradient_checkpointing_func = lambda *args: torch.utils.checkpoint.checkpoint(
        *args, use_reentrant=use_reentrant
    )
    calls = []
    handle = encoder.encoder.layers[0].layer_norm2.register_forward_hook(lambda *_: calls.append(1))
    again = gradients()
    handle.remove()
    assert len(calls) == 2, "the layer must run again in the backward pass"
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_equal_finite_differences():
    encoder = _encoder(num_hidden_layers=1)
    pixels, positions = _inputs([[1, 2, 2], [1, 2, 2]], encoder.config)
    weight = encoder.encoder.layers[0].self_attn.qkv.weight
    plain = torch.randn(8, 64)

    def value():
        return (encoder.encode(pixels, positions, [4, 4]) * plain).sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    step = 3e-3
    with torch.no_grad():
        weight += step * direction
        above = value().item()
        weight -= 2 * step * direction
        below = value().item()
    assert (above - below) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_training_keeps_no_more_than_the_activations_that_must_exist():
    """Per patch and layer: inputs and outputs of two norms, q, k, v, attended rows, both sides of the GELU; 10 % above at most."""
    encoder = _encoder(hidden_size=128, intermediate_size=512, num_hidden_layers=4).train()
    pixels, positions = _inputs([[4, 8, 8]], encoder.config)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.__setitem__(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()), x)[1], lambda x: x
    ):
        hidden = encoder.encode(pixels, positions, [256])
    owned = {p.untyped_storage().data_ptr() for p in encoder.parameters()} | {pixels.untyped_storage().data_ptr()}
    num_bytes = sum(size for pointer, size in kept.items() if pointer not in owned)
    must = 256 * 4 * 4 * (8 * 128 + 2 * 512)
    assert hidden.shape == (256, 128)
    assert must <= num_bytes <= 1.1 * must


def test_pixels_may_be_of_another_dtype():
    encoder = _encoder().to(torch.bfloat16)
    pixels, positions = _inputs([[1, 2, 2]], encoder.config)
    with torch.no_grad():
        tokens = encoder(pixels, positions, [4])
    assert tokens.dtype == torch.bfloat16
    assert torch.isfinite(tokens.float()).all()


def test_encoder_without_connector_encodes_and_says_so():
    encoder = OneVisionEncoder(small_vision_config(), with_merger=False)
    pixels, positions = _inputs([[1, 2, 2]], encoder.config)
    assert encoder.encode(pixels, positions, [4]).shape == (4, 64)
    with pytest.raises(ValueError, match="without a connector"):
        encoder(pixels, positions, [4])


def test_inputs_that_do_not_fit_are_told_with_their_numbers():
    encoder = _encoder()
    pixels, positions = _inputs([[1, 2, 4]], encoder.config)
    with pytest.raises(ValueError, match=r"\[N, 48\].*got \(8, 47\)"):
        encoder(pixels[:, :-1], positions, [8])
    with pytest.raises(ValueError, match=r"\[8, 3\], got \(7, 3\)"):
        encoder(pixels, positions[:-1], [8])
    with pytest.raises(ValueError, match="groups hold 6 patches, pixel_values 8"):
        encoder(pixels, positions, [6])
    with pytest.raises(ValueError, match="7 patches do not fill blocks of 4"):
        encoder(pixels[:7], positions[:7], [7])


def test_rope_table_needs_no_buffer():
    """A buffer outside the checkpoint would be garbage after loading on the meta device."""
    encoder = _encoder()
    assert not list(encoder.buffers())
    assert rope_table(torch.zeros(1, 3), head_dim=32, theta=1e4)[0].tolist() == [[1.0] * 32]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_encoder_on_a_gpu_equals_the_cpu(dtype, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    encoder = _encoder()
    pixels, positions = _inputs(MIXED, encoder.config)
    with torch.no_grad():
        wanted = encoder(pixels, positions, group_lengths(MIXED))
        got = encoder.to("cuda", dtype)(pixels.cuda(), positions.cuda(), group_lengths(MIXED)).float().cpu()
    assert naive.relative_error(got, wanted) <= tolerance
