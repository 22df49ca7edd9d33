"""What a source will give and cost, from its probe alone: tokens, bytes, CPU seconds.

Enters: a probe and a tokenizer config. Leaves: a prediction. CPU seconds are a sum of terms, whose constants `ov2 bench cost`
fits; how many frames are decoded and looked at follows from how many keyframes the demuxer has seen, and how many frames that no
other needs.
"""

import math
from dataclasses import dataclass

import numpy as np

from ov2_core.config import TokenizerConfig
from ov2_core.tokenizer.frames import FEWEST_LOOKED_AT_PER_IMAGE, SHORTER_STEP, round_size
from schemas.video import ProbeRecord

COST_SECONDS = {
    "sample": 0.00224,
    "frame": 0.000189,
    "mbyte": 0.145,
    "mpx h264": 0.00118,
    "mpx hevc": 0.0013,
    "mpx vp9": 0.00115,
    "mpx av1": 0.000528,
    "mpx mpeg4": 0.0,
    "mpx still": 0.00906,
    "image_mpx saliency": 0.0101,
    "image_mpx evidence": 0.0112,
    "image_mpx uniform": 0.0057,
}
"""CPU seconds by the terms of `cost_terms`, fitted by `ov2 bench cost`."""
_LIKE_CODEC = {"mpeg1video": "mpeg4", "mpeg2video": "mpeg4", "h263": "mpeg4", "mjpeg": "mpeg4", "vp8": "vp9"}
"""Codecs that were not measured cost as one that was; all others as hevc."""
_LIKE_POLICY = {"legacy": "saliency"}
"""Likewise for policies."""
_JPEG_BYTES_PER_PX = ((1, 0.03), (50, 0.10), (75, 0.16), (85, 0.22), (95, 0.42), (100, 0.90))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a source will give and cost."""

    tokens: int
    """Merged visual tokens."""
    bytes: int
    """Of its members in the tar."""
    cpu_seconds: float


def predict(probe: ProbeRecord, config: TokenizerConfig) -> Prediction:
    """Tokens, tar bytes and CPU seconds of a source; from its probe alone."""
    still = probe.media == "image"
    area_px = config.still_area_px if still else config.area_px
    width_blocks, height_blocks = size_in_blocks(probe.width_px, probe.height_px, area_px, config.block_px)
    if config.policy == "legacy" and not still:
        size = round_size(probe.width_px, probe.height_px, area_px=area_px, multiple_px=config.block_px)
        width_blocks, height_blocks = size[0] // config.block_px, size[1] // config.block_px
    num_images = 1 if still else predict_images(probe, config)
    blocks = width_blocks * height_blocks
    image_px = blocks * config.block_px**2
    quality, bytes_per_px = zip(*_JPEG_BYTES_PER_PX, strict=True)
    jpeg_bytes = image_px * float(np.interp(config.jpeg_quality, quality, bytes_per_px))
    if config.jpeg_subsampling == "4:4:4":
        jpeg_bytes *= 1.3
    position_bytes = 12 * blocks * config.merge**2
    return Prediction(
        tokens=num_images * blocks,
        bytes=math.ceil(num_images * (jpeg_bytes + position_bytes + 2048) + 8192),
        cpu_seconds=round(sum(COST_SECONDS[name] * term for name, term in cost_terms(probe, config).items()), 4),
    )


def cost_terms(probe: ProbeRecord, config: TokenizerConfig) -> dict[str, float]:
    """What CPU seconds are a sum of: frames looked at, and millions of pixels (mpx) of frames decoded and of images made."""
    still = probe.media == "image"
    kind = "uniform" if still or config.mode == "uniform" else _LIKE_POLICY.get(config.policy, config.policy)
    columns, rows = size_in_blocks(
        probe.width_px, probe.height_px, config.still_area_px if still else config.area_px, config.block_px
    )
    num_images = 1 if still else predict_images(probe, config)
    terms = {"sample": 1.0, f"image_mpx {kind}": num_images * columns * rows * config.block_px**2 / 1e6}
    decoded = _frames_of_uniform(probe, config, num_images)
    if kind != "uniform":
        decoded, terms["frame"] = _frames_of_codec(probe, config, num_images)
    codec = _LIKE_CODEC.get(probe.codec, probe.codec)
    name = "still" if still else codec if f"mpx {codec}" in COST_SECONDS else "hevc"
    terms[f"mpx {name}"] = decoded * probe.width_px * probe.height_px / 1e6
    if not still:
        terms["mbyte"] = probe.video_bytes * decoded / probe.num_frames / 1e6
    return terms


def _frames_of_uniform(probe: ProbeRecord, config: TokenizerConfig, num_images: int) -> float:
    """Frames decoded for samples at equal steps: in each stretch behind a keyframe up to the last sample that it holds, of
    long videos less, for samples move towards keyframes (frames.move_to_cheaper)."""
    total = probe.num_frames
    needed = (total - (probe.num_discardable or 0)) / total
    keyframes = min(max(1, probe.num_keyframes or 1), total)
    stretch = total / keyframes
    touched = min(num_images, keyframes)
    behind = stretch * (1 - 1 / (num_images / touched + 1))
    if probe.duration_seconds >= config.keyframe_reach_min_seconds:
        reach = config.keyframe_reach * total / num_images
        behind = (1 - min(1.0, 2 * reach / stretch)) * max(0.0, behind - reach)
    return min(float(total), num_images + touched * behind * needed)


def _frames_of_codec(probe: ProbeRecord, config: TokenizerConfig, num_images: int) -> tuple[float, float]:
    """(decoded, looked at) frames, by the rule of frames.frames_to_look_at on a clip whose frames that others need come evenly."""
    total = float(probe.num_frames)
    needed = max(1.0, total - (probe.num_discardable or 0))
    spacing = total / needed
    step_frames = config.max_step_seconds * total / max(probe.duration_seconds, 1e-9)
    while step_frames > 1:
        step = math.floor(step_frames + 1e-6)
        if spacing <= step:
            decoded, looked_at = needed, total / (spacing * math.floor(step / spacing + 1e-6))
        else:  # each that others need, and as many before it as fill the gap
            decoded = looked_at = needed * math.ceil(spacing / step - 1e-6)
        if looked_at >= FEWEST_LOOKED_AT_PER_IMAGE * num_images:
            return min(decoded, total), looked_at
        if config.short_groups_whole:
            break
        step_frames *= SHORTER_STEP
    return total, total


def predict_images(probe: ProbeRecord, config: TokenizerConfig) -> int:
    """Canvases or frames that a video becomes."""
    budget = config.budget
    if config.mode == "uniform":
        if budget == 0:
            fitting = (frames for seconds, frames in config.frames_by_seconds if probe.duration_seconds < seconds)
            budget = next(fitting, config.max_frames)
        return min(budget, probe.num_frames)
    per_group = config.groups.canvases_per_group
    if probe.num_frames < max(per_group, config.groups.min_frames):
        return min(budget, probe.num_frames)
    num_groups = min(budget // per_group, probe.num_frames // config.groups.min_frames)
    return max(1, num_groups) * per_group


def size_in_blocks(width_px: int, height_px: int, area_px: int, block_px: int) -> tuple[int, int]:
    """(width, height) in merged blocks of an image within an area, not enlarged, at least one block."""
    scale = min(1.0, math.sqrt(area_px / (width_px * height_px)))
    return max(1, int(width_px * scale / block_px + 1e-6)), max(1, int(height_px * scale / block_px + 1e-6))
