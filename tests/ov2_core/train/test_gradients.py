"""Gradients of packs: the sum of their samples' one by one; the same with checkpointing and in packs of packs."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from step_inputs import codec, make_batch, mixed_pack, small_model, still, take_sample, text

from ov2_core.model.chatml import IGNORE_INDEX
from ov2_core.train.config import PartConfig, TrainConfig
from ov2_core.train.pack_inputs import pack_inputs
from ov2_core.train.step import backward
from ov2_core.train.trainable import make_trainable

CPU = torch.device("cpu")
FROZEN = PartConfig(train=False)
RECIPES = {
    "whole model": {},
    "alignment": {"visual": FROZEN, "language": FROZEN},
    "frozen encoder": {"visual": FROZEN},
    "encoder alone": {"connector": FROZEN, "language": FROZEN},
    "language alone": {"visual": FROZEN, "connector": FROZEN},
}


def trainable(*, checkpointing=False, tied=False, chunk_rows=None, model=None, **recipe):
    config = TrainConfig(name="test", version=1, activation_checkpointing=checkpointing, **recipe)
    made = make_trainable(model or small_model(tied=tied), config, device=CPU)
    made.chunk_rows = chunk_rows
    return made


def gradients(made, micro_batches):
    """{name: summed gradient} with the weight of one target over all of them, and the samples' (loss, targets)."""
    made.zero_grad(set_to_none=True)
    num_targets = sum(inputs.num_targets for inputs in micro_batches)
    sums = torch.cat([backward(made, inputs, 1 / num_targets) for inputs in micro_batches])
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}, sums


def assert_equal_gradients(got, want, *, tolerance=1e-5):
    assert got.keys() == want.keys()
    assert got
    for name in want:
        error = (got[name] - want[name]).norm() / want[name].norm()
        assert error <= tolerance, f"{name}: {error:.1e}"


def one_by_one(made, inputs):
    """Its samples as micro-batches of their own."""
    image = made.model.config.image_token_id
    return [take_sample(inputs, i, image_token_id=image) for i in range(len(inputs.samples))]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_gradients_of_a_pack_equal_the_sum_of_its_samples(recipe, checkpointing):
    made = trainable(checkpointing=checkpointing, **recipe)
    inputs = pack_inputs(make_batch([mixed_pack()]))
    assert {one.input_kind for one in inputs.samples} == {"text", "codec", "image", "frames"}
    packed, sums = gradients(made, [inputs])
    alone, alone_sums = gradients(made, one_by_one(made, inputs))
    assert_equal_gradients(packed, alone)
    torch.testing.assert_close(sums, alone_sums, rtol=1e-5, atol=0)


def test_gradients_of_tied_embeddings_equal_the_sum_too():
    made = trainable(tied=True)
    inputs = pack_inputs(make_batch([mixed_pack()]))
    packed, _ = gradients(made, [inputs])
    assert not any("lm_head" in name for name in packed)
    assert_equal_gradients(packed, gradients(made, one_by_one(made, inputs))[0])


def test_gradients_equal_those_of_the_model_itself_with_full_logits():
    """The model as users call it, sample by sample: transformers' sdpa, its loss, our weights of targets."""
    batch = make_batch([mixed_pack(), [text("i"), still("j")]])
    inputs = pack_inputs(batch)
    made = trainable(chunk_rows=7)
    packed, _ = gradients(made, [inputs])
    plain = small_model()
    plain.set_attn_implementation("sdpa")
    at = 0
    for one in one_by_one(made, inputs):
        labels = torch.full_like(one.input_ids, IGNORE_INDEX)
        labels[0, one.rows + 1] = one.targets
        out = plain(
            input_ids=one.input_ids,
            labels=labels,
            pixel_values=one.pixels(torch.float32),
            patch_positions=one.patch_positions,
            patch_group_lengths=one.patch_group_lengths,
        )
        (out.loss * one.num_targets / inputs.num_targets).backward()
        at += one.num_tokens
    assert at == inputs.num_tokens
    assert_equal_gradients(packed, {f"model.{name}": p.grad for name, p in plain.named_parameters()})


