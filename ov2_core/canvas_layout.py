"""What clips and streams have in common on the way from decoded frames to canvases: sizes, scaler, signals, packing.

Enters: the size of a source and a config. Leaves: the block grid, the tools made for it, and the filled canvases of a group.
Here the kernels of tokenizer/ and signals/ meet media/; tokenize_video.py and tokenize_stream.py differ in what they feed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.config import TokenizerConfig
from ov2_core.media.scale import Scaler
from ov2_core.signals.cells import CellGrid
from ov2_core.signals.frame import SignalExtractor
from ov2_core.tokenizer.canvas import block_positions, copy_blocks, frame_positions
from ov2_core.tokenizer.frames import fit_size, round_size
from ov2_core.tokenizer.group import FramePick


@dataclass(frozen=True, slots=True)
class CanvasLayout:
    """Sizes of a source's canvases; rows and columns count blocks."""

    width: int
    height: int
    rows: int
    columns: int

    @classmethod
    def fit(cls, width_px: int, height_px: int, config: TokenizerConfig) -> "CanvasLayout":
        """For a source that is shown at width_px x height_px."""
        fit = round_size if config.policy == "legacy" else fit_size
        width, height = fit(width_px, height_px, area_px=config.area_px, multiple_px=config.block_px)
        return cls(width, height, height // config.block_px, width // config.block_px)

    @property
    def num_blocks(self) -> int:
        """Of a canvas, and of a source frame."""
        return self.rows * self.columns

    def empty(self, count: int, config: TokenizerConfig) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Room for images and positions, filled as they come: no second copy."""
        return np.empty((count, self.height, self.width, 3), np.uint8), self.empty_positions(count, config)

    def empty_positions(self, count: int, config: TokenizerConfig) -> npt.NDArray[np.int32]:
        """Room for the positions of so many images."""
        return np.empty((count, self.num_blocks * config.merge**2, 3), np.int32)

    def positions(self, tick: int, config: TokenizerConfig) -> npt.NDArray[np.int32]:
        """Of a frame shown whole."""
        return frame_positions(tick, self.rows * config.merge, self.columns * config.merge)

    def scaler(self, rotation_degrees: int, config: TokenizerConfig) -> Scaler:
        """From decoded frames to this size."""
        return Scaler(
            width_px=self.width,
            height_px=self.height,
            rotation_degrees=rotation_degrees,
            full_chroma=config.jpeg_subsampling == "4:4:4",
        )

    def cells(self, rotation_degrees: int) -> CellGrid:
        """From the luma of decoded frames to what the signals are computed on."""
        turns = rotation_degrees // 90
        rows, columns = (self.columns, self.rows) if turns % 2 else (self.rows, self.columns)
        return CellGrid(rows=rows, columns=columns, turns=turns)

    def extractor(
        self, *, coded_height_px: int, coded_width_px: int, rotation_degrees: int, config: TokenizerConfig
    ) -> SignalExtractor:
        """Signals of this size's frames."""
        return SignalExtractor(
            rows=self.rows,
            columns=self.columns,
            block_px=config.block_px,
            coded_height_px=coded_height_px,
            coded_width_px=coded_width_px,
            turns=rotation_degrees // 90,
            features=config.policy == "evidence",
        )


def pack_group(
    picks: Sequence[FramePick],
    scaler: Scaler,
    layout: CanvasLayout,
    config: TokenizerConfig,
    images_NHW3: npt.NDArray[np.uint8],
    positions_NP3: npt.NDArray[np.int32],
) -> None:
    """Fill the group's canvases: the I-canvas, then the P-canvases.

    Blocks are laid out in YUV and turned to RGB a group at a time: that is bit for bit the same, and most frames show few blocks.
    """
    images_NHW3[0] = scaler.rgb(picks[0].pixels)
    positions_NP3[0] = layout.positions(picks[0].tick, config)
    num_canvases = len(images_NHW3) - 1
    height, width = images_NHW3.shape[1:3]
    filled, canvases = scaler.blank(num_canvases * height, picks[0].pixels)
    first = 0
    for pick in picks[1:]:
        places = np.arange(first, first + len(pick.blocks))
        for source, target in zip(scaler.planes(pick.pixels), canvases, strict=True):
            copy_blocks(source, pick.blocks, target, places, columns=layout.columns)
        first += len(pick.blocks)
    scaler.write_rgb(filled, images_NHW3[1:].reshape(-1, width, 3))
    positions_NP3[1:] = block_positions(
        np.repeat([p.tick for p in picks[1:]], [len(p.blocks) for p in picks[1:]]),
        np.concatenate([p.blocks for p in picks[1:]]),
        rows=layout.rows,
        columns=layout.columns,
        merge=config.merge,
    )
