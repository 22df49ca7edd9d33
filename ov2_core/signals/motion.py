"""Motion per block, in cells (signals/cells.py): from the codec's vectors, or by block matching where it has none.

Both give the same thing: `offset_HW2`, where each block's content stood in an *earlier frame*, relative to the block (dy, dx).
Vectors are per displayed frame and come with `intra_HW`, the share of the block that none predicts. H x W blocks, row-major.

Codec vectors (H.264, MPEG-4 and older, as exported by FFmpeg): a P block points to some earlier anchor and says not to which;
the previous one is assumed, and the vector is divided by the distance to it. B blocks: L0 by the distance back, -L1 by the
distance ahead, averaged (TOKENIZER.md, "Signals from stock PyAV").
"""

import numpy as np
import numpy.typing as npt

from ov2_core.kernel import kernel
from ov2_core.signals.cells import CELLS
from ov2_core.signals.residual import moved_difference

TILE_PX = 8
"""Vectors are first spread on tiles of this size of the coded frame; H.264 partitions are 4 to 16 px."""
SEARCH_RADIUS = 4
"""Block matching: reach of one descent, in cells; predictors extend it over frames and neighbours."""
GOOD_ENOUGH = 0.5
"""Gray levels a cell: what differs by less is noise, and no motion is looked for."""


