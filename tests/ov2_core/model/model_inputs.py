"""Small models and inputs for the tests of ov2_core.model."""

import torch

from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration, OneVisionEncoderConfig
from ov2_core.model.patch_order import block_order

IMAGE = 500


def small_vision_config(**fields):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 48,
        **fields,
    }
    return OneVisionEncoderConfig(**sizes)


def small_model(*, seed=0, tie_word_embeddings=False, **vision):
    config = LlavaOnevision2Config.from_preset(
        "tiny",
        text_config={"vocab_size": 512, "hidden_size": 48, "intermediate_size": 64},
        vision_config={**small_vision_config(**vision).to_diff_dict(), "out_hidden_size": 48},
        image_token_id=IMAGE,
        tie_word_embeddings=tie_word_embeddings,
    )
    torch.manual_seed(seed)
    model = LlavaOnevision2ForConditionalGeneration(config).eval()
    # Weights larger than the usual 0.02, so that a slip in attention or rotation shows in the outputs.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif "visual" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def codec_positions(grid, merge, *, seed=0):
    """As a codec selection makes them: each m x m block of a canvas has a place of its own in some frame. Block order."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = sum(t * h * w for t, h, w in grid) // merge**2
    corner = torch.stack(
        [
            torch.randint(0, 90, (num_blocks,), generator=generator).sort().values,
            torch.randint(0, 9, (num_blocks,), generator=generator) * merge,
            torch.randint(0, 9, (num_blocks,), generator=generator) * merge,
        ],
        dim=1,
    )
    inside = torch.cartesian_prod(torch.arange(1), torch.arange(merge), torch.arange(merge)).view(-1, 3)
    return (corner[:, None] + inside).view(-1, 3).to(torch.int32)


def to_raster(in_block_order, grid, merge):
    """Rows in block order to raster order."""
    raster = torch.empty_like(in_block_order)
    raster[block_order(grid, merge=merge)] = in_block_order
    return raster


def pixels_for(grid, config, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(t * h * w for t, h, w in grid), config.patch_values, generator=generator)


def prompt_for(grid, config, *, seed=0, before=5, after=6):
    """[1, S] ids: text, a placeholder for each token of the grid, text."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(t * h * w for t, h, w in grid) // config.spatial_merge_size**2
    text = torch.randint(0, 400, (before + after,), generator=generator)
    return torch.cat([text[:before], torch.full((num_tokens,), IMAGE), text[before:]])[None]
