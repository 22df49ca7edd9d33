"""Tracking with masks: the suite "tracking" with J&F beside the points.

Enters: items whose row names `masks`, a .npz with `masks` integer [T, H, W] at 6 frames a second (0 background, other numbers
objects), and `video`; a propagator. Leaves: a suite whose items also have `J&F`, `J`, `F`. Items without masks have points alone.
"""

import os
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.errors import BadItemError
from ov2_core.evals.answers import video_of
from ov2_core.evals.evaluate import Suite
from ov2_core.evals.item import ItemScore, TruthItem
from ov2_core.evals.masks import TRACK_FPS, MaskPropagator
from ov2_core.evals.tracking import score_with_masks
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import probe_video
from ov2_core.media.scale import Scaler


def with_masks(suite: Suite, propagator: MaskPropagator) -> Suite:
    """The suite with masks. Raises ValueError while scoring, for masks or a video that cannot be read."""

    def score(item: TruthItem, answer: str | None) -> ItemScore:
        points = suite.score(item, answer)
        if not isinstance(item.row.get("masks"), str):
            return points
        try:
            masks_THW = read_masks(os.path.join(item.folder, item.row["masks"]))
            num_frames, height, width = masks_THW.shape
            frames_THW3 = frames_at(video_of(item), num_frames=num_frames, width_px=width, height_px=height)
            found = score_with_masks(answer, frames_THW3, masks_THW, propagator)
        except BadItemError as error:
            raise ValueError(str(error)) from None
        return replace(points, metrics={**points.metrics, **found})

    return replace(suite, score=score)


def read_masks(path: str) -> npt.NDArray[np.integer[Any]]:
    """Integer [T, H, W] of a .npz.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            masks: npt.NDArray[Any] = file["masks"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"masks {path}: cannot be read ({error}); expected a .npz with `masks`") from None
    if masks.ndim != 3 or not len(masks) or not (np.issubdtype(masks.dtype, np.integer) or masks.dtype == np.bool_):
        raise ValueError(f"masks {path}: expected integers [T, H, W], got {masks.dtype} {list(masks.shape)}")
    return masks.astype(np.uint8) if masks.dtype == np.bool_ else masks


def frames_at(video: str, *, num_frames: int, width_px: int, height_px: int) -> npt.NDArray[np.uint8]:
    """[T, H, W, 3] RGB: for each k the frame shown at k / 6 seconds, the last one behind the end.

    Raises:
        BadItemError: the video cannot be read.
    """
    probe = probe_video(video)
    instants = np.arange(num_frames) / TRACK_FPS + 1e-6
    shown = np.clip(
        np.searchsorted(probe.seconds_T - probe.seconds_T[0], instants, side="right") - 1, 0, probe.num_frames - 1
    )
    scaler = Scaler(
        width_px=width_px + width_px % 2, height_px=height_px + height_px % 2, rotation_degrees=probe.rotation_degrees
    )
    wanted = sorted({int(index) for index in shown})
    pictures = {
        index: scaler.rgb(scaler.scaled(frame))[:height_px, :width_px]
        for index, frame in decode_frames(video, probe, stats=DecodeStats(), wanted=wanted)
    }
    if not pictures:
        raise BadItemError("no_decodable_frame", f"{video}: no frame decodes", stage="tokenize")
    nearest = {index: min(pictures, key=lambda other: abs(other - index)) for index in wanted}
    return np.stack([pictures[nearest[int(index)]] for index in shown])