def test_checkpointing_changes_no_gradient():
    inputs = pack_inputs(make_batch([mixed_pack()]))
    plain, again = (gradients(trainable(checkpointing=on), [inputs])[0] for on in (False, True))
    assert_equal_gradients(again, plain, tolerance=1e-6)


def test_several_packs_at_once_equal_packs_one_after_the_other():
    packs = [mixed_pack(), [text("i")], [still("j", seed=9), text("k"), codec("l", seed=8)]]
    made = trainable()
    together, _ = gradients(made, [pack_inputs(make_batch(packs))])
    apart, _ = gradients(made, [pack_inputs(make_batch([pack])) for pack in packs])
    assert_equal_gradients(together, apart)


def test_chunks_of_targets_change_no_gradient():
    inputs = pack_inputs(make_batch([mixed_pack()]))
    whole, parts = (gradients(trainable(chunk_rows=n), [inputs])[0] for n in (10_000, 5))
    assert_equal_gradients(parts, whole, tolerance=2e-6)


def test_padding_of_a_batch_does_not_reach_the_gradient():
    made = trainable()
    packs = [[text("a")], [text("b", words=60)]]
    padded = make_batch(packs)
    padded.input_ids[0, padded.sample_lengths[0][0] :] = 77
    assert_equal_gradients(
        gradients(made, [pack_inputs(padded)])[0], gradients(made, [pack_inputs(make_batch(packs))])[0], tolerance=0
    )


@pytest.mark.parametrize("recipe", ["alignment", "encoder alone"])
def test_text_where_only_the_eyes_are_trained_has_a_loss_and_no_gradient(recipe):
    made = trainable(**RECIPES[recipe])
    grads, sums = gradients(made, [pack_inputs(make_batch([[text("a")]]))])
    assert grads == {}
    assert float(sums[0, 0]) > 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_sharded_model_sees_grey_for_text_and_adds_nothing_of_it(recipe):
    """What ranks without pictures do (always_see): every part has a gradient, zero where nothing was seen."""
    made = trainable(**recipe)
    inputs = pack_inputs(make_batch([[text("a"), text("b")]]))
    plain, sums = gradients(made, [inputs])
    made.always_see = True
    grey, grey_sums = gradients(made, [inputs])
    assert torch.equal(sums, grey_sums)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and ".visual." in name:
            assert torch.equal(grey[name], torch.zeros_like(parameter)), name
        elif parameter.requires_grad:
            assert torch.equal(grey[name], plain[name]), name


def test_an_empty_micro_batch_adds_nothing():
    made = trainable()
    made.always_see = True
    sums = backward(made, pack_inputs(make_batch([])), 0.5)
    assert sums.shape == (0, 2)
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_placeholders_without_their_tokens_are_named():
    inputs = pack_inputs(make_batch([[still("a")]], first=3))
    image = trainable().model.config.image_token_id
    inputs.input_ids[0, (inputs.input_ids[0] == image).nonzero()[0]] = 5
    with pytest.raises(ValueError, match="packs ps_00000003: 3 placeholders, 4 visual tokens"):
        trainable()(inputs, 1.0)


def test_features_of_the_frozen_encoder_give_the_gradients_of_pixels():
    model = small_model()
    inputs = pack_inputs(make_batch([mixed_pack()]))
    with torch.no_grad():
        features = model.visual.encode(inputs.pixels(torch.float32), inputs.patch_positions, inputs.patch_group_lengths)
    made = trainable(model=model, visual=FROZEN)
    from_pixels, _ = gradients(made, [inputs])
    made.from_features = True
    from_features, _ = gradients(made, [replace(inputs, pixel_values=None, visual_features=features)])
    assert_equal_gradients(from_features, from_pixels, tolerance=1e-6)
