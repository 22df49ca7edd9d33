"""Recipes and overrides: what a name means, and what is refused before any work is done."""

import dataclasses

import pytest

from ov2_core.config import (
    FAST,
    EvidenceConfig,
    GroupConfig,
    ScoreConfig,
    TokenizerConfig,
    digest,
    recipe,
    with_overrides,
    with_settings,
)


@pytest.mark.parametrize(
    ("name", "mode", "policy", "budget"),
    [
        ("codec-384", "codec", "saliency", 384),
        ("evidence-16", "codec", "evidence", 16),
        ("codec-32-fast", "codec", "saliency", 32),
        ("evidence-16-fast", "codec", "evidence", 16),
        ("uniform-1", "uniform", "saliency", 1),
        ("authors-legacy-12", "codec", "legacy", 12),
    ],
)
def test_recipe_names_mode_policy_and_budget(name, mode, policy, budget):
    config = recipe(name).tokenizer
    assert (config.mode, config.policy, config.budget) == (mode, policy, budget)


@pytest.mark.parametrize(
    "name",
    ["codec", "codec-0", "codec--4", "codec-4x", "jpeg-4", "", "uniform-0", "codec-3", "uniform-8-fast", "codec-fast"],
)
def test_recipe_refuses_other_names_and_impossible_budgets(name):
    with pytest.raises(ValueError, match=r"unknown recipe|budget"):
        recipe(name)


def test_fast_recipes_differ_in_what_costs_time_alone():
    for name in ("codec-16", "evidence-16"):
        plain, fast = dataclasses.asdict(recipe(name).tokenizer), dataclasses.asdict(recipe(f"{name}-fast").tokenizer)
        assert {key for key in plain if plain[key] != fast[key]} == set(FAST)
        assert not recipe(f"{name}-fast").tokenizer.reads_vectors


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


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        *((f"{name}={value}", name) for name in (
            "groups.spike_ratio", "groups.snap_share", "groups.uniform_share", "score.motion_weight", "score.residual_weight",
            "score.intra_weight", "evidence.event_period_seconds", "evidence.max_event_share",
        ) for value in ("nan", "inf", "-1")),
        *((f"{name}={value}", name) for name in (
            "budget", "patch_px", "merge", "max_frames", "area_px", "still_area_px", "max_candidates", "jpeg_quality",
            "saliency_candidates_per_canvas", "max_source_px", "groups.canvases_per_group", "groups.min_frames",
            "groups.median_window_frames", "evidence.event_blocks",
        ) for value in ("0", "-1")),
        ("budget=3", "budget"), ("patch_px=15", "patch_px"), ("patch_px=10000", "patch_px"), ("merge=10000", "merge"),
        ("groups.max_canvases_per_group=3", "groups.max_canvases_per_group"),
        ("groups.canvases_per_group=5", "groups.min_frames"), ("groups.min_frames=97", "groups.min_frames"),
        ("groups.median_window_frames=1000001", "groups.median_window_frames"), ("timestamp_decimal=7", "timestamp_decimal"),
        ("frames_by_seconds=[[8,8],[4,16]]", "frames_by_seconds"), ("frames_by_seconds=[[8,0]]", "frames_by_seconds"),
        ("frames_by_seconds=[[0,8]]", "frames_by_seconds"), ("mode=film", "mode"), ("policy=film", "policy"),
    ],
)  # fmt: skip
def test_config_that_cannot_be_met_names_its_field(settings: str, field: str) -> None:
    with pytest.raises(ValueError, match=field.rpartition(".")[2]) as caught:
        with_settings(recipe("evidence-32").tokenizer, [settings])
    assert str(caught.value).partition("got ")[0].count(field) >= 1 or "--set" in str(caught.value)


def test_config_made_in_python_refuses_names_it_does_not_know() -> None:
    for field, make in (
        ("mode", lambda: TokenizerConfig(mode="film")),
        ("policy", lambda: TokenizerConfig(policy="best")),
        ("jpeg_subsampling", lambda: TokenizerConfig(jpeg_subsampling="4:1:1")),
        ("score.normalisation", lambda: ScoreConfig(normalisation="none")),
    ):
        with pytest.raises(ValueError, match=f"{field} must be one of"):
            make()
    with pytest.raises(ValueError, match=r"score\.motion_weight.* > 0"):
        ScoreConfig(motion_weight=0, residual_weight=0, intra_weight=0)


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
