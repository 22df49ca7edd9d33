"""Parts, groups and rates."""

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st
from step_inputs import small_model

from jobs.train_recipes import RECIPES, training
from ov2_core.train.config import GuardConfig, PartConfig, TrainConfig
from ov2_core.train.optimizer import freeze, learning_rate, make_optimizer, part_of, set_learning_rates

PART = PartConfig(learning_rate=1.0, min_learning_rate=0.1)


def rates(num_steps, *, warmup_share=0.0, part=PART, beyond=0):
    return [
        learning_rate(step, part, num_steps=num_steps, warmup_share=warmup_share) for step in range(num_steps + beyond)
    ]


def test_rates_rise_linearly_then_fall_by_a_cosine():
    got = rates(104, warmup_share=0.04, beyond=3)
    assert got[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for step in range(5, 104):
        assert got[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 5) / 98)) / 2)
    assert got[103:] == [0.1] * 4


@given(num_steps=st.integers(2, 300), warmup_share=st.floats(0, 0.99))
def test_rates_stay_between_bounds_and_have_one_peak(num_steps, warmup_share):
    got = rates(num_steps, warmup_share=warmup_share, beyond=2)
    peak = got.index(max(got))
    assert all(0 < rate <= 1.0 for rate in got)
    assert got[: peak + 1] == sorted(got[: peak + 1])
    assert got[peak:] == sorted(got[peak:], reverse=True)
    assert got[-1] == 0.1


def test_a_single_step_has_the_full_rate():
    assert rates(1, warmup_share=0.002) == rates(1) == [1.0]


@pytest.mark.parametrize("num_steps", [2, 3, 500, 100_000])
def test_published_warmup_is_a_five_hundredth_and_at_least_a_step(num_steps):
    warmup = math.ceil(num_steps * 0.002)
    at = [learning_rate(step, PART, num_steps=num_steps, warmup_share=0.002) for step in range(warmup)]
    assert at[-1] == 1.0
    assert at[0] == pytest.approx(1 / warmup)


def test_every_parameter_has_its_part():
    parts = {name: part_of(name) for name, _ in small_model().named_parameters()}
    assert set(parts.values()) == {"visual", "connector", "language"}
    for name, part in parts.items():
        assert (part == "connector") == ("visual.merger" in name)
        assert (part == "language") == name.startswith(("model.language_model.", "lm_head."))


@pytest.mark.parametrize("tied", [False, True])
def test_groups_hold_each_trained_parameter_once_and_decay_matrices_alone(tied):
    model = small_model(tied=tied)
    config = TrainConfig(name="test", version=1, weight_decay=0.1, connector=PartConfig(learning_rate=1e-4))
    freeze(model, config)
    optimizer = make_optimizer(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(seen) == len(set(seen)) == len(names)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0), names[parameter]
            assert group["part"] == part_of(names[parameter])
    assert all(group["betas"] == (0.9, 0.95) and group["eps"] == 1e-5 for group in optimizer.param_groups)


def test_each_part_has_its_own_rate():
    model = small_model()
    config = TrainConfig(
        name="test",
        version=1,
        visual=PartConfig(train=False),
        connector=PartConfig(learning_rate=1e-3, min_learning_rate=1e-5),
        warmup_share=0.1,
    )
    freeze(model, config)
    optimizer = make_optimizer(model, config)
    assert set_learning_rates(optimizer, config, 0, num_steps=100) == pytest.approx(
        {"connector": 1e-4, "language": 1e-6}
    )
    last = set_learning_rates(optimizer, config, 99, num_steps=100)
    assert last == {"connector": 1e-5, "language": 1e-6}
    assert {group["lr"] for group in optimizer.param_groups} == set(last.values())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_what_is_published(name):
    model = small_model()
    config = training(name)
    freeze(model, config)
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == ({"connector"} if name == "alignment" else {"visual", "connector", "language"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_batch": 0}, "global_batch must be >= 1"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"eval_every": 2}, "held_out_packs"),
        (
            {
                "visual": PartConfig(train=False),
                "connector": PartConfig(train=False),
                "language": PartConfig(train=False),
            },
            "nothing is trained",
        ),
        ({"schedule_steps": 0}, "schedule_steps"),
    ],
)
def test_configs_that_cannot_train_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(name="test", version=1, **fields)


def test_parts_of_configs_that_cannot_train_are_refused():
    with pytest.raises(ValueError, match="min_learning_rate"):
        PartConfig(learning_rate=1e-6, min_learning_rate=1e-5)
    with pytest.raises(ValueError, match="spike_ratio"):
        GuardConfig(spike_ratio=0.5)
    with pytest.raises(ValueError, match="max_in_a_row"):
        GuardConfig(max_in_a_row=0)


def test_a_global_batch_must_divide_over_ranks():
    config = TrainConfig(name="test", version=1, global_batch=8, micro_batch=2)
    assert [config.accumulation(ranks) for ranks in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ValueError, match="micro_batch x ranks = 2 x 3, got 8"):
        config.accumulation(3)
