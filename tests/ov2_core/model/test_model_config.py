"""Configs and presets: released fields in, released fields out; variants that are not implemented are refused by name."""

import json

import pytest

pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

from ov2_core.model import LlavaOnevision2Config, OneVisionEncoderConfig


@pytest.mark.parametrize(
    ("preset", "hidden", "ffn", "layers", "heads", "theta", "tied"),
    [
        ("8b", 4096, 12288, 36, 32, 8e6, False),
        ("4b", 2560, 9728, 36, 32, 5e6, False),
        ("2b", 2048, 6144, 28, 16, 1e6, True),
    ],
)
def test_preset_has_its_numbers(preset, hidden, ffn, layers, heads, theta, tied):
    config = LlavaOnevision2Config.from_preset(preset)
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (hidden, ffn, layers)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (heads, 8, 128)
    assert text.rope_parameters["rope_theta"] == theta
    assert text.vocab_size == 151936
    assert config.tie_word_embeddings is text.tie_word_embeddings is tied
    assert (vision.num_hidden_layers, vision.hidden_size, vision.num_attention_heads) == (24, 1024, 16)
    assert (vision.intermediate_size, vision.patch_size, vision.spatial_merge_size) == (4096, 14, 2)
    assert (vision.frame_windows_size, vision.rope_theta, vision.layer_norm_eps) == (4, 1e4, 1e-6)
    assert vision.out_hidden_size == hidden
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151652, 151653)


def test_preset_overrides_replace_single_fields():
    config = LlavaOnevision2Config.from_preset(
        "tiny", text_config={"vocab_size": 512}, vision_config={"frame_windows_size": 2}, image_token_id=500
    )
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (512, 64)
    assert (config.vision_config.frame_windows_size, config.vision_config.out_hidden_size) == (2, 64)
    assert config.image_token_id == 500
    assert LlavaOnevision2Config.from_preset("tiny").text_config.vocab_size == 151936, "presets must not be changed"


def test_preset_of_no_name_lists_the_names():
    with pytest.raises(ValueError, match=r"tiny, 2b, 4b, 8b.*'7b'"):
        LlavaOnevision2Config.from_preset("7b")


def test_config_round_trip_through_json(tmp_path):
    config = LlavaOnevision2Config.from_preset("tiny", vision_config={"frame_windows_size": 3})
    config.save_pretrained(tmp_path)
    again = LlavaOnevision2Config.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_onevision2"


def test_config_reads_the_older_spelling_of_rope_theta():
    config = LlavaOnevision2Config(
        text_config={"model_type": "qwen3", "hidden_size": 64, "rope_theta": 8e6, "rope_scaling": None},
        vision_config={"out_hidden_size": 64},
    )
    assert config.text_config.rope_parameters["rope_theta"] == 8e6


def test_tying_at_the_top_level_wins_over_the_language_models():
    text = {"hidden_size": 64, "tie_word_embeddings": True}
    assert LlavaOnevision2Config(text_config=text).tie_word_embeddings is True
    config = LlavaOnevision2Config(text_config=text, tie_word_embeddings=False)
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100}, "multiple of num_attention_heads"),
        ({"hidden_size": 256}, "multiples of 32, got 16"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type"),
        ({"use_head": True}, "use_head"),
        ({"temporal_patch_size": 2}, "temporal_patch_size"),
        ({"spatial_merge_size": 0}, "spatial_merge_size must be >= 1"),
    ],
)
def test_vision_config_that_is_not_implemented_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        OneVisionEncoderConfig(**fields)


def test_other_language_models_and_widths_are_refused():
    with pytest.raises(ValueError, match="must be 'qwen3', got 'qwen3_moe'"):
        LlavaOnevision2Config(text_config={"model_type": "qwen3_moe"})
    with pytest.raises(ValueError, match=r"out_hidden_size \(32\) must be text_config.hidden_size \(64\)"):
        LlavaOnevision2Config(text_config={"hidden_size": 64}, vision_config={"out_hidden_size": 32})
