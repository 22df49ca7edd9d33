"""Cells: the small picture that all signals are computed on, from a luma plane as decoded or with averaged rows (media/scale.py).

A block (28 px of a canvas) is 7 x 7 cells; a cell is the exact mean of the plane's pixels that it covers. One pass over the plane
makes them, and averaging takes most of the noise with it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel

CELLS = 7
"""A block's cells a side."""
CELL_STEP = 0.5
"""Gray levels that cells as features are rounded to: 49 products of such numbers below 256 are exact in float32, as are their sums
(fewer than 2^24 quarters), so what is chosen by them does not depend on how a CPU adds."""


class CellGrid:
    """Cells of decoded frames of one size.

    Args:
        rows, columns: blocks of the canvas as decoded, before it is turned.
        turns: quarter turns counter-clockwise that make the frame upright.
    """

    def __init__(self, *, rows: int, columns: int, turns: int) -> None:
        self._shape = (rows * CELLS, columns * CELLS)
        self._turns = turns
        self._edges: dict[tuple[int, int], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}

    def __call__(self, luma_HW: npt.NDArray[Any], bits: int = 8) -> npt.NDArray[np.float32]:
        """[rows * 7, columns * 7] float32 upright means in gray levels, 0..255, of a luma plane of `bits` bits, not turned."""
        size = (luma_HW.shape[0], luma_HW.shape[1])
        if size not in self._edges:
            self._edges[size] = (_edges(size[0], self._shape[0]), _edges(size[1], self._shape[1]))
        cells = np.empty(self._shape, np.float32)
        _means(luma_HW, *self._edges[size], np.float32(0.5 ** (bits - 8)), cells)
        return np.ascontiguousarray(np.rot90(cells, self._turns)) if self._turns else cells


def to_block_cells(cells_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[B, 49] cells of each block in steps of CELL_STEP, blocks row-major: what evidence is measured in."""
    features = np.empty((cells_HW.size // CELLS**2, CELLS**2), np.float32)
    _to_blocks(cells_HW, features)
    return features


@kernel("float32[:, ::1], float32[:, ::1]")
def _to_blocks(cells, features):  # type: ignore[no-untyped-def]
    step, steps = np.float32(CELL_STEP), np.float32(1 / CELL_STEP)
    columns = cells.shape[1] // CELLS
    for y in range(cells.shape[0]):
        for c in range(columns):
            block, first = y // CELLS * columns + c, y % CELLS * CELLS
            for x in range(CELLS):
                features[block, first + x] = np.rint(cells[y, c * CELLS + x] * steps) * step


def _edges(length_px: int, parts: int) -> npt.NDArray[np.int64]:
    """[parts, 2] first and one past the last pixel of each part: equal to within a pixel, at least one pixel each."""
    low = np.arange(parts) * length_px // parts
    high = np.maximum((np.arange(parts) + 1) * length_px // parts, low + 1)
    return np.stack([low, high], axis=1)


@kernel(
    "uint8[:, ::1], int64[:, ::1], int64[:, ::1], float32, float32[:, ::1]",
    "uint8[:, :], int64[:, ::1], int64[:, ::1], float32, float32[:, ::1]",
    "uint16[:, :], int64[:, ::1], int64[:, ::1], float32, float32[:, ::1]",
)
def _means(luma, row_edges, column_edges, scale, cells):  # type: ignore[no-untyped-def]
    width = luma.shape[1]
    total = np.empty(width, np.int32)
    until = np.empty(width + 1, np.uint32)  # sums of all before; differences are right though it wraps around
    until[0] = 0
    for r in range(cells.shape[0]):
        total[:] = 0
        for y in range(row_edges[r, 0], row_edges[r, 1]):
            for x in range(width):
                total[x] += luma[y, x]
        height = row_edges[r, 1] - row_edges[r, 0]
        summed = np.uint32(0)
        for x in range(width):
            summed += np.uint32(total[x])
            until[x + 1] = summed
        for c in range(cells.shape[1]):
            first, end = column_edges[c, 0], column_edges[c, 1]
            cells[r, c] = np.float32(np.uint32(until[end] - until[first])) * scale / np.float32(height * (end - first))
