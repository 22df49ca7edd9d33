"""An encoder whose features are pixels, so that the canary drawn into a clip can be read out of its features.

Enters: a folder. Leaves: a model there, of random weights but for the vision tower, which copies. Design: the layers add nothing,
the patch embedding copies the mean of the three colours, and the last LayerNorm scales; so a feature tells dark from bright
pixel by pixel, and one that is bound to another video, frame or place says so.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ov2_core.evals.clips import Canary, read_canary
from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration
from ov2_core.model.weights import save_weights

_PATCH_PX = 14
_PIXELS = _PATCH_PX * _PATCH_PX
_WIDTH = 256


def write_transparent_model(folder: Path, *, vocab_size: int = 512, image_token_id: int = 500) -> Path:
    """The model that lets each patch's grey pixels through, saved in `folder`; encode with stage "unmerged"."""
    config = LlavaOnevision2Config.from_preset(
        "tiny",
        text_config={"vocab_size": vocab_size},
        vision_config={"hidden_size": _WIDTH, "num_hidden_layers": 1},
        image_token_id=image_token_id,
    )
    model = LlavaOnevision2ForConditionalGeneration(config)
    with torch.no_grad():
        visual: Any = model.visual
        copy = torch.zeros(_WIDTH, 3, _PIXELS)
        copy[torch.arange(_PIXELS), :, torch.arange(_PIXELS)] = 1 / 3
        visual.embeddings.patch_embedding.weight.copy_(copy.view(_WIDTH, 3, _PATCH_PX, _PATCH_PX))
        for layer in visual.encoder.layers:
            for linear in (layer.self_attn.proj, layer.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
    save_weights(model, folder)
    config.save_pretrained(folder)
    return folder


def read_feature_canary(features_4D: Tensor) -> Canary:
    """The canary that the four patches of a block show.

    Args:
        features_4D: unmerged features of the transparent model, the block's patches in order (top left, top right, bottom left,
            bottom right). Values from 196 on stand where an input of 0 would, and tell dark from bright.

    Raises:
        ValueError: they are not of one whole block.
    """
    bright = features_4D[:, :_PIXELS] > features_4D[:, 200:201]
    block = bright.view(2, 2, _PATCH_PX, _PATCH_PX).permute(0, 2, 1, 3).reshape(2 * _PATCH_PX, 2 * _PATCH_PX)
    return read_canary((block.numpy() * 255).astype(np.uint8))
