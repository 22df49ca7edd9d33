"""Canvas packing: the I-canvas, then the selected blocks sorted by (t, h, w), laid out in raster order of blocks.

In: pixels of the picked blocks. Out: canvases of one size and the source place (t, h, w) of each of their patches. No
padding: the selection filled the canvases exactly. Shapes: N canvases, P patches of a canvas in raster order.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def frame_positions(tick: int, rows: int, columns: int) -> npt.NDArray[np.int32]:
    """[P, 3] int32 (t, h, w) of a whole frame of rows x columns patches, raster order."""
    h, w = np.mgrid[:rows, :columns]
    return np.stack([np.full(h.shape, tick), h, w], axis=2).reshape(-1, 3).astype(np.int32)


def copy_blocks(
    source_HW: npt.NDArray[np.uint8],
    blocks: npt.NDArray[np.int64],
    target_HW: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
    *,
    columns: int,
) -> None:
    """Copy blocks of one plane to places of another as wide, both counted row-major, `columns` in a row."""
    side = source_HW.shape[1] // columns
    source, target = (plane.reshape(-1, side, columns, side) for plane in (source_HW, target_HW))
    target[places // columns, :, places % columns] = source[blocks // columns, :, blocks % columns]


def cut_blocks(
    image_HW3: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int64], *, block_px: int
) -> npt.NDArray[np.uint8]:
    """[len(blocks), block_px, block_px, 3] pixels of the given blocks (row-major indices)."""
    rows, columns = image_HW3.shape[0] // block_px, image_HW3.shape[1] // block_px
    tiles = image_HW3.reshape(rows, block_px, columns, block_px, 3)
    return tiles[blocks // columns, :, blocks % columns]


def pack_blocks(
    picks: Iterable[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.uint8]]],
    *,
    rows: int,
    columns: int,
    patch_px: int,
    merge: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Lay blocks out on canvases.

    Args:
        picks: (tick, blocks ascending, their pixels from cut_blocks), ticks ascending.
        rows, columns: blocks of a canvas and of a source frame.

    Returns:
        canvases [N, rows * block, columns * block, 3] uint8 and positions [N, P, 3] int32, P in raster order of patches.

    Raises:
        ValueError: the blocks do not fill whole canvases.
    """
    ticks, indices, pixels = [], [], []
    for tick, blocks, tiles in picks:
        ticks.append(np.full(len(blocks), tick))
        indices.append(blocks)
        pixels.append(tiles)
    tick_M, block_M, pixels_M = np.concatenate(ticks), np.concatenate(indices), np.concatenate(pixels)
    per_canvas = rows * columns
    if len(block_M) % per_canvas:
        raise ValueError(f"{len(block_M)} blocks do not fill canvases of {per_canvas}")
    num, block_px = len(block_M) // per_canvas, patch_px * merge
    canvases = pixels_M.reshape(num, rows, columns, block_px, block_px, 3).transpose(0, 1, 3, 2, 4, 5)
    canvases = np.ascontiguousarray(canvases.reshape(num, rows * block_px, columns * block_px, 3))
    return canvases, block_positions(tick_M, block_M, rows=rows, columns=columns, merge=merge)


def block_positions(
    tick_M: npt.NDArray[np.int64], block_M: npt.NDArray[np.int64], *, rows: int, columns: int, merge: int
) -> npt.NDArray[np.int32]:
    """[N, P, 3] int32 (t, h, w) of M = N * rows * columns blocks laid out one after another, P in raster order of patches."""
    inner = np.arange(merge)
    position = np.empty((len(block_M), merge, merge, 3), np.int32)
    position[..., 0] = tick_M[:, None, None]
    position[..., 1] = (block_M // columns * merge)[:, None, None] + inner[:, None]
    position[..., 2] = (block_M % columns * merge)[:, None, None] + inner[None, :]
    position = position.reshape(-1, rows, columns, merge, merge, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(position.reshape(len(position), -1, 3))
