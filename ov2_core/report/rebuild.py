"""From a stored sample back to source frames: which block came from where, and the clip as its evidence tells it.

Enters: a stored sample (record, JPEG canvases, positions). Leaves: block sources and rebuilt frames. The rule is hold:
a block of a frame shows the latest evidence for its place given up to that time; of two with one time, the later image
wins. The viewer's JavaScript follows the same rule, and a test holds the two against each other.

Shape letters: N images, P patches of an image, B blocks of an image, E blocks of a sample, T times, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ov2_core.storage.reader import StoredSample
from schemas.tokens import SampleRecord

UNSEEN_GREY = 128
"""Value of a pixel for whose place no evidence was given yet."""


def grid_blocks(record: SampleRecord) -> tuple[int, int]:
    """(rows, columns) of m x m patch blocks in an image of the sample."""
    block_px = record.patch_px * record.merge
    return record.image_height_px // block_px, record.image_width_px // block_px


def block_sources(record: SampleRecord, positions_P3: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """int32 [B, 3] = (t, row, column) of each block of one image, raster order of blocks; row and column count blocks.

    Raises:
        ValueError: the array has another shape, a block mixes sources, or a place lies outside the source frame.
    """
    rows, columns = grid_blocks(record)
    merge = record.merge
    name = f"positions of {record.provenance.id!r}"
    if positions_P3.shape != (rows * columns * merge * merge, 3):
        raise ValueError(
            f"{name}: expected shape ({rows * columns * merge * merge}, 3) for images of "
            f"{record.image_width_px} x {record.image_height_px} px, got {positions_P3.shape}; run `ov2 verify`"
        )
    patches = positions_P3.reshape(rows, merge, columns, merge, 3).transpose(0, 2, 1, 3, 4)
    first = patches[:, :, :1, :1]
    inside = np.stack(np.meshgrid(np.arange(merge), np.arange(merge), indexing="ij"), axis=-1)
    same_time = (patches[..., 0] == first[..., 0]).all()
    if not same_time or not (patches[..., 1:] == first[..., 1:] + inside).all() or (first[..., 1:] % merge).any():
        raise ValueError(f"{name}: a {merge} x {merge} block mixes sources; run `ov2 verify`")
    blocks = np.concatenate([first[..., :1], first[..., 1:] // merge], axis=-1).reshape(-1, 3)
    if (blocks < 0).any() or (blocks[:, 1:] >= (rows, columns)).any():
        raise ValueError(f"{name}: a place lies outside the source frame; run `ov2 verify`")
    return blocks.astype(np.int32)


def rebuild_frames(stored: StoredSample, times_seconds: Sequence[float]) -> npt.NDArray[np.uint8]:
    """The clip at the given times, held block by block from the evidence given up to each.

    Args:
        times_seconds: any order; on the sample's timeline (0 is the first frame shown). A still ignores them.

    Returns:
        uint8 RGB [T, H, W, 3]; places without evidence so far are grey (UNSEEN_GREY).
    """
    record = stored.record
    rows, columns = grid_blocks(record)
    block_px = record.patch_px * record.merge
    sources_E3 = np.concatenate([block_sources(record, positions) for positions in stored.positions_NP3])
    order = np.argsort(sources_E3[:, 0], kind="stable")
    t_E = sources_E3[order, 0]
    place_E = sources_E3[order, 1] * columns + sources_E3[order, 2]

    images = stored.images_NHW3
    pixels_E = images.reshape(len(images), rows, block_px, columns, block_px, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels_E = pixels_E.reshape(-1, block_px, block_px, 3)[order]

    frames = np.full((len(times_seconds), rows * columns, block_px, block_px, 3), UNSEEN_GREY, np.uint8)
    for frame, seconds in zip(frames, times_seconds, strict=True):
        tick = np.floor(seconds * record.fps + 1e-6) if record.fps else np.inf
        given = int(np.searchsorted(t_E, tick, side="right"))
        latest = np.full(rows * columns, -1)
        np.maximum.at(latest, place_E[:given], np.arange(given))
        frame[latest >= 0] = pixels_E[latest[latest >= 0]]
    shape = (len(times_seconds), rows, columns, block_px, block_px, 3)
    return frames.reshape(shape).transpose(0, 1, 3, 2, 4, 5).reshape(len(times_seconds), *images.shape[1:])
