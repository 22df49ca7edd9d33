"""Motion per patch, in canvas pixels per displayed frame: from the codec's vectors, or by block matching where it has none.

Both give the same thing: `offset_HW2`, where each patch's content stood in the *previous displayed frame*, relative to the
patch (dy, dx), and `intra_HW`, the share of the patch that no vector predicts. H x W patches, row-major.

Codec vectors (H.264, MPEG-4 and older, as exported by FFmpeg): a P block points to some earlier anchor and says not to which;
the previous one is assumed, and the vector is divided by the distance to it. B blocks: L0 by the distance back, -L1 by the
distance ahead, averaged (TOKENIZER.md, "Signals from stock PyAV").
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

CELL_PX = 8
"""Vectors are first spread on cells of this size of the coded frame; H.264 partitions are 4 to 16 px."""
SEARCH_RADIUS_PX = 8
"""Block matching: reach of one descent at half resolution; predictors extend it over frames and neighbours."""


def rasterise_vectors(
    vectors: npt.NDArray[np.void], *, coded_height_px: int, coded_width_px: int, frames_back: int, frames_ahead: int
) -> npt.NDArray[np.float32]:
    """Spread exported motion vectors on a grid of 8 px cells.

    Args:
        vectors: FFmpeg's AVMotionVector array; fields source, w, h, dst_x, dst_y (block centre), motion_x, motion_y, motion_scale.
        frames_back, frames_ahead: displayed frames to the previous and to the next anchor; frames_ahead 0 for an anchor.

    Returns:
        [Hc, Wc, 3] float32: sum of weight * (dy, dx) per displayed frame in coded pixels, and the weight, 1 where covered once.
    """
    cells = np.zeros((-(-coded_height_px // CELL_PX), -(-coded_width_px // CELL_PX), 3), np.float32)
    _rasterise(
        cells,
        vectors["source"],
        vectors["w"],
        vectors["h"],
        vectors["dst_x"],
        vectors["dst_y"],
        vectors["motion_x"],
        vectors["motion_y"],
        vectors["motion_scale"],
        np.float32(1 / max(frames_back, 1)),
        np.float32(-1 / max(frames_ahead, 1)),
    )
    return cells


@numba.njit(cache=True, nogil=True)
def _rasterise(cells, source, w, h, dst_x, dst_y, motion_x, motion_y, motion_scale, back, ahead):  # type: ignore[no-untyped-def]
    height, width = cells.shape[0], cells.shape[1]
    for i in range(source.shape[0]):
        factor = back if source[i] < 0 else ahead
        scale = factor / max(1, motion_scale[i])
        dy, dx = motion_y[i] * scale, motion_x[i] * scale
        top, left = dst_y[i] - h[i] // 2, dst_x[i] - w[i] // 2
        bottom, right = top + h[i], left + w[i]
        for r in range(max(0, top // CELL_PX), min(height, (bottom + CELL_PX - 1) // CELL_PX)):
            part_y = min(bottom, (r + 1) * CELL_PX) - max(top, r * CELL_PX)
            for c in range(max(0, left // CELL_PX), min(width, (right + CELL_PX - 1) // CELL_PX)):
                part_x = min(right, (c + 1) * CELL_PX) - max(left, c * CELL_PX)
                weight = np.float32(part_x * part_y) / np.float32(CELL_PX * CELL_PX)
                cells[r, c, 0] += weight * dy
                cells[r, c, 1] += weight * dx
                cells[r, c, 2] += weight


class CellsToPatches:
    """Area-weighted average of the cell grid on the patch grid of the canvas (not turned): two small matrix products.

    Args:
        coded_height_px, coded_width_px: of the decoded frame.
        rows, columns: patches of the unturned canvas.
        patch_px: side of a patch.
    """

    def __init__(self, *, coded_height_px: int, coded_width_px: int, rows: int, columns: int, patch_px: int) -> None:
        self._down = _overlap(coded_height_px, rows)
        self._across = _overlap(coded_width_px, columns).T.copy()
        self._scale = np.array([rows * patch_px / coded_height_px, columns * patch_px / coded_width_px], np.float32)

    def __call__(self, cells: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Returns (offset_HW2 in canvas pixels (dy, dx), intra_HW in 0..1), float32."""
        covered = np.minimum(cells[:, :, 2], 1)
        mean = cells[:, :, :2] / np.maximum(cells[:, :, 2:], 1e-6) * covered[:, :, None]
        weight = self._down @ covered @ self._across
        offset = np.stack([self._down @ mean[:, :, i] @ self._across for i in range(2)], axis=2)
        offset = offset / np.maximum(weight[:, :, None], 1e-6) * self._scale
        return offset.astype(np.float32), np.clip(1 - weight, 0, 1).astype(np.float32)


