"""All signals of one frame after another: keeps the cells and the motion of the frame before, chooses vectors or block matching.

In: cells of decoded frames in displayed order (signals/cells.py), with the codec's vectors where there are any. Out: BlockSignals
per frame. The first frame has no predecessor: its motion and residual are 0 and it counts as intra.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.signals.cells import CELLS, to_block_cells
from ov2_core.signals.motion import TilesToBlocks, match_blocks, rasterise_vectors, subtract_camera, turn_offsets
from ov2_core.signals.residual import compensated_residual


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSignals:
    """Signals of one frame, B blocks row-major."""

    motion_B: npt.NDArray[np.float32]
    """Canvas pixels per displayed frame, camera subtracted."""
    residual_B: npt.NDArray[np.float32]
    """Gray levels."""
    intra_B: npt.NDArray[np.float32]
    """0..1."""
    feature_BF: npt.NDArray[np.float32] | None
    """Cells of each block, F = 49; policy "evidence" only."""


class SignalExtractor:
    """Signals of the frames of one clip, pushed in displayed order.

    Args:
        rows, columns: blocks of an upright canvas.
        block_px: side of a block.
        coded_height_px, coded_width_px: decoded frame, before it is turned.
        turns: quarter turns counter-clockwise that make the decoded frame upright.
        features: whether the cells are wanted (policy "evidence").
    """

    def __init__(
        self,
        *,
        rows: int,
        columns: int,
        block_px: int,
        coded_height_px: int,
        coded_width_px: int,
        turns: int,
        features: bool,
    ) -> None:
        self._turns, self._features = turns, features
        self._cell_px = block_px / CELLS
        self._coded = (coded_height_px, coded_width_px)
        turned = (columns, rows) if turns % 2 else (rows, columns)
        self._to_blocks = TilesToBlocks(
            coded_height_px=coded_height_px, coded_width_px=coded_width_px, rows=turned[0], columns=turned[1]
        )
        self._pace_HW2 = np.zeros((rows, columns, 2), np.float32)
        """The last frame's motion, cells per displayed frame."""
        self._cells: npt.NDArray[np.float32] | None = None

    def extract(
        self,
        cells: npt.NDArray[np.float32],
        *,
        vectors: npt.NDArray[np.void] | None,
        frames_back: int,
        frames_ahead: int,
        step: int = 1,
    ) -> BlockSignals:
        """Signals of the next frame.

        Args:
            cells: [rows * 7, columns * 7], upright.
            vectors: FFmpeg's exported motion vectors of the decoded frame, or None: match blocks.
            frames_back, frames_ahead: distances to the anchors around it (media/probe.py).
            step: displayed frames since the one pushed before, those passed over included.
        """
        previous, self._cells = self._cells, cells
        feature = to_block_cells(cells) if self._features else None
        if previous is None:
            zero = np.zeros(self._pace_HW2.shape[0] * self._pace_HW2.shape[1], np.float32)
            return BlockSignals(motion_B=zero, residual_B=zero, intra_B=zero + 1, feature_BF=feature)
        if vectors is None:
            offset = match_blocks(cells, previous, self._pace_HW2 * step)
            pace, intra = offset / np.float32(step), np.zeros(offset.shape[:2], np.float32)
        else:
            tiles = rasterise_vectors(
                vectors,
                coded_height_px=self._coded[0],
                coded_width_px=self._coded[1],
                frames_back=frames_back,
                frames_ahead=frames_ahead,
            )
            pace, intra = turn_offsets(*self._to_blocks(tiles), self._turns)
            offset = pace * np.float32(step)
        self._pace_HW2 = pace
        return BlockSignals(
            motion_B=subtract_camera(pace, intra).reshape(-1) * np.float32(self._cell_px),
            residual_B=compensated_residual(cells, previous, offset).reshape(-1),
            intra_B=intra.reshape(-1),
            feature_BF=feature,
        )