def rasterise_vectors(
    vectors: npt.NDArray[np.void], *, coded_height_px: int, coded_width_px: int, frames_back: int, frames_ahead: int
) -> npt.NDArray[np.float32]:
    """Spread exported motion vectors on a grid of 8 px tiles.

    Args:
        vectors: FFmpeg's AVMotionVector array; fields source, w, h, dst_x, dst_y (block centre), motion_x, motion_y, motion_scale.
        frames_back, frames_ahead: displayed frames to the previous and to the next anchor; frames_ahead 0 for an anchor.

    Returns:
        [Hc, Wc, 3] float32: sum of weight * (dy, dx) per displayed frame in coded pixels, and the weight, 1 where covered once.
    """
    tiles = np.zeros((-(-coded_height_px // TILE_PX), -(-coded_width_px // TILE_PX), 3), np.float32)
    _rasterise(
        tiles,
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
    return tiles


@kernel(
    "float32[:, :, ::1], int32[:], uint8[:], uint8[:], int16[:], int16[:], int32[:], int32[:], uint16[:], float32, float32",
)
def _rasterise(tiles, source, w, h, dst_x, dst_y, motion_x, motion_y, motion_scale, back, ahead):  # type: ignore[no-untyped-def]
    height, width = tiles.shape[0], tiles.shape[1]
    for i in range(source.shape[0]):
        factor = back if source[i] < 0 else ahead
        scale = factor / max(1, motion_scale[i])
        dy, dx = motion_y[i] * scale, motion_x[i] * scale
        top, left = dst_y[i] - h[i] // 2, dst_x[i] - w[i] // 2
        bottom, right = top + h[i], left + w[i]
        for r in range(max(0, top // TILE_PX), min(height, (bottom + TILE_PX - 1) // TILE_PX)):
            part_y = min(bottom, (r + 1) * TILE_PX) - max(top, r * TILE_PX)
            for c in range(max(0, left // TILE_PX), min(width, (right + TILE_PX - 1) // TILE_PX)):
                part_x = min(right, (c + 1) * TILE_PX) - max(left, c * TILE_PX)
                weight = np.float32(part_x * part_y) / np.float32(TILE_PX * TILE_PX)
                tiles[r, c, 0] += weight * dy
                tiles[r, c, 1] += weight * dx
                tiles[r, c, 2] += weight


class TilesToBlocks:
    """Area-weighted average of the tile grid on the block grid of the canvas (not turned).

    Args:
        coded_height_px, coded_width_px: of the decoded frame.
        rows, columns: blocks of the unturned canvas.
    """

    def __init__(self, *, coded_height_px: int, coded_width_px: int, rows: int, columns: int) -> None:
        self._down = _overlap(coded_height_px, rows)
        self._across = _overlap(coded_width_px, columns)
        self._scale = np.array([rows * CELLS / coded_height_px, columns * CELLS / coded_width_px], np.float32)

    def __call__(self, tiles: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Returns (offset_HW2 in cells (dy, dx), intra_HW in 0..1), float32."""
        shape = (self._down.shape[0], self._across.shape[0])
        offset, intra = np.empty((*shape, 2), np.float32), np.empty(shape, np.float32)
        _average(tiles, self._down, self._across, self._scale, offset, intra)
        return offset, intra


@kernel("float32[:, :, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[:, :, ::1], float32[:, ::1]")
def _average(tiles, down, across, scale, offset, intra):  # type: ignore[no-untyped-def]
    rows, columns = intra.shape
    first_y, end_y = _spans(down)
    first_x, end_x = _spans(across)
    for r in range(rows):
        for c in range(columns):
            weight, sum_y, sum_x = np.float32(0), np.float32(0), np.float32(0)
            for y in range(first_y[r], end_y[r]):
                for x in range(first_x[c], end_x[c]):
                    covered = tiles[y, x, 2]
                    if covered > 0:
                        share = down[r, y] * across[c, x] * min(covered, np.float32(1))
                        weight += share
                        sum_y += share * tiles[y, x, 0] / covered
                        sum_x += share * tiles[y, x, 1] / covered
            intra[r, c] = min(max(1 - weight, np.float32(0)), np.float32(1))
            offset[r, c, 0] = sum_y / max(weight, np.float32(1e-6)) * scale[0]
            offset[r, c, 1] = sum_x / max(weight, np.float32(1e-6)) * scale[1]


@kernel()
def _spans(overlap):  # type: ignore[no-untyped-def]
    """First and one past the last tile that each part has a share of."""
    first = np.zeros(overlap.shape[0], np.int64)
    end = np.zeros(overlap.shape[0], np.int64)
    for part in range(overlap.shape[0]):
        for tile in range(overlap.shape[1]):
            if overlap[part, tile] > 0:
                if end[part] == 0:
                    first[part] = tile
                end[part] = tile + 1
    return first, end


def _overlap(length_px: int, parts: int) -> npt.NDArray[np.float32]:
    """[parts, tiles]: share of each of `parts` equal parts of [0, length_px) that each tile covers; rows sum to 1."""
    tiles = -(-length_px // TILE_PX)
    edges = np.linspace(0, length_px, parts + 1)
    low = np.maximum(edges[:-1, None], np.arange(tiles) * TILE_PX)
    high = np.minimum(edges[1:, None], np.minimum((np.arange(tiles) + 1) * TILE_PX, length_px))
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
    """Motion magnitude [H, W] in cells, less the camera's: the median over blocks that are predicted."""
    magnitude = np.zeros(intra_HW.shape, np.float32)
    _magnitude(offset_HW2.reshape(-1, 2), intra_HW.reshape(-1), magnitude.reshape(-1))
    return magnitude


@kernel("float32[:, ::1], float32[::1], float32[::1]")
def _magnitude(offset, intra, magnitude):  # type: ignore[no-untyped-def]
    known = np.flatnonzero(intra < 0.5)
    if len(known) == 0:
        return
    camera_y, camera_x = np.median(offset[known, 0]), np.median(offset[known, 1])
    for i in known:
        magnitude[i] = np.sqrt((offset[i, 0] - camera_y) ** 2 + (offset[i, 1] - camera_x) ** 2)


def match_blocks(
    cells: npt.NDArray[np.float32], previous_cells: npt.NDArray[np.float32], hint_HW2: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Block matching of cells against those of an earlier frame, one vector a block.

    Predictors: zero, the hint, the left and upper neighbours' vectors; the best by sum of absolute differences is refined by a
    descent over the four neighbours, then to a fraction of a cell where two straight lines through the differences meet. A
    result is never worse than standing still; ties keep the earlier candidate, zero first.

    Args:
        cells, previous_cells: [H * 7, W * 7].
        hint_HW2: a guess, such as the last result (zeros at first).

    Returns:
        offset_HW2 [H, W, 2] float32 (dy, dx) in cells.
    """
    result = np.zeros((cells.shape[0] // CELLS, cells.shape[1] // CELLS, 2), np.float32)
    whole = np.zeros(result.shape, np.int32)
    _match(cells, previous_cells, np.rint(hint_HW2).astype(np.int32), whole, result)
    return result


@kernel()
def _difference(current, previous, top, left, dy, dx, limit):  # type: ignore[no-untyped-def]
    """Sum of absolute differences of a block, edges clamped; `limit` once it reaches that."""
    height, width = current.shape
    total = np.float32(0)
    inside = top + dy >= 0 and left + dx >= 0 and top + dy + CELLS <= height and left + dx + CELLS <= width
    for r in range(CELLS):
        if inside:
            for c in range(CELLS):
                total += abs(current[top + r, left + c] - previous[top + r + dy, left + c + dx])
        else:
            y = min(max(top + r + dy, 0), height - 1)
            for c in range(CELLS):
                x = min(max(left + c + dx, 0), width - 1)
                total += abs(current[top + r, left + c] - previous[y, x])
        if total >= limit:
            return limit
    return total


@kernel()
def _vertex(before, at, after):  # type: ignore[no-untyped-def]
    """Where two lines of opposite slope through three differences at -1, 0 and 1 meet."""
    rise = max(before, after) - at
    return np.float32(0) if rise <= 0 else np.float32(0.5) * (before - after) / rise


@kernel("float32[:, ::1], float32[:, ::1], int32[:, :, ::1], int32[:, :, ::1], float32[:, :, ::1]")
def _match(current, previous, hint, whole, result):  # type: ignore[no-untyped-def]
    rows, columns = result.shape[0], result.shape[1]
    good_enough = np.float32(GOOD_ENOUGH * CELLS * CELLS)
    far = np.float32(1e9)
    for row in range(rows):
        for column in range(columns):
            top, left = row * CELLS, column * CELLS
            best_y, best_x = 0, 0
            best = _difference(current, previous, top, left, 0, 0, far)
            if best <= good_enough:
                continue
            for k in range(3):
                if k == 0:
                    y, x = hint[row, column, 0], hint[row, column, 1]
                elif k == 1 and column > 0:
                    y, x = whole[row, column - 1, 0], whole[row, column - 1, 1]
                elif k == 2 and row > 0:
                    y, x = whole[row - 1, column, 0], whole[row - 1, column, 1]
                else:
                    continue
                if y != best_y or x != best_x:
                    cost = _difference(current, previous, top, left, y, x, best)
                    if cost < best:
                        best, best_y, best_x = cost, y, x
            step, moved_y, moved_x = 2, 0, 0
            while step >= 1 and best > good_enough:
                start_y, start_x = best_y, best_x
                for k in range(4):
                    y = start_y + (step if k == 0 else -step if k == 1 else 0)
                    x = start_x + (step if k == 2 else -step if k == 3 else 0)
                    cost = _difference(current, previous, top, left, y, x, best)
                    if cost < best:
                        best, best_y, best_x = cost, y, x
                moved_y += abs(best_y - start_y)
                moved_x += abs(best_x - start_x)
                if (best_y == start_y and best_x == start_x) or max(moved_y, moved_x) >= SEARCH_RADIUS:
                    step //= 2
            whole[row, column, 0], whole[row, column, 1] = best_y, best_x
            result[row, column, 0], result[row, column, 1] = best_y, best_x
            if best > good_enough:
                up = _difference(current, previous, top, left, best_y - 1, best_x, far)
                down = _difference(current, previous, top, left, best_y + 1, best_x, far)
                before = _difference(current, previous, top, left, best_y, best_x - 1, far)
                after = _difference(current, previous, top, left, best_y, best_x + 1, far)
                fine_y, fine_x = best_y + _vertex(up, best, down), best_x + _vertex(before, best, after)
                if moved_difference(current, previous, top, left, fine_y, fine_x) < best:
                    result[row, column, 0], result[row, column, 1] = fine_y, fine_x