def _overlap(length_px: int, parts: int) -> npt.NDArray[np.float32]:
    """[parts, cells]: share of each of `parts` equal parts of [0, length_px) that each cell covers; rows sum to 1."""
    cells = -(-length_px // CELL_PX)
    edges = np.linspace(0, length_px, parts + 1)
    low = np.maximum(edges[:-1, None], np.arange(cells) * CELL_PX)
    high = np.minimum(edges[1:, None], np.minimum((np.arange(cells) + 1) * CELL_PX, length_px))
    overlap = np.clip(high - low, 0, None)
    share: npt.NDArray[np.float32] = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return share


def turn_offsets(
    offset_HW2: npt.NDArray[np.float32], intra_HW: npt.NDArray[np.float32], turns: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Turn maps of an unturned frame `turns` quarter turns counter-clockwise, like the pixels."""
    dy, dx = offset_HW2[..., 0], offset_HW2[..., 1]
    for _ in range(turns % 4):
        dy, dx = np.rot90(-dx), np.rot90(dy)
        intra_HW = np.rot90(intra_HW)
    return np.ascontiguousarray(np.stack([dy, dx], axis=2)), np.ascontiguousarray(intra_HW)


def subtract_camera(offset_HW2: npt.NDArray[np.float32], intra_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Motion magnitude [H, W] in canvas pixels per frame, less the camera's: the median over patches that have vectors."""
    known = intra_HW < 0.5
    if not known.any():
        return np.zeros(intra_HW.shape, np.float32)
    camera = np.median(offset_HW2[known], axis=0)
    magnitude = np.sqrt(((offset_HW2 - camera) ** 2).sum(axis=2))
    return np.where(known, magnitude, np.float32(0)).astype(np.float32)


def match_blocks(
    half_luma: npt.NDArray[np.uint8],
    previous_half_luma: npt.NDArray[np.uint8],
    previous_offset_HW2: npt.NDArray[np.float32],
    *,
    half_patch_px: int,
) -> npt.NDArray[np.float32]:
    """Block matching at half resolution against the previous displayed frame, one vector a patch.

    Predictors: zero, the patch's vector in the frame before, its left and upper neighbours'; the best by sum of absolute
    differences is refined by a descent over the four neighbours. Ties keep the earlier candidate, zero first.

    Args:
        half_luma, previous_half_luma: [h, w] uint8, h and w multiples of half_patch_px.
        previous_offset_HW2: last result, canvas pixels (zeros at first).

    Returns:
        offset_HW2 [H, W, 2] float32 (dy, dx) in canvas pixels (even steps).
    """
    rows, columns = half_luma.shape[0] // half_patch_px, half_luma.shape[1] // half_patch_px
    result = np.zeros((rows, columns, 2), np.int32)
    previous = np.rint(previous_offset_HW2 / 2).astype(np.int32)
    _match(half_luma, previous_half_luma, previous, half_patch_px, result)
    return (result * 2).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _difference(current, previous, top, left, dy, dx, side, limit):  # type: ignore[no-untyped-def]
    height, width = current.shape
    total: Any = 0
    inside = top + dy >= 0 and left + dx >= 0 and top + dy + side <= height and left + dx + side <= width
    for r in range(side):
        if inside:
            for c in range(side):
                total += abs(np.int32(current[top + r, left + c]) - np.int32(previous[top + r + dy, left + c + dx]))
        else:
            y = min(max(top + r + dy, 0), height - 1)
            for c in range(side):
                x = min(max(left + c + dx, 0), width - 1)
                total += abs(np.int32(current[top + r, left + c]) - np.int32(previous[y, x]))
        if total >= limit:
            return limit
    return total


@numba.njit(cache=True, nogil=True)
def _match(current, previous, hint, side, result):  # type: ignore[no-untyped-def]
    rows, columns = result.shape[0], result.shape[1]
    good_enough = side * side  # one gray level a pixel: noise, not motion
    for row in range(rows):
        for column in range(columns):
            top, left = row * side, column * side
            best_y, best_x = 0, 0
            best = _difference(current, previous, top, left, 0, 0, side, 1 << 30)
            if best > good_enough:
                for k in range(3):
                    if k == 0:
                        y, x = hint[row, column, 0], hint[row, column, 1]
                    elif k == 1 and column > 0:
                        y, x = result[row, column - 1, 0], result[row, column - 1, 1]
                    elif k == 2 and row > 0:
                        y, x = result[row - 1, column, 0], result[row - 1, column, 1]
                    else:
                        continue
                    if y != best_y or x != best_x:
                        cost = _difference(current, previous, top, left, y, x, side, best)
                        if cost < best:
                            best, best_y, best_x = cost, y, x
                step = 4
                moved_y, moved_x = 0, 0
                while step >= 1 and best > good_enough:
                    start_y, start_x = best_y, best_x
                    for k in range(4):
                        y = start_y + (step if k == 0 else -step if k == 1 else 0)
                        x = start_x + (step if k == 2 else -step if k == 3 else 0)
                        cost = _difference(current, previous, top, left, y, x, side, best)
                        if cost < best:
                            best, best_y, best_x = cost, y, x
                    moved_y += abs(best_y - start_y)
                    moved_x += abs(best_x - start_x)
                    if (best_y == start_y and best_x == start_x) or max(moved_y, moved_x) >= SEARCH_RADIUS_PX:
                        step //= 2
            result[row, column, 0] = best_y
            result[row, column, 1] = best_x
