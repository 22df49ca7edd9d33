"""Orders of patches: raster order (as shards store positions) and block order (as pixels reach the encoder).

Enters: a grid of stills and videos, or positions. Leaves: positions in block order. Block order of a canvas: its m x m blocks in
raster order, the patches of a block in raster order; view(t, h/m, m, w/m, m) permuted to (t, h/m, w/m, m, m).

N patches, m merge size.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def block_order(grid_thw: Sequence[Sequence[int]], *, merge: int) -> Tensor:
    """int64 `[N]`: the raster index of each patch in block order, so that `raster[block_order(...)]` is in block order.

    Raises:
        ValueError: a side that is no multiple of the merge size; the row is named.
    """
    parts, start = [], 0
    for i, (t, h, w) in enumerate(grid_thw):
        if h % merge or w % merge:
            raise ValueError(f"grid row {i} must have h and w in multiples of {merge}, got {[t, h, w]}")
        raster = torch.arange(start, start + t * h * w)
        parts.append(raster.view(t, h // merge, merge, w // merge, merge).permute(0, 1, 3, 2, 4).flatten())
        start += t * h * w
    return torch.cat(parts)


def grid_positions(grid_thw: Sequence[Sequence[int]], *, merge: int) -> Tensor:
    """int64 `[N, 3]` in block order: t is the index of the canvas in its row, h and w the place in the canvas."""
    parts = [torch.cartesian_prod(*(torch.arange(n) for n in row)).view(-1, 3) for row in grid_thw]
    return torch.cat(parts)[block_order(grid_thw, merge=merge)]


def positions_in_block_order(positions_N3: Tensor, grid_thw: Sequence[Sequence[int]], *, merge: int) -> Tensor:
    """Positions in either order to block order.

    Patches of a block share t and lie side by side, which tells the orders apart: in block order each m x m consecutive rows
    are (t, h + i, w + j). Where that holds for no order (positions that are no places in a frame), they are taken as they are.
    """
    if merge == 1 or _is_block_order(positions_N3, merge):
        return positions_N3
    reordered = positions_N3[block_order(grid_thw, merge=merge).to(positions_N3.device)]
    if _is_block_order(reordered, merge):
        return reordered
    log.warning("patch_positions form %d x %d blocks in neither order; taken to be in block order", merge, merge)
    return positions_N3


def _is_block_order(positions_N3: Tensor, merge: int) -> bool:
    offsets = torch.cartesian_prod(torch.arange(1), torch.arange(merge), torch.arange(merge)).to(positions_N3)
    blocks = positions_N3.view(-1, merge * merge, 3)
    return bool((blocks - blocks[:, :1] == offsets).all())
