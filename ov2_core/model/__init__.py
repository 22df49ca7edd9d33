"""LLaVA-OneVision-2: encoder, connector, Qwen3. Importing this package registers the model with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from ov2_core.model.config import LlavaOnevision2Config, OneVisionEncoderConfig
from ov2_core.model.encoder import OneVisionEncoder
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration, LlavaOnevision2Model

__all__ = [
    "LlavaOnevision2Config",
    "LlavaOnevision2ForConditionalGeneration",
    "LlavaOnevision2Model",
    "OneVisionEncoder",
    "OneVisionEncoderConfig",
]

AutoConfig.register("llava_onevision2", LlavaOnevision2Config, exist_ok=True)
AutoModel.register(LlavaOnevision2Config, LlavaOnevision2Model, exist_ok=True)
AutoModelForImageTextToText.register(LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration, exist_ok=True)
