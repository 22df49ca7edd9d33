"""Luma residual per patch after motion compensation, and the small luma features that evidence is measured in.

No stock decoder exports residuals, so they are recomputed on the canvas-sized luma: each patch against the previous
*displayed* frame, moved by the patch's offset rounded to whole pixels. Mean absolute difference in gray levels, 0..255.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

FEATURE_SIDE = 7
"""Luma means per block side: a 28 px block becomes 7 x 7 values of 4 x 4 px."""


def compensated_residual(
    luma: npt.NDArray[np.uint8],
    previous_luma: npt.NDArray[np.uint8],
    offset_HW2: npt.NDArray[np.float32],
    *,
    patch_px: int,
) -> npt.NDArray[np.float32]:
    """[H, W] float32: mean |luma - previous luma moved by offset| of each patch; edges are clamped.

    Args:
        luma, previous_luma: [H * patch_px, W * patch_px] uint8.
        offset_HW2: where each patch stood in the previous frame, (dy, dx) canvas pixels.
    """
    result = np.empty(offset_HW2.shape[:2], np.float32)
    _residual(luma, previous_luma, np.rint(offset_HW2).astype(np.int32), patch_px, result)
    return result


@numba.njit(cache=True, nogil=True)
def _residual(luma, previous, offset, side, result):  # type: ignore[no-untyped-def]
    height, width = luma.shape
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            top, left = row * side, column * side
            dy, dx = offset[row, column, 0], offset[row, column, 1]
            total: Any = 0
            if top + dy >= 0 and left + dx >= 0 and top + dy + side <= height and left + dx + side <= width:
                for r in range(top, top + side):
                    for c in range(left, left + side):
                        total += abs(np.int32(luma[r, c]) - np.int32(previous[r + dy, c + dx]))
            else:
                for r in range(top, top + side):
                    y = min(max(r + dy, 0), height - 1)
                    for c in range(left, left + side):
                        x = min(max(c + dx, 0), width - 1)
                        total += abs(np.int32(luma[r, c]) - np.int32(previous[y, x]))
            result[row, column] = total / (side * side)


def halve(luma: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[H / 2, W / 2] uint8: rounded means of 2 x 2 pixels; H and W even."""
    result = np.empty((luma.shape[0] // 2, luma.shape[1] // 2), np.uint8)
    _halve(luma, result)
    return result


@numba.njit(cache=True, nogil=True)
def _halve(luma, result):  # type: ignore[no-untyped-def]
    for r in range(result.shape[0]):
        for c in range(result.shape[1]):
            total = (
                np.int32(luma[2 * r, 2 * c])
                + np.int32(luma[2 * r, 2 * c + 1])
                + np.int32(luma[2 * r + 1, 2 * c])
                + np.int32(luma[2 * r + 1, 2 * c + 1])
            )
            result[r, c] = (total + 2) // 4


def block_features(luma: npt.NDArray[np.uint8], *, block_px: int) -> npt.NDArray[np.float32]:
    """[B, F] float32 luma means of the cells of each block, blocks row-major, F = 49 for 28 px blocks.

    Exact sums divided once: averaging in uint8 would destroy ranks. The cell is block_px / 7 px where 7 divides the block,
    else the whole block is cut in the largest number of equal cells below 7.
    """
    side = next(s for s in range(FEATURE_SIDE, 0, -1) if block_px % s == 0)
    rows, columns = luma.shape[0] // block_px, luma.shape[1] // block_px
    result = np.empty((rows * columns, side * side), np.float32)
    _features(luma, block_px, side, columns, result)
    return result


@numba.njit(cache=True, nogil=True)
def _features(luma, block_px, side, columns, result):  # type: ignore[no-untyped-def]
    cell = block_px // side
    area = np.float32(cell * cell)
    for block in range(result.shape[0]):
        top, left = block // columns * block_px, block % columns * block_px
        for f in range(side * side):
            y, x = top + f // side * cell, left + f % side * cell
            total: Any = 0
            for r in range(y, y + cell):
                for c in range(x, x + cell):
                    total += np.int32(luma[r, c])
            result[block, f] = np.float32(total) / area
