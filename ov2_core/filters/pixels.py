"""A look at a few frames: does anything change, is it black, and what does it look like, in 64 bits a frame.

Enters: a probed video, a folder of frames or a still. Leaves: PixelScores. The frames stand in the middle of NUM_FRAMES equal
parts of the range, wherever its keyframes are: two encodings of a clip must be looked at in the same places. Of each, at
most the frames since the keyframe before it are decoded.

The hash is dHash (N. Krawetz, "Kind of Like That", 2013) of luma on 9 x 8 cells: is a cell brighter than its right
neighbour? imagehash has the same ten lines and brings SciPy and PyWavelets.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from ov2_core.media.container import Source
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.frame_folder import FrameFolder, load_frame
from ov2_core.media.image import StillImage
from ov2_core.media.probe import VideoProbe
from schemas.video import PixelScores

NUM_FRAMES = 8
CELLS_HIGH, CELLS_WIDE = 64, 72
"""Cells that changes and darkness are measured on: 8 x 8 of them in each of the hash's."""
DARK_LEVEL = 25.5
"""10 % of full luma."""
MIN_CONTRAST_LEVELS = 3.0
"""Standard deviation of luma over the hash's cells below which a frame has no hash: noise would decide its bits."""
_LUMA = np.array([299, 587, 114], np.int32)
"""Thousandths; ITU-R BT.601. Whole numbers: equal pixels have equal luma wherever they stand and on whatever CPU."""

Cells = npt.NDArray[np.float32]
"""[CELLS_HIGH, CELLS_WIDE] luma, full range 0..255."""


def look_at_video(source: Source, probe: VideoProbe) -> PixelScores:
    """Scores of a video's range. Frames that do not decode are left out."""
    scaler = VideoReformatter()
    seconds, cells = [], []
    for index, frame in decode_frames(source, probe, stats=DecodeStats(), wanted=spread(probe.seconds_T).tolist()):
        turns = probe.rotation_degrees // 90
        size = (CELLS_HIGH, CELLS_WIDE) if turns % 2 else (CELLS_WIDE, CELLS_HIGH)
        small = scaler.reformat(frame, *size, "rgb24", interpolation="AREA", threads=1)
        seconds.append(float(probe.seconds_T[index] - probe.seconds_T[0]))
        cells.append(_luma(np.rot90(small.to_ndarray(), turns)))
    return scores(seconds, cells)


def look_at_folder(folder: FrameFolder, probe: VideoProbe, *, max_source_px: int) -> PixelScores:
    """Scores of a folder of frames.

    Raises:
        BadItemError: a frame cannot be read.
    """
    chosen = spread(probe.seconds_T).tolist()
    images = (load_frame(folder, probe.num_skipped + index, max_source_px=max_source_px) for index in chosen)
    cells = [_luma(image.resized(CELLS_WIDE, CELLS_HIGH)) for image in images]
    return scores((probe.seconds_T[chosen] - probe.seconds_T[0]).tolist(), cells)


def look_at_still(image: StillImage) -> PixelScores:
    """Scores of a still: one frame."""
    return scores([0.0], [_luma(image.resized(CELLS_WIDE, CELLS_HIGH))])


def scores(seconds: list[float], cells: Iterable[Cells]) -> PixelScores:
    """Scores of frames given as cells of luma."""
    cells = list(cells)
    return PixelScores(
        seconds=[round(second, 3) for second in seconds],
        change_levels=[round(float(np.abs(b - a).mean()), 3) for a, b in pairwise(cells)],
        dark_share=[round(float((frame < DARK_LEVEL).mean()), 4) for frame in cells],
        hashes=[difference_hash(frame) for frame in cells],
    )


def spread(seconds_T: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Ascending, distinct indices of the frames nearest to the middles of NUM_FRAMES equal parts of the time."""
    middles = seconds_T[0] + (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * (seconds_T[-1] - seconds_T[0])
    right = np.clip(np.searchsorted(seconds_T, middles), 1, max(1, len(seconds_T) - 1))
    left = right - 1
    right = np.minimum(right, len(seconds_T) - 1)
    nearest = np.where(middles - seconds_T[left] <= seconds_T[right] - middles, left, right)
    return np.unique(nearest)


def difference_hash(cells: Cells) -> str | None:
    """16 hex digits, row by row from the top left; None for a frame without contrast."""
    coarse = cells.reshape(8, CELLS_HIGH // 8, 9, CELLS_WIDE // 9).mean(axis=(1, 3))
    if coarse.std() < MIN_CONTRAST_LEVELS:
        return None
    return np.packbits(coarse[:, :-1] > coarse[:, 1:]).tobytes().hex()


def _luma(rgb_HW3: npt.NDArray[np.uint8]) -> Cells:
    luma: Cells = (rgb_HW3 * _LUMA).sum(axis=2).astype(np.float32) / np.float32(1000)
    return luma
