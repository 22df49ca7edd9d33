"""Configuration of LLaVA-OneVision-2: the fields of a released config.json, and presets.

Enters: a released folder's config.json, or a preset's name. Leaves: config objects that transformers reads and writes.

The classes carry the released names, so that a folder saved here says `LlavaOnevision2ForConditionalGeneration` to every reader
that knows it. They are written in the classic form (`__init__`, keyword arguments), which every transformers 5 accepts.

Which numbers are whose: "8b" and "4b" are the released models (docs/model.md tells what is unverified in 4b); "2b" is ours, the
same encoder on the dimensions of Qwen3-1.7B; "tiny" is ours, for tests and demos, with Qwen's vocabulary so that the released
tokenizer and ids work.
"""

import copy
from typing import Any, Literal, Self, get_args

from transformers import PreTrainedConfig, Qwen3Config

from ov2_core.model.rope3d import axis_sizes

Preset = Literal["tiny", "2b", "4b", "8b"]


class OneVisionEncoderConfig(PreTrainedConfig):
    """OneVision-Encoder and the connector behind it: `vision_config` of a released config.json.

    Raises:
        ValueError: sizes that do not fit together, or a variant that this encoder does not implement; the field is named.
    """

    model_type = "onevision_encoder"
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 448,
        spatial_merge_size: int = 2,
        temporal_patch_size: int = 1,
        tokens_per_second: int = 1,
        frame_windows_size: int = 4,
        out_hidden_size: int = 4096,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-6,
        layer_norm_type: str = "layer_norm",
        rope_theta: float = 1e4,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        use_head: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("model_type", None)
        self.hidden_size = hidden_size
        """C: width."""
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.patch_size = patch_size
        """Side of a patch in pixels."""
        self.image_size = image_size
        self.spatial_merge_size = spatial_merge_size
        """m: m x m patches become a token."""
        self.temporal_patch_size = temporal_patch_size
        self.tokens_per_second = tokens_per_second
        self.frame_windows_size = frame_windows_size
        """Canvases along t that attend to each other; 0: all of a row."""
        self.out_hidden_size = out_hidden_size
        """Width of a token behind the connector: the language model's."""
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.layer_norm_type = layer_norm_type
        self.rope_theta = rope_theta
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.use_head = use_head
        super().__init__(**kwargs)
        self._check()

    @property
    def head_dim(self) -> int:
        """D."""
        return self.hidden_size // self.num_attention_heads

    @property
    def patch_values(self) -> int:
        """Values of a pixel row: channels x side x side."""
        return self.num_channels * self.patch_size**2

    def _check(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "spatial_merge_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"vision_config.{name} must be >= 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"got {self.hidden_size}"
            )
        axis_sizes(self.head_dim)
        known: dict[str, tuple[Any, ...]] = {
            "hidden_act": ("gelu",),
            "layer_norm_type": ("layer_norm",),
            "temporal_patch_size": (1,),
            "use_head": (False,),
            "attention_dropout": (0, 0.0),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"vision_config.{name} = {getattr(self, name)!r} is not implemented, only {values[0]!r}; "
                    "this is another variant of the encoder"
                )


class LlavaOnevision2Config(PreTrainedConfig):
    """The full model: `text_config` is a Qwen3Config, `vision_config` an OneVisionEncoderConfig; either may be a dict.

    Raises:
        ValueError: a language model other than Qwen3, or a connector whose width is not the language model's.
    """

    model_type = "llava_onevision2"
    sub_configs = {"text_config": Qwen3Config, "vision_config": OneVisionEncoderConfig}  # noqa: RUF012
    sub_configs_defaults = dict(sub_configs)  # noqa: RUF012  # the name since transformers 5.2x
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        text_config: dict[str, Any] | Qwen3Config | None = None,
        vision_config: dict[str, Any] | OneVisionEncoderConfig | None = None,
        image_token_id: int = 151655,
        video_token_id: int = 151656,
        vision_start_token_id: int = 151652,
        vision_end_token_id: int = 151653,
        tie_word_embeddings: bool | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("model_type", None)
        self.text_config = _text_config(text_config)
        self.vision_config = _vision_config(vision_config, out_hidden_size=self.text_config.hidden_size)
        self.image_token_id = image_token_id
        """The placeholder of a visual token; stills, frames and canvases all use it."""
        self.video_token_id = video_token_id
        self.vision_start_token_id = vision_start_token_id
        self.vision_end_token_id = vision_end_token_id
        if tie_word_embeddings is None:
            tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        self.tie_word_embeddings = tie_word_embeddings
        self.text_config.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)
        if self.vision_config.out_hidden_size != self.text_config.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size ({self.vision_config.out_hidden_size}) must be "
                f"text_config.hidden_size ({self.text_config.hidden_size})"
            )

    @classmethod
    def from_preset(cls, name: Preset, **overrides: Any) -> Self:
        """A named size; `overrides` replace fields, those of `text_config` and `vision_config` one by one.

        `from_preset("tiny", text_config={"vocab_size": 512}, image_token_id=500)`

        Raises:
            ValueError: an unknown name.
        """
        if name not in get_args(Preset):
            raise ValueError(f"preset must be one of {', '.join(get_args(Preset))}, got {name!r}")
        fields = copy.deepcopy(_PRESETS[name])
        for key, value in overrides.items():
            if key in cls.sub_configs and isinstance(value, dict):
                fields[key].update(value)
            else:
                fields[key] = value
        if isinstance(text := fields["text_config"], dict):
            for token in ("bos_token_id", "eos_token_id"):
                if text[token] is not None and text[token] >= text["vocab_size"]:
                    text[token] = None
        return cls(**fields)


def _text_config(given: dict[str, Any] | Qwen3Config | None) -> Qwen3Config:
    if given is None:
        given = copy.deepcopy(_PRESETS["8b"]["text_config"])
    if isinstance(given, Qwen3Config):
        return given
    kind = given.get("model_type", "qwen3") if isinstance(given, dict) else type(given).__name__
    if kind != "qwen3":
        raise ValueError(
            f"text_config.model_type must be 'qwen3', got {kind!r}; other language models are not implemented"
        )
    return Qwen3Config(**{key: value for key, value in given.items() if key != "model_type"})


def _vision_config(
    given: dict[str, Any] | OneVisionEncoderConfig | None, *, out_hidden_size: int
) -> OneVisionEncoderConfig:
    if isinstance(given, OneVisionEncoderConfig):
        return given
    return OneVisionEncoderConfig(**{"out_hidden_size": out_hidden_size, **(given or {})})


def _qwen3(*, hidden: int, ffn: int, layers: int, heads: int, theta: float, tied: bool, context: int) -> dict[str, Any]:
    return {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": tied,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


# Context lengths are those of the Qwen3 models and are not given by the released format's description.
_PRESETS: dict[str, dict[str, Any]] = {
    "8b": {
        "text_config": _qwen3(hidden=4096, ffn=12288, layers=36, heads=32, theta=8e6, tied=False, context=262144),
        "vision_config": {},
    },
    "4b": {
        "text_config": _qwen3(hidden=2560, ffn=9728, layers=36, heads=32, theta=5e6, tied=False, context=262144),
        "vision_config": {},
    },
    "2b": {
        "text_config": _qwen3(hidden=2048, ffn=6144, layers=28, heads=16, theta=1e6, tied=True, context=40960),
        "vision_config": {},
    },
    "tiny": {
        "text_config": {
            **_qwen3(hidden=64, ffn=128, layers=2, heads=4, theta=1e6, tied=False, context=32768),
            "num_key_value_heads": 2,
            "head_dim": 32,
        },
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    },
}
