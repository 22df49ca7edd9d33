"""A step: its loss, its parts, what clips it, and what the guard does with bad ones."""

import copy
import json
import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from step_inputs import WORLD_OF_ONE, codec, frames, make_batch, small_model, still, text

from ov2_core.train.config import GuardConfig, PartConfig, TrainConfig
from ov2_core.train.distributed import World
from ov2_core.train.optimizer import make_optimizer, set_learning_rates
from ov2_core.train.pack_inputs import pack_inputs
from ov2_core.train.step import BadStep, BadStepError, Guard, clip_gradient, run_step
from ov2_core.train.trainable import make_trainable

WORLD = World(**WORLD_OF_ONE)


class Training:
    """A model and its optimizer, stepped by hand."""

    def __init__(self, *, guard=None, clip_norm=1.0, **recipe):
        self.config = TrainConfig(name="test", version=1, activation_checkpointing=False, **recipe)
        self.trainable = make_trainable(small_model(), self.config, device=WORLD.device)
        self.optimizer = make_optimizer(self.trainable, self.config)
        self.guard = Guard(guard or GuardConfig())
        self.clip_norm = clip_norm
        set_learning_rates(self.optimizer, self.config, 1, num_steps=100)

    def step(self, *micro_batches, first=0):
        """Each micro-batch is a list of packs."""
        inputs = []
        for packs in micro_batches:
            inputs.append(pack_inputs(make_batch(packs, first=first)))
            first += len(packs)
        return run_step(
            self.trainable,
            self.optimizer,
            inputs,
            world=WORLD,
            guard=self.guard,
            sources=["told", "seen", "unread"],
            clip_norm=self.clip_norm,
            num_packs=sum(len(packs) for packs in micro_batches),
        )

    def state(self):
        """Weights and moments, copied."""
        return copy.deepcopy((self.trainable.state_dict(), self.optimizer.state_dict()["state"]))


def assert_same_state(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def poison(training, name):
    """Lets the words of one text sample be NaN on their way in: the embedding of a letter that stands in no other."""
    table = training.trainable.model.get_input_embeddings().weight
    letter = make_batch([[text(name, words=1)]]).input_ids[0]
    only = set(letter.tolist()) - set(make_batch([[text("a"), still("b")]]).input_ids[0].tolist())
    assert only
    with torch.no_grad():
        table[next(iter(only))] = torch.nan


def test_the_loss_is_the_mean_over_the_targets_of_all_micro_batches():
    training = Training()
    packs = [[text("a", words=40)], [codec("b"), text("c")]], [[still("d")]]
    losses = {}
    with torch.no_grad():
        for pack in [pack for packs in packs for pack in packs]:
            for one in pack:
                inputs = pack_inputs(make_batch([[one]]))
                losses[one.id] = (inputs.samples[0], training.trainable(inputs, 1.0)[1].double())

    def mean(*names):
        return float(torch.cat([losses[name][1] for name in names]).mean())

    result = training.step(*packs)
    assert result.loss == pytest.approx(mean("a", "b", "c", "d"), rel=1e-6)
    assert result.loss_by_source == pytest.approx({"told": mean("a", "c"), "seen": mean("b", "d")}, rel=1e-6)
    assert result.loss_by_input == pytest.approx(
        {"text": mean("a", "c"), "codec": mean("b"), "image": mean("d")}, rel=1e-6
    )
    assert result.num_packs == 3
    assert result.num_targets == sum(len(rows) for _, rows in losses.values())
    assert result.num_tokens == sum(sample.num_tokens for sample, _ in losses.values())
    assert result.num_patches == 4 * 24 + 16
    assert result.bad is None


def test_the_update_is_that_of_torch_on_full_logits():
    """AdamW of torch with the groups' rates and decays, gradients of transformers' own loss, clipped by torch."""
    training = Training(weight_decay=0.1, clip_norm=0.5)
    pack = [text("a"), text("b", words=20)]
    batch = make_batch([pack])
    plain = small_model()
    plain.set_attn_implementation("sdpa")
    names = dict(plain.named_parameters())
    groups = [
        {"params": [p for p in names.values() if (p.ndim >= 2) == decays], "weight_decay": 0.1 if decays else 0.0}
        for decays in (True, False)
    ]
    reference = torch.optim.AdamW(groups, lr=training.optimizer.param_groups[0]["lr"], betas=(0.9, 0.95), eps=1e-5)
    for _ in range(2):
        plain(**batch.model_inputs()).loss.backward()
        for name, parameter in names.items():
            if ".visual." in name:  # a step without pictures decays the encoder too, on any number of ranks
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert norm > 0.5
        before = {name: p.detach().clone() for name, p in names.items()}
        reference.step()
        reference.zero_grad()
        result = training.step([pack])
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    for name, parameter in training.trainable.named_parameters():
        there = names[name.removeprefix("model.")]
        update = (there - before[name.removeprefix("model.")]).norm()
        assert (parameter - there).norm() <= 1e-4 * update + 1e-9, name


def test_gradients_are_clipped_over_all_parts_together():
    training = Training()
    trainable = training.trainable
    inputs = pack_inputs(make_batch([[codec("a"), text("b")]]))
    trainable(inputs, 1.0)[0].backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trainable.parameters()))
    before = {name: p.grad.clone() for name, p in trainable.named_parameters()}
    assert clip_gradient(trainable, 0) == pytest.approx(norm, rel=1e-5)
    assert all(torch.equal(p.grad, before[name]) for name, p in trainable.named_parameters())
    assert clip_gradient(trainable, norm / 4) == pytest.approx(norm, rel=1e-5)
    for name, parameter in trainable.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name] / 4, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("part", ["visual", "connector", "language"])
