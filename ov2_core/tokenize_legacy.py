"""Policy "legacy": groups as codec-video-prep makes them, filled where it pads. See tokenizer/legacy.py for the method.

Enters: a probed video. Leaves: canvases, positions, groups and how many blocks stand in place of padding. Bit costs come from the
tool's own reader, pixels from our decoder, in one pass over each; besides the maps memory is bounded by one group's frames.
"""

from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.canvas_layout import CanvasLayout, pack_group
from ov2_core.config import TokenizerConfig
from ov2_core.images import Images, new_images
from ov2_core.media.bit_cost import keyframe_numbers, read_bit_cost
from ov2_core.media.container import Source
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import VideoProbe
from ov2_core.media.scale import Scaler
from ov2_core.tokenizer.group import FramePick
from ov2_core.tokenizer.legacy import (
    GROUP_FRAMES,
    MIN_READY_FRAMES,
    is_blank,
    readiness_groups,
    sample_frames,
    score_blocks,
    select_legacy,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LegacyCanvases:
    """N canvases of a clip, as many in each group."""

    images: Images
    positions_NP3: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    """[G + 1] first source frame of each group, and the end."""
    num_filled: int
    """Blocks in place of the tool's padding, which stand last in their group."""


def legacy_canvases(
    source: Source, probe: VideoProbe, config: TokenizerConfig, stats: DecodeStats, *, groups: int, as_jpeg: bool
) -> LegacyCanvases | None:
    """Sample, score, choose and pack. None where a sampled frame does not decode.

    Raises:
        ValueError: codec-video-prep is not installed.
        BadItemError: unsupported (no bit costs for this codec) or no_decodable_frame.
    """
    layout = CanvasLayout.fit(probe.width_px, probe.height_px, config)
    scaler = layout.scaler(probe.rotation_degrees, config)
    ready = config.legacy_grouping == "readiness"
    per_group = MIN_READY_FRAMES if ready else min(GROUP_FRAMES, probe.num_frames // groups)
    count = min(groups * per_group, probe.num_frames)
    sampled = sample_frames(probe.num_frames, count, keyframe_numbers(source, probe))
    scores = [
        score_blocks(
            np.rot90(bits, probe.rotation_degrees // 90),
            rows=layout.rows,
            columns=layout.columns,
            patch_px=config.patch_px,
            merge=config.merge,
        )
        for bits in read_bit_cost(source, probe, sampled)
    ]
    score_SB = np.stack(scores)
    canvases = config.groups.canvases_per_group
    budget = (canvases - 1) * layout.num_blocks
    edges = list(range(0, count + 1, per_group))
    if ready:
        edges = readiness_groups(score_SB, budget=budget, canvases=canvases)
    images, positions = new_images((len(edges) - 1) * canvases, layout, config, as_jpeg=as_jpeg)
    frames = decode_frames(source, probe, stats=stats, wanted=sampled[: edges[-1]].tolist())
    num_filled = 0
    for group, (low, high) in enumerate(pairwise(edges)):
        held: list[tuple[int, Any]] = []
        for index, frame in islice(frames, high - low):
            held.append((int(probe.timeline.ticks_T[index]), scaler.scaled(frame)))
            if index != sampled[low + len(held) - 1]:
                return None
        if len(held) < high - low:
            return None
        here = slice(group * canvases, (group + 1) * canvases)
        picks, filled = _picks(score_SB[low:high], held, scaler, budget=budget)
        pack_group(picks, scaler, layout, config, images.room(canvases), positions[here])
        images.keep()
        num_filled += filled
    starts = np.array([0, *sampled[edges[1:-1]].tolist(), probe.num_frames])
    return LegacyCanvases(images=images, positions_NP3=positions, starts=starts, num_filled=num_filled)


def _picks(
    score_KB: npt.NDArray[np.float32], held: list[tuple[int, Any]], scaler: Scaler, *, budget: int
) -> tuple[list[FramePick], int]:
    """The anchor whole, then what is chosen, then what stands in place of padding; and how many blocks do."""
    blank_K = np.array([is_blank(scaler.rgb(pixels)) for _, pixels in held])
    selected = select_legacy(score_KB, blank_K, budget=budget)
    shown = [(selected.anchor, np.arange(score_KB.shape[1]))]
    for pairs in (selected.chosen_M2, selected.filled_F2):
        shown += [(int(k), pairs[pairs[:, 0] == k, 1]) for k in np.unique(pairs[:, 0])]
    picks = [FramePick(tick=held[k][0], pixels=held[k][1], blocks=blocks) for k, blocks in shown]
    return picks, len(selected.filled_F2)
