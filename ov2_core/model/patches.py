"""Pixels to encoder input: patches in block order, normalised; and the places of patches in the same order.

In: uint8 images and their raster-order positions, as shards hold them. Out: rows of C * p * p values, channel first, the m * m
patches of a merged token side by side. One image at a time goes through float32, so the temporary stays in the cache; there is
no Python per patch.

Shapes: N images, P patches of an image, H x W pixels, p patch side, m merge side, K merged tokens.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def to_block_order(
    patches_NP: npt.NDArray[np.generic], *, rows: int, columns: int, merge: int
) -> npt.NDArray[np.generic]:
    """Raster order to block order: [N, P, ...] -> [N, P, ...], view(h/m, m, w/m, m) permuted to (h/m, w/m, m, m).

    Args:
        rows, columns: patches of an image; multiples of merge.
    """
    num, rest = patches_NP.shape[0], patches_NP.shape[2:]
    blocks = patches_NP.reshape(num, rows // merge, merge, columns // merge, merge, *rest)
    return np.ascontiguousarray(np.swapaxes(blocks, 2, 3)).reshape(num, rows * columns, *rest)


def cut_patches(image_HW3: npt.NDArray[np.uint8], *, patch_px: int, merge: int) -> npt.NDArray[np.uint8]:
    """[P, 3 * p * p] uint8 patches of one image in block order, channel first.

    Raises:
        ValueError: not uint8 [H, W, 3], or a side is no multiple of patch_px * merge.
    """
    block_px = patch_px * merge
    if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
        raise ValueError(f"an image must be uint8 [H, W, 3], got {image_HW3.dtype} {list(image_HW3.shape)}")
    height, width, _ = image_HW3.shape
    if height % block_px or width % block_px or not (height and width):
        raise ValueError(f"image sides must be multiples of {block_px} px, got {width} x {height}; resize it first")
    tiles = image_HW3.reshape(height // block_px, merge, patch_px, width // block_px, merge, patch_px, 3)
    ordered = np.ascontiguousarray(tiles.transpose(0, 3, 1, 4, 6, 2, 5))
    return ordered.reshape(-1, 3 * patch_px * patch_px)


def normalise(
    patches_PD: Tensor,
    *,
    mean: Sequence[float] = PIXEL_MEAN,
    std: Sequence[float] = PIXEL_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(x / 255 - mean) / std per channel, computed in float32 on the tensor's device, returned in `dtype`.

    Args:
        patches_PD: [P, 3 * p * p] uint8, channel first.
    """
    return _normalise_into(None, patches_PD, *affine(patches_PD.shape[1], mean, std, patches_PD.device), dtype=dtype)


def patchify(
    images: Iterable[npt.NDArray[np.uint8]],
    *,
    num_patches: int,
    patch_px: int,
    merge: int,
    mean: Sequence[float] = PIXEL_MEAN,
    std: Sequence[float] = PIXEL_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[num_patches, 3 * p * p] encoder input of all images, one after the other.

    Args:
        images: uint8 [H, W, 3], consumed one at a time, so they may be decoded on the way.
        num_patches: patches of all images together.
        dtype: a float type; or torch.uint8: raw pixels for `normalise` on the device that computes, a quarter of the bytes
            to copy.

    Raises:
        ValueError: an image does not fit the grid, or the images hold another number of patches.
    """
    width = 3 * patch_px * patch_px
    out_PD = torch.empty((num_patches, width), dtype=dtype)
    scale_D, offset_D = affine(width, mean, std, out_PD.device)
    start = 0
    for image_HW3 in images:
        raw_PD = torch.from_numpy(cut_patches(image_HW3, patch_px=patch_px, merge=merge))
        stop = start + len(raw_PD)
        if stop > num_patches:
            raise ValueError(f"the images hold more than the {num_patches} patches that their positions name")
        if dtype == torch.uint8:
            out_PD[start:stop] = raw_PD
        else:
            _normalise_into(out_PD[start:stop], raw_PD, scale_D, offset_D, dtype=dtype)
        start = stop
    if start != num_patches:
        raise ValueError(f"the images hold {start} patches, their positions name {num_patches}")
    return out_PD


def merged_times(positions_NP3: npt.NDArray[np.int32], *, rows: int, columns: int, merge: int) -> npt.NDArray[np.int32]:
    """[K] the time of every merged token, all images in order.

    Args:
        positions_NP3: raster order.

    Raises:
        ValueError: a merged token mixes times, or a time is negative (padding).
    """
    ordered = to_block_order(positions_NP3[..., :1], rows=rows, columns=columns, merge=merge)
    t_KM = cast("npt.NDArray[np.int32]", ordered).reshape(-1, merge * merge)
    if (t_KM < 0).any():
        raise ValueError(
            "a position has t < 0, which is padding; readers cannot place it in time: re-tokenize the clip"
        )
    if (t_KM != t_KM[:, :1]).any():
        raise ValueError(
            f"a {merge} x {merge} block of patches mixes times; every block must come from one source frame"
        )
    return t_KM[:, 0]


def affine(width: int, mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and offset [width] with x * scale + offset = (x / 255 - mean) / std, rounded once from float64."""
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    repeat = width // 3
    scale, offset = (1 / (255 * std_C)).float(), (-mean_C / std_C).float()
    return scale.repeat_interleave(repeat).to(device), offset.repeat_interleave(repeat).to(device)


def _normalise_into(
    out: Tensor | None, raw_PD: Tensor, scale_D: Tensor, offset_D: Tensor, *, dtype: torch.dtype
) -> Tensor:
    if out is not None and dtype == torch.float32:
        return out.copy_(raw_PD).mul_(scale_D).add_(offset_D)
    values = raw_PD.to(torch.float32).mul_(scale_D).add_(offset_D)
    return values.to(dtype) if out is None else out.copy_(values)
