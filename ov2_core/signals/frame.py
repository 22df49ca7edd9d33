"""All signals of one frame after another: keeps the previous luma and motion, chooses vectors or block matching.

In: upright canvas-sized luma in displayed order, with the codec's vectors where there are any. Out: BlockSignals per frame.
The first frame has no predecessor: its motion and residual are 0 and it counts as intra.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov2_core.signals.motion import CellsToPatches, match_blocks, rasterise_vectors, subtract_camera, turn_offsets
from ov2_core.signals.residual import block_features, compensated_residual, halve


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSignals:
    """Signals of one frame, B blocks row-major."""

    motion_B: npt.NDArray[np.float32]
    """Canvas pixels per frame, camera subtracted."""
    residual_B: npt.NDArray[np.float32]
    """Gray levels."""
    intra_B: npt.NDArray[np.float32]
    """0..1."""
    feature_BF: npt.NDArray[np.float32] | None
    """Luma features; policy "evidence" only."""


def to_blocks(map_HW: npt.NDArray[np.float32], merge: int) -> npt.NDArray[np.float32]:
    """[B] mean of each merge x merge square of patches, blocks row-major."""
    rows, columns = map_HW.shape[0] // merge, map_HW.shape[1] // merge
    mean: npt.NDArray[np.float32] = map_HW.reshape(rows, merge, columns, merge).mean(axis=(1, 3), dtype=np.float32)
    return mean.reshape(-1)


class SignalExtractor:
    """Signals of the frames of one clip, pushed in displayed order.

    Args:
        height_px, width_px: upright canvas.
        coded_height_px, coded_width_px: decoded frame, before it is turned.
        turns: quarter turns counter-clockwise that make the decoded frame upright.
        features: whether luma features are wanted (policy "evidence").
    """

    def __init__(
        self,
        *,
        height_px: int,
        width_px: int,
        coded_height_px: int,
        coded_width_px: int,
        patch_px: int,
        merge: int,
        turns: int,
        features: bool,
    ) -> None:
        self._patch_px, self._merge, self._turns, self._features = patch_px, merge, turns, features
        self._coded = (coded_height_px, coded_width_px)
        rows, columns = height_px // patch_px, width_px // patch_px
        turned = (columns, rows) if turns % 2 else (rows, columns)
        self._to_patches = CellsToPatches(
            coded_height_px=coded_height_px,
            coded_width_px=coded_width_px,
            rows=turned[0],
            columns=turned[1],
            patch_px=patch_px,
        )
        self._offset_HW2 = np.zeros((rows, columns, 2), np.float32)
        self._luma: npt.NDArray[np.uint8] | None = None
        self._half: npt.NDArray[np.uint8] | None = None

    def extract(
        self, luma: npt.NDArray[np.uint8], *, vectors: npt.NDArray[np.void] | None, frames_back: int, frames_ahead: int
    ) -> BlockSignals:
        """Signals of the next frame.

        Args:
            luma: [H, W] uint8, upright.
            vectors: FFmpeg's exported motion vectors of the decoded frame, or None: match blocks.
            frames_back, frames_ahead: distances to the anchors around it (media/probe.py).
        """
        previous, self._luma = self._luma, luma
        feature = block_features(luma, block_px=self._patch_px * self._merge) if self._features else None
        if previous is None:
            zero = np.zeros(self._offset_HW2.shape[0] * self._offset_HW2.shape[1] // self._merge**2, np.float32)
            return BlockSignals(motion_B=zero, residual_B=zero, intra_B=zero + 1, feature_BF=feature)
        if vectors is None:
            offset, intra = self._match(luma, previous)
        else:
            self._half = None
            cells = rasterise_vectors(
                vectors,
                coded_height_px=self._coded[0],
                coded_width_px=self._coded[1],
                frames_back=frames_back,
                frames_ahead=frames_ahead,
            )
            offset, intra = turn_offsets(*self._to_patches(cells), self._turns)
        self._offset_HW2 = offset
        residual = compensated_residual(luma, previous, offset, patch_px=self._patch_px)
        return BlockSignals(
            motion_B=to_blocks(subtract_camera(offset, intra), self._merge),
            residual_B=to_blocks(residual, self._merge),
            intra_B=to_blocks(intra, self._merge),
            feature_BF=feature,
        )

    def _match(
        self, luma: npt.NDArray[np.uint8], previous: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        before = self._half if self._half is not None else halve(previous)
        self._half = halve(luma)
        offset = match_blocks(self._half, before, self._offset_HW2, half_patch_px=self._patch_px // 2)
        return offset, np.zeros(offset.shape[:2], np.float32)