def test_a_frozen_part_stays_bit_for_bit_and_has_no_moments(part):
    training = Training(**{part: PartConfig(train=False)})
    before, _ = training.state()
    training.step([[codec("a"), text("b"), frames("c")]])
    after, _ = training.state()
    for name in before:
        of_part = {"visual": ".visual." in name and ".merger." not in name, "connector": ".merger." in name}
        frozen = of_part.get(part, ".visual." not in name)
        assert torch.equal(before[name], after[name]) == frozen, name
    held = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in training.trainable.parameters() if p.requires_grad}


def test_text_alone_moves_no_connector_that_is_trained_alone():
    frozen = PartConfig(train=False)
    training = Training(visual=frozen, language=frozen, weight_decay=0.0)
    before, _ = training.state()
    result = training.step([[text("a")]])
    assert result.grad_norm == 0.0
    assert result.loss > 0
    assert_same_state(before, training.state()[0])


def test_a_step_that_is_not_finite_changes_nothing_and_names_its_sample():
    training = Training()
    training.step([[text("a")]])
    poison(training, "Q")
    before = training.state()
    result = training.step([[text("a")], [still("b")]], [[text("a"), text("Q")]], first=4)
    assert_same_state(before, training.state())
    assert all(p.grad is None for p in training.trainable.parameters())
    assert math.isnan(result.loss)
    assert (result.bad.reason, result.bad.is_spike) == ("the loss is nan", False)
    assert result.bad.samples[0][1].id == "Q"
    assert {sample.id for _, sample in result.bad.samples} == {"a", "b", "Q"}
    assert result.bad.text() == (
        "the loss is nan; packs ps_00000006; samples, the worst first: told 'Q' of ps_00000006 (loss nan)"
    )
    assert math.isfinite(result.loss_by_source["seen"])
    good = training.step([[text("a")]])
    assert good.bad is None
    assert good.loss < 20


