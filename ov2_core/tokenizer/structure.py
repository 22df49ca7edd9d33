"""How much of the structure of a group's frames a reader holds: squared SSIM of cells, the second judge beside squared error.

Squared error does not see that a picture patched from blocks of many moments looks torn; SSIM does, at the seams. In: the cells
of the candidates (signals/cells.py) and a selection. Out: one number, good for comparing selections of one group. It is an
estimate: windows are 3 x 3 cells without weights, on every third row and second column of cells (blocks are 7 cells a side, so
all places in a block come in turn); each candidate stands for the frames up to the next; and similarity is squared, because
cells average away the fine grain in which what is old differs first. Source of SSIM: Wang et al. 2004.

Shapes: K candidates, B blocks row-major, F = 49 cells of a block.
"""

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.signals.cells import CELLS

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
ROW_STEP, COLUMN_STEP = 3, 2


def held_structure(
    feature_KBF: npt.NDArray[np.float32],
    frames_K: npt.NDArray[np.float64],
    chosen_BK: npt.NDArray[np.bool_],
    *,
    columns: int,
) -> float:
    """Mean squared SSIM of what is held against the candidates, 0..1, negative similarity counted as 0; 1: all are shown whole.

    Args:
        feature_KBF: cells of the candidates; candidate 0 is shown whole.
        frames_K: frames each candidate stands for.
        columns: blocks of a row.
    """
    rows = feature_KBF.shape[1] // columns
    return float(_structure(feature_KBF.reshape(len(feature_KBF), rows, columns, CELLS, CELLS), frames_K, chosen_BK))


@kernel("float32[:, :, :, :, ::1], float64[::1], b1[:, ::1]")
def _structure(cells, frames, chosen):  # type: ignore[no-untyped-def]
    candidates, rows, columns = cells.shape[:3]
    height, width = rows * CELLS, columns * CELLS
    held = np.empty((height, width), np.float32)
    shown = np.empty((height, width), np.float32)
    sums = np.empty((5, width), np.float32)
    squared = np.empty((width - 1) // COLUMN_STEP, np.float32)
    c1, c2, zero, two, ninth = np.float32(C1), np.float32(C2), np.float32(0), np.float32(2), np.float32(1 / 9)
    total = weight = 0.0
    for k in range(candidates):
        for r in range(rows):
            for c in range(columns):
                block = cells[k, r, c]
                y, x = r * CELLS, c * CELLS
                shown[y : y + CELLS, x : x + CELLS] = block
                if k == 0 or chosen[r * columns + c, k]:
                    held[y : y + CELLS, x : x + CELLS] = block
        squared[:] = 0.0
        for y in range(0, height - 2, ROW_STEP):
            for x in range(width):
                a0, a1, a2 = held[y, x], held[y + 1, x], held[y + 2, x]
                b0, b1, b2 = shown[y, x], shown[y + 1, x], shown[y + 2, x]
                sums[0, x] = a0 + a1 + a2
                sums[1, x] = b0 + b1 + b2
                sums[2, x] = a0 * a0 + a1 * a1 + a2 * a2
                sums[3, x] = b0 * b0 + b1 * b1 + b2 * b2
                sums[4, x] = a0 * b0 + a1 * b1 + a2 * b2
            for w in range(len(squared)):
                x = w * COLUMN_STEP
                a = (sums[0, x] + sums[0, x + 1] + sums[0, x + 2]) * ninth
                b = (sums[1, x] + sums[1, x + 1] + sums[1, x + 2]) * ninth
                aa = (sums[2, x] + sums[2, x + 1] + sums[2, x + 2]) * ninth - a * a
                bb = (sums[3, x] + sums[3, x + 1] + sums[3, x + 2]) * ninth - b * b
                ab = (sums[4, x] + sums[4, x + 1] + sums[4, x + 2]) * ninth - a * b
                one = (two * a * b + c1) * (two * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))
                squared[w] += max(one, zero) * max(one, zero)
        total += frames[k] * squared.sum()
        weight += frames[k]
    return total / weight / (len(range(0, height - 2, ROW_STEP)) * len(squared))
