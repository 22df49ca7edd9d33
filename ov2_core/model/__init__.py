"""LLaVA-OneVision-2: encoder, connector, Qwen3. Importing this package registers the model with transformers' Auto classes."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from ov2_core.model.config import LlavaOnevision2Config, OneVisionEncoderConfig
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration, LlavaOnevision2Model
from ov2_core.model.processor import LlavaOnevision2Processor

if TYPE_CHECKING:
    from ov2_core.generate import load

Config = LlavaOnevision2Config
"""The short name: `Config.from_preset("tiny" | "2b" | "4b" | "8b")`."""

__all__ = [
    "Config",
    "LlavaOnevision2Config",
    "LlavaOnevision2ForConditionalGeneration",
    "LlavaOnevision2Model",
    "LlavaOnevision2Processor",
    "OneVisionEncoder",
    "OneVisionEncoderConfig",
    "load",
]

AutoConfig.register("llava_onevision2", LlavaOnevision2Config, exist_ok=True)
AutoModel.register(LlavaOnevision2Config, LlavaOnevision2Model, exist_ok=True)
AutoModelForImageTextToText.register(LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaOnevision2Config, LlavaOnevision2Processor, exist_ok=True)


def __getattr__(name: str) -> Any:
    """`load` comes when it is asked for: it brings the decoders along, which the model itself does not need."""
    if name == "load":
        from ov2_core.generate import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
