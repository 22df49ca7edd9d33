"""Video masks from points, and how good they are: J, F and J&F as DAVIS defines them (Perazzi et al. 2016, Pont-Tuset et al. 2017).

Enters: frames, positive points; true masks. Leaves: masks by object, J (region IoU), F (boundary measure), their mean.
`MaskPropagator` is all that is asked of a segmenter: SAM 2 stands behind it in ov2_core/model/sam2.py; `ColourPropagator` here is a
toy for tests and for generated clips, which holds what has the colour under the point.

T frames, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

TRACK_FPS = 6.0
"""Rate at which videos are shown to the propagator; a point at t seconds prompts frame round(6 t)."""
BOUNDARY_SHARE = 0.008
"""Of the frame's diagonal: how far a boundary may lie off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointPrompt:
    """A positive point on an object in a frame."""

    frame: int
    object_id: int
    x_px: float
    y_px: float


class MaskPropagator(Protocol):
    """A segmenter that follows objects through a video."""

    def propagate(self, frames_THW3: npt.NDArray[np.uint8], prompts: Sequence[PointPrompt]) -> Mapping[int, Mask]:
        """[T, H, W] for each object that is prompted; frames are RGB."""
        ...


class ColourPropagator:
    """What is near the mean colour of an object's points and lies within a distance of where it was last seen.

    Not a segmenter of real video: for flat colours of generated clips."""

    def __init__(self, *, tolerance: int = 40, reach_share: float = 0.15) -> None:
        self._tolerance, self._reach_share = tolerance, reach_share

    def propagate(self, frames_THW3: npt.NDArray[np.uint8], prompts: Sequence[PointPrompt]) -> Mapping[int, Mask]:
        num_frames, height, width, _ = frames_THW3.shape
        found = {}
        for object_id in sorted({prompt.object_id for prompt in prompts}):
            own = [p for p in prompts if p.object_id == object_id and 0 <= p.frame < num_frames]
            masks = np.zeros((num_frames, height, width), np.bool_)
            if own:
                places = [(p.frame, _pixel(p.y_px, height), _pixel(p.x_px, width)) for p in own]
                colour = np.median([frames_THW3[place] for place in places], axis=0)
                by_frame = {frame: (y, x) for frame, y, x in places}
                first = min(by_frame)
                self._follow(frames_THW3, colour, by_frame, masks, range(first, num_frames))
                self._follow(frames_THW3, colour, by_frame, masks, range(first, -1, -1))
            found[object_id] = masks
        return found

    def _follow(
        self,
        frames_THW3: npt.NDArray[np.uint8],
        colour: npt.NDArray[np.float64],
        by_frame: Mapping[int, tuple[int, int]],
        masks_THW: Mask,
        order: range,
    ) -> None:
        _, height, width = masks_THW.shape
        ys, xs = np.indices((height, width))
        y, x = by_frame[order[0]]
        reach = self._reach_share * np.hypot(height, width)
        for frame in order:
            y, x = by_frame.get(frame, (y, x))
            near = np.abs(frames_THW3[frame].astype(np.int16) - colour).max(axis=2) <= self._tolerance
            near &= np.hypot(ys - y, xs - x) <= reach
            masks_THW[frame] = near
            if near.any():
                y, x = round(float(ys[near].mean())), round(float(xs[near].mean()))


# -------------------------------------------------------------------------------- DAVIS measures


def region_iou(predicted_HW: Mask, truth_HW: Mask) -> float:
    """J of one frame: intersection over union; both empty: 1.

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(predicted_HW, truth_HW)
    union = int((predicted_HW | truth_HW).sum())
    return int((predicted_HW & truth_HW).sum()) / union if union else 1.0


def boundary_of(mask_HW: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour, as DAVIS draws boundaries; at the last row and column
    only along them."""
    boundary = np.zeros_like(mask_HW)
    boundary[:, :-1] |= mask_HW[:, :-1] ^ mask_HW[:, 1:]
    boundary[:-1, :] |= mask_HW[:-1, :] ^ mask_HW[1:, :]
    boundary[:-1, :-1] |= mask_HW[:-1, :-1] ^ mask_HW[1:, 1:]
    return boundary


def boundary_f(predicted_HW: Mask, truth_HW: Mask, *, share: float = BOUNDARY_SHARE) -> float:
    """F of one frame: harmonic mean of the shares of each boundary that lie within ceil(share x diagonal) pixels of the other.

    Without any boundary on both sides 1, on one side 0.

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(predicted_HW, truth_HW)
    reach_px = int(np.ceil(share * np.hypot(*predicted_HW.shape)))
    predicted, truth = boundary_of(predicted_HW), boundary_of(truth_HW)
    if not predicted.any() or not truth.any():
        return float(predicted.any() == truth.any())
    precision = float((predicted & _dilated(truth, reach_px)).sum() / predicted.sum())
    recall = float((truth & _dilated(predicted, reach_px)).sum() / truth.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score_masks(predicted_THW: Mask, truth_THW: Mask) -> dict[str, float]:
    """`J`, `F` and `J&F` of an object: means over all frames given.

    (DAVIS leaves the first and the last frame out where the first was given as the prompt. Here no mask is given, so none is.)

    Raises:
        ValueError: shapes differ, or there is no frame.
    """
    if predicted_THW.shape != truth_THW.shape or not len(truth_THW):
        raise ValueError(f"expected masks of one shape [T, H, W], got {predicted_THW.shape} and {truth_THW.shape}")
    regions = [region_iou(a, b) for a, b in zip(predicted_THW, truth_THW, strict=True)]
    boundaries = [boundary_f(a, b) for a, b in zip(predicted_THW, truth_THW, strict=True)]
    j, f = float(np.mean(regions)), float(np.mean(boundaries))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def _dilated(mask_HW: Mask, reach_px: int) -> Mask:
    """Pixels within a distance of the mask: a disk, row by row of it, each a box along the row by running sums."""
    height, width = mask_HW.shape
    sums = np.zeros((height, width + 1), np.int64)
    np.cumsum(mask_HW, axis=1, out=sums[:, 1:])
    columns = np.arange(width)
    result = np.zeros_like(mask_HW)
    for dy in range(-min(reach_px, height - 1), min(reach_px, height - 1) + 1):
        half = int(np.floor(np.sqrt(reach_px**2 - dy**2)))
        start, end = np.maximum(columns - half, 0), np.minimum(columns + half + 1, width)
        near = sums[:, end] > sums[:, start]
        if dy >= 0:
            result[: height - dy] |= near[dy:]
        else:
            result[-dy:] |= near[: height + dy]
    return result


def _same_shape(a: Mask, b: Mask) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.dtype != np.bool_ or b.dtype != np.bool_:
        raise ValueError(
            f"expected two bool masks [H, W] of one shape, got {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )


def _pixel(value: float, extent: int) -> int:
    return min(max(int(value), 0), extent - 1)
