"""Luma residual per block after motion compensation.

No stock decoder exports residuals, so they are recomputed on cells (signals/cells.py): each block against an earlier frame, moved
by the block's offset with bilinear interpolation. Mean absolute difference in gray levels, 0..255.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.signals.cells import CELLS


def compensated_residual(
    cells: npt.NDArray[np.float32], previous_cells: npt.NDArray[np.float32], offset_HW2: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """[H, W] float32: mean |cells - previous cells moved by offset| of each block; edges are clamped.

    Args:
        cells, previous_cells: [H * 7, W * 7].
        offset_HW2: where each block stood in the earlier frame, (dy, dx) in cells.
    """
    result = np.empty(offset_HW2.shape[:2], np.float32)
    _residual(cells, previous_cells, offset_HW2, result)
    return result


@kernel()
def moved_difference(current, previous, top, left, dy, dx):  # type: ignore[no-untyped-def]
    """Sum of absolute differences of the block at (top, left) to the earlier cells at (dy, dx) from there."""
    height, width = current.shape
    whole_y, whole_x = int(np.floor(dy)), int(np.floor(dx))
    part_y, part_x = np.float32(dy - whole_y), np.float32(dx - whole_x)
    one: Any = np.float32(1)
    top_left, top_right = (one - part_y) * (one - part_x), (one - part_y) * part_x
    low_left, low_right = part_y * (one - part_x), part_y * part_x
    total = np.float32(0)
    for r in range(top, top + CELLS):
        y0 = min(max(r + whole_y, 0), height - 1)
        y1 = min(max(r + whole_y + 1, 0), height - 1)
        for c in range(left, left + CELLS):
            x0 = min(max(c + whole_x, 0), width - 1)
            x1 = min(max(c + whole_x + 1, 0), width - 1)
            there = (
                top_left * previous[y0, x0]
                + top_right * previous[y0, x1]
                + low_left * previous[y1, x0]
                + low_right * previous[y1, x1]
            )
            total += abs(current[r, c] - there)
    return total


@kernel("float32[:, ::1], float32[:, ::1], float32[:, :, ::1], float32[:, ::1]")
def _residual(current, previous, offset, result):  # type: ignore[no-untyped-def]
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            total = moved_difference(
                current, previous, row * CELLS, column * CELLS, offset[row, column, 0], offset[row, column, 1]
            )
            result[row, column] = total / np.float32(CELLS * CELLS)
