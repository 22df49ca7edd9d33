"""Rows of features to what is stored, and back.

bf16: rounded to nearest, |error| <= 2^-8 |x|. int8: symmetric, one float32 scale a row, scale = max |row| / 127,
|error| <= scale / 2 = max |row| / 254. fp32: as computed.

Shape letters: T rows, D values of a row.
"""

import torch
from torch import Tensor

from schemas.features import FeatureDtype

TORCH_TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def store_rows(rows_TD: Tensor, dtype: FeatureDtype) -> tuple[Tensor, Tensor | None]:
    """(values [T, D], scales [T] float32; None but for int8), on the rows' device. A row of zeros has scale 0.

    A row with NaN or infinity keeps it in bf16 and fp32, and has a scale that is not finite in int8.
    """
    if dtype != "int8":
        return rows_TD.to(TORCH_TYPE[dtype]), None
    rows_TD = rows_TD.float()
    scales_T = rows_TD.abs().amax(dim=1) / 127
    values_TD = rows_TD / torch.where(scales_T == 0, 1.0, scales_T)[:, None]
    return values_TD.round_().clamp_(-127, 127).to(torch.int8), scales_T


def restore_rows(values_TD: Tensor, scales_T: Tensor | None) -> Tensor:
    """Stored values as float: float32 for fp32 and int8, bfloat16 as it is."""
    return values_TD if scales_T is None else values_TD.float() * scales_T[:, None]
