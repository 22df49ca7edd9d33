"""Scoring: one number per 2x2-patch block from motion, residual and intra share (the published method).

    s = motion_weight * mv / p(mv) + residual_weight * res / p(res) + intra_weight * intra

p is the 95th percentile of the map in its own frame ("frame", as published) or the 99th over all frames of the group
("clip"; a group is what a bounded-memory pass can see). Ratios are capped, and p has a floor at the noise level, so that a
still frame is not blown up to look busy.
"""

import numpy as np
import numpy.typing as npt

from ov2_core.config import ScoreConfig

RATIO_CAP = 2.0
MOTION_FLOOR_PX = 0.25
RESIDUAL_FLOOR = 1.0
"""Gray levels."""


def score_blocks(
    motion_TB: npt.NDArray[np.float32],
    residual_TB: npt.NDArray[np.float32],
    intra_TB: npt.NDArray[np.float32],
    config: ScoreConfig,
) -> npt.NDArray[np.float32]:
    """[T, B] scores of T frames of one group.

    Args:
        motion_TB: canvas pixels per frame, camera subtracted.
        residual_TB: gray levels.
        intra_TB: 0..1.
    """
    motion = _normalise(motion_TB, MOTION_FLOOR_PX, config)
    residual = _normalise(residual_TB, RESIDUAL_FLOOR, config)
    score = config.motion_weight * motion + config.residual_weight * residual + config.intra_weight * intra_TB
    result: npt.NDArray[np.float32] = score.astype(np.float32)
    return result


def _normalise(values_TB: npt.NDArray[np.float32], floor: float, config: ScoreConfig) -> npt.NDArray[np.float32]:
    if config.normalisation == "frame":
        scale = np.percentile(values_TB, 95, axis=1, keepdims=True)
    else:
        scale = np.percentile(values_TB, 99, keepdims=True)
    return np.minimum(values_TB / np.maximum(scale, floor), RATIO_CAP).astype(np.float32)
