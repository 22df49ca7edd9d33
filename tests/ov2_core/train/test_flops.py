"""Operations of a step against torch's own count of what ran."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from step_inputs import codec, frames, make_batch, mixed_pack, small_config, small_model, still, text
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ov2_core.model.config import LlavaOnevision2Config
from ov2_core.train.config import LoraConfig, PartConfig, TrainConfig
from ov2_core.train.flops import language_flops, micro_batch_flops
from ov2_core.train.pack_inputs import pack_inputs
from ov2_core.train.step import backward
from ov2_core.train.trainable import make_trainable

FROZEN = PartConfig(train=False)
RECIPES = {
    "whole model": {},
    "alignment": {"visual": FROZEN, "language": FROZEN},
    "frozen encoder": {"visual": FROZEN},
    "encoder alone": {"connector": FROZEN, "language": FROZEN},
    "language alone": {"visual": FROZEN, "connector": FROZEN},
}
PACKS = {
    "mixed": [mixed_pack()],
    "text": [[text("a"), text("b")]],
    "pictures": [[codec("a")], [still("b"), frames("c")]],
}


def counted(made, inputs):
    """Operations that torch saw, with attention as plain products, for its counter knows no fused attention of a CPU; and with
    the product that adds to the output layer's gradient in place, which it does not know either."""
    made.zero_grad(set_to_none=True)
    missing = {torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=missing) as counter:
        backward(made, inputs, 1.0)
    return counter.get_total_flops()


def above_the_diagonal(config, recipe, inputs):
    """Operations of pairs that the causal mask forbids: plain products make them, the mathematics does not ask for them."""
    sees = inputs.num_patches > 0
    through = recipe.language.train or ((recipe.visual.train or recipe.connector.train) and sees)
    text_config = config.text_config
    pairs = sum(n * n - n * (n + 1) // 2 for n in inputs.segments.lengths)
    return (
        4
        * text_config.num_hidden_layers
        * text_config.num_attention_heads
        * text_config.head_dim
        * pairs
        * (3 if through else 1)
    )


@pytest.mark.parametrize("packs", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_operations_are_those_that_torch_counts(recipe, packs):
    config = TrainConfig(name="test", version=1, activation_checkpointing=False, **recipe)
    made = make_trainable(small_model(), config, device=torch.device("cpu"))
    inputs = pack_inputs(make_batch(packs))
    masked = above_the_diagonal(made.model.config, config, inputs)
    expected = micro_batch_flops(made.model.config, config, inputs).total
    num_counted = counted(made, inputs)
    assert expected + masked == num_counted


def test_checkpointing_costs_more_and_counts_the_same():
    inputs = pack_inputs(make_batch([mixed_pack()]))
    found = {}
    for on in (False, True):
        config = TrainConfig(name="test", version=1, activation_checkpointing=on)
        made = make_trainable(small_model(), config, device=torch.device("cpu"))
        found[on] = (counted(made, inputs), micro_batch_flops(made.model.config, config, inputs))
    assert found[True][0] > 1.2 * found[False][0]
    assert found[True][1] == found[False][1]


def test_low_rank_updates_count_a_frozen_model_that_gradients_pass():
    inputs = pack_inputs(make_batch([[text("a")]]))
    config = TrainConfig(name="test", version=1, lora=LoraConfig(rank=4))
    found = micro_batch_flops(small_config(), config, inputs)
    products, attention = language_flops(small_config(), inputs.segments.lengths)
    assert found.language == 2 * products + 3 * attention


def test_a_token_of_the_8b_costs_twice_its_weights():
    config = LlavaOnevision2Config.from_preset("8b")
    text_config = config.text_config
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 12288
    assert language_flops(config, [1]) == (36 * 2 * layer, 36 * 4 * 32 * 128)
    assert language_flops(config, [1] * 7) == (7 * 36 * 2 * layer, 7 * 36 * 4 * 32 * 128)
    assert language_flops(config, [7]) == (7 * 36 * 2 * layer, 28 * 36 * 4 * 32 * 128)
    assert text_config.num_hidden_layers == 36