def test_pixels_that_are_not_finite_name_the_sample_that_shows_them():
    training = Training()
    inputs = pack_inputs(make_batch([[still("a"), frames("b"), text("c"), codec("d")]]))
    pixels = inputs.pixels(torch.float32)
    pixels[16 + 3] = torch.inf
    object.__setattr__(inputs, "pixel_values", pixels)
    before = training.state()
    result = run_step(
        training.trainable,
        training.optimizer,
        [inputs],
        world=WORLD,
        guard=training.guard,
        sources=["told", "seen"],
        clip_norm=1.0,
        num_packs=1,
    )
    assert [sample.id for loss, sample in result.bad.samples if not math.isfinite(loss)] == ["b"]
    assert_same_state(before, training.state())


def test_a_gradient_that_is_not_finite_beside_a_finite_loss_is_caught():
    training = Training()
    training.trainable.model.lm_head.weight.register_hook(lambda grad: grad * torch.inf)
    before = training.state()
    result = training.step([[text("a")], [still("b")]])
    assert math.isfinite(result.loss)
    assert result.bad.reason.startswith("the gradient norm is ")
    assert "packs ps_0000000" in result.bad.text()
    losses = [loss for loss, _ in result.bad.samples]
    assert losses == sorted(losses, reverse=True)
    assert_same_state(before, training.state())


def test_stop_raises_with_the_packs_and_what_to_do():
    training = Training(guard=GuardConfig(on_not_finite="stop"))
    poison(training, "Q")
    before = training.state()
    with pytest.raises(BadStepError, match=r"packs ps_00000001; .*'Q'.*guard.on_not_finite=skip") as raised:
        training.step([[text("a")], [text("Q")]])
    assert len(raised.value.bad.samples) == 2
    assert_same_state(before, training.state())


def test_too_many_bad_steps_in_a_row_stop_the_run():
    training = Training(guard=GuardConfig(max_in_a_row=3))
    poison(training, "Q")
    for _ in range(2):
        assert training.step([[text("Q")]]).bad is not None
    assert training.step([[text("a")]]).bad is None
    for _ in range(2):
        training.step([[text("Q")]])
    with pytest.raises(BadStepError, match="3 bad steps in a row"):
        training.step([[text("Q")]])


def spike(guard, norm):
    broken = guard.not_finite(1.0, norm)
    reason = broken or guard.spike(norm)
    bad = None if reason is None else BadStep(reason=reason, is_spike=broken is None, samples=())
    guard.note(norm, bad)
    return bad


def test_a_spike_is_told_from_the_median_of_good_steps():
    guard = Guard(GuardConfig(spike_ratio=4.0))
    assert all(spike(guard, norm) is None for norm in [100.0, *[1.0] * 14])
    assert spike(guard, 50.0) is None, "15 steps do not tell what is usual"
    assert spike(guard, 4.0) is None
    bad = spike(guard, 4.1)
    assert bad.is_spike
    assert bad.reason == "the gradient norm 4.1 is above 4 x its median 1"
    assert 4.1 not in guard.norms
    assert spike(guard, math.nan).is_spike is False
    assert guard.num_in_a_row == 2
    assert spike(guard, 2.0) is None
    assert guard.num_in_a_row == 0


def test_a_spike_may_stop_where_what_is_not_finite_is_skipped():
    guard = Guard(GuardConfig(spike_ratio=2.0, on_spike="stop"))
    for _ in range(16):
        spike(guard, 1.0)
    assert spike(guard, math.inf) is not None
    with pytest.raises(BadStepError, match=r"guard\.on_spike=skip"):
        spike(guard, 3.0)


def test_without_a_ratio_nothing_is_a_spike():
    guard = Guard(GuardConfig())
    assert all(spike(guard, norm) is None for norm in [1.0] * 20 + [1e9])


def test_a_guard_goes_on_from_its_state():
    config = GuardConfig(spike_ratio=3.0, max_in_a_row=3)
    norms = [1.0, 1.2, 0.9] * 30 + [9.0, math.nan]
    whole, first = Guard(config), Guard(config)
    for norm in norms:
        spike(whole, norm)
        spike(first, norm)
    second = Guard(config)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.norms == whole.norms
    assert len(second.norms) == 64
    for guard in (whole, second):
        with pytest.raises(BadStepError):
            spike(guard, 8.0)
