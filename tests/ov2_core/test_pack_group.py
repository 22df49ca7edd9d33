"""Canvases laid out in YUV and turned to RGB at once hold the same bytes as blocks cut out of frames in RGB."""

import av
import numpy as np
import pytest

from ov2_core.canvas_layout import CanvasLayout, pack_group
from ov2_core.config import TokenizerConfig
from ov2_core.tokenizer.canvas import cut_blocks, pack_blocks
from ov2_core.tokenizer.group import FramePick


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize(
    ("pixel_format", "subsampling", "matrix", "full_range"),
    [("yuv420p", "4:2:0", 1, 1), ("yuv420p10le", "4:4:4", 5, 1), ("yuvj422p", "4:2:0", 5, 2), ("rgb24", "4:4:4", 2, 0)],
)
def test_pack_group_equals_blocks_cut_out_of_rgb(rotation, pixel_format, subsampling, matrix, full_range):
    rng = np.random.default_rng(5)
    config = TokenizerConfig(jpeg_subsampling=subsampling)
    upright = (140, 252) if rotation in (90, 270) else (252, 140)
    layout = CanvasLayout.fit(*upright, config)
    scaler = layout.scaler(rotation, config)
    num_blocks = layout.num_blocks
    shown = rng.permutation(4 * num_blocks)[: 3 * num_blocks]
    picks = []
    for k in range(5):
        frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (150, 270, 3), np.uint8), format="rgb24")
        frame = frame.reformat(format=pixel_format)
        frame.colorspace, frame.color_range = matrix, full_range
        blocks = np.sort(shown[shown // num_blocks == k - 1] % num_blocks) if k else np.arange(num_blocks)
        picks.append(FramePick(tick=3 * k, pixels=scaler.scaled(frame), blocks=blocks))

    images, positions = layout.empty(4, config)
    pack_group(picks, scaler, layout, config, images, positions)

    cut = [(p.tick, p.blocks, cut_blocks(scaler.rgb(p.pixels), p.blocks, block_px=28)) for p in picks[1:]]
    expected, where = pack_blocks(cut, rows=layout.rows, columns=layout.columns, patch_px=14, merge=2)
    assert (images[0] == scaler.rgb(picks[0].pixels)).all()
    assert (images[1:] == expected).all()
    assert (positions[1:] == where).all()
    assert (positions[0] == layout.positions(0, config)).all()
