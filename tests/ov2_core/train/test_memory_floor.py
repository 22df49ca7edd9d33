"""The floor of memory: its parts against counts made another way."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from step_inputs import make_batch, mixed_pack, small_config, small_model

from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.train.config import LoraConfig, PartConfig, TrainConfig
from ov2_core.train.memory import memory_floor
from ov2_core.train.optimizer import make_optimizer
from ov2_core.train.pack_inputs import pack_inputs
from ov2_core.train.trainable import make_trainable

PLAIN = TrainConfig(name="test", version=1, activation_checkpointing=False)
FROZEN = PartConfig(train=False)
SIZES = {"world_size": 1, "tokens": 4096, "patches": 8192, "targets": 900}


@pytest.mark.parametrize("recipe", [{}, {"visual": FROZEN}, {"visual": FROZEN, "language": FROZEN}])
def test_what_stays_is_what_a_step_leaves_behind(recipe):
    config = replace(PLAIN, **recipe)
    made = make_trainable(small_model(), config, device=torch.device("cpu"))
    optimizer = make_optimizer(made, config)
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    floor = memory_floor(small_config(), config, **SIZES)
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    assert floor.weights == sum(p.nbytes for p in made.parameters())
    assert floor.gradients == sum(p.grad.nbytes for p in made.parameters() if p.grad is not None)
    assert floor.optimizer == sum(t.nbytes for t in moments)
    assert floor.gathered == 0


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_count_once(tied):
    config = small_config(tied=tied)
    weights = sum(p.nbytes for p in small_model(tied=tied).parameters())
    assert memory_floor(config, PLAIN, **SIZES).weights == weights


def test_low_rank_updates_count_what_peft_adds():
    pytest.importorskip("peft")
    config = replace(PLAIN, lora=LoraConfig(rank=4))
    made = make_trainable(small_model(), config, device=torch.device("cpu"))
    floor = memory_floor(small_config(), config, **SIZES)
    assert floor.weights == sum(p.nbytes for p in made.parameters())
    assert floor.gradients == sum(p.nbytes for p in made.parameters() if p.requires_grad)


def test_kept_activations_are_less_than_what_autograd_keeps_and_near_it():
    """Tensors that backward asks for, each storage once, weights left out. The floor is below, not a fraction of it."""
    inputs = pack_inputs(make_batch([mixed_pack()]))
    found = {}
    for again in (False, True):
        config = replace(PLAIN, activation_checkpointing=again)
        made = make_trainable(small_model(), config, device=torch.device("cpu"))
        weights = {p.untyped_storage().data_ptr() for p in made.parameters()}
        kept: dict[int, int] = {}

        def note(tensor, kept=kept, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            alive = made(inputs, 1.0)
        assert alive[0].requires_grad
        floor = memory_floor(
            small_config(),
            config,
            world_size=1,
            tokens=inputs.num_tokens,
            patches=inputs.num_patches,
            targets=inputs.num_targets,
        )
        found[again] = (floor.kept, sum(kept.values()))
    (whole_floor, whole), (again_floor, again) = found[False], found[True]
    assert 0.5 * whole < whole_floor < whole
    assert 0.5 * again < again_floor < again
    assert again_floor < 0.3 * whole_floor


def test_ranks_share_what_stays_and_each_keeps_its_own_activations():
    config = LlavaOnevision2Config.from_preset("8b")
    one, eight = (
        memory_floor(config, PLAIN, **{**SIZES, "world_size": n, "compute_dtype": torch.bfloat16}) for n in (1, 8)
    )
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(eight, name) == pytest.approx(getattr(one, name) / 8, rel=1e-6)
    assert (eight.kept, eight.working, eight.gathered) == (one.kept, one.working, one.gathered)
    layer = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288
    assert eight.gathered > 2 * 2 * (2 * 4096 * 151936 + layer)


def test_chunks_bound_the_logits_whatever_the_pack():
    config = LlavaOnevision2Config.from_preset("4b")
    frozen = replace(PLAIN, language=FROZEN, visual=FROZEN)
    sizes = {**SIZES, "tokens": 1_000, "patches": 0}
    small, large = (memory_floor(config, frozen, **{**sizes, "targets": n}).working for n in (400, 100_000))
    assert small == 400 * 151936 * 4
    assert large == pytest.approx(256 << 20, rel=0.01)


def test_text_alone_keeps_nothing_for_a_frozen_language_model():
    frozen = replace(PLAIN, visual=FROZEN, language=FROZEN)
    floor = memory_floor(small_config(), frozen, **{**SIZES, "patches": 0})
    assert floor.kept == 2 * 4096 * 64 * 4
