"""Recipes and overrides: what a name means, and what is refused before any work is done."""

import pytest

from ov2_core.config import EvidenceConfig, GroupConfig, TokenizerConfig, digest, recipe, with_overrides, with_settings


@pytest.mark.parametrize(
    ("name", "mode", "policy", "budget"),
    [
        ("codec-384", "codec", "saliency", 384),
        ("evidence-16", "codec", "evidence", 16),
        ("uniform-1", "uniform", "saliency", 1),
    ],
)
def test_recipe_names_mode_policy_and_budget(name, mode, policy, budget):
    config = recipe(name).tokenizer
    assert (config.mode, config.policy, config.budget) == (mode, policy, budget)


@pytest.mark.parametrize("name", ["codec", "codec-0", "codec--4", "codec-4x", "jpeg-4", "", "uniform-0", "codec-3"])
def test_recipe_refuses_other_names_and_impossible_budgets(name):
    with pytest.raises(ValueError, match=r"unknown recipe|budget"):
        recipe(name)


def test_overrides_set_nested_fields_and_change_the_digest():
    base = recipe("codec-32")
    config = with_overrides(
        base, {"policy": "evidence", "groups.spike_ratio": "5", "shards.max_samples": "7", "tokenizer.budget": "64"}
    )
    assert config.tokenizer.policy == "evidence"
    assert config.tokenizer.groups.spike_ratio == 5.0
    assert config.shards.max_samples == 7
    assert config.tokenizer.budget == 64
    assert digest(config) != digest(base) == digest(recipe("codec-32"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("polcy", "x"),
        ("policy", "best"),
        ("budget", "many"),
        ("groups", "1"),
        ("budget.x", "1"),
        ("recipe", "x"),
        ("budget", "2"),
        ("patch_px", "15"),
    ],
)
def test_overrides_name_the_bad_field(key, value):
    with pytest.raises(ValueError, match=key.split(".")[0]):
        with_overrides(recipe("codec-32"), {key: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupConfig(canvases_per_group=1),
        lambda: GroupConfig(min_frames=3),
        lambda: GroupConfig(median_window_frames=4),
        lambda: GroupConfig(uniform_share=1.5),
        lambda: GroupConfig(snap_share=0.5),
        lambda: EvidenceConfig(event_blocks=0),
        lambda: TokenizerConfig(max_candidates=2),
        lambda: TokenizerConfig(area_px=100),
        lambda: TokenizerConfig(jpeg_quality=0),
        lambda: TokenizerConfig(mode="uniform", budget=-1),
    ],
)
def test_config_refuses_impossible_values(make):
    with pytest.raises(ValueError, match="must"):
        make()


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_need_each_other_may_come_in_any_order(order: int) -> None:
    settings = ["budget=2", "groups.canvases_per_group=2"][::order]
    config = with_settings(recipe("codec-32").tokenizer, settings)
    assert (config.budget, config.groups.canvases_per_group) == (2, 2)
    with pytest.raises(ValueError, match="budget"):
        with_settings(recipe("codec-32").tokenizer, settings[:1] if order == 1 else settings[1:])


def test_of_two_settings_of_one_field_the_last_counts() -> None:
    assert with_settings(recipe("codec-32"), ["tokenizer.budget=8", "tokenizer.budget=16"]).tokenizer.budget == 16


@pytest.mark.parametrize("text", ["budget", "=3", "groups.nothing=1", "budget.x=1", "groups=1", "policy=none"])
def test_settings_that_are_none_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="--set"):
        with_settings(recipe("codec-32").tokenizer, [text])
