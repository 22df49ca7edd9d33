"""Two measures of a tokenization that need no model: evidence held over time, and recall of known events.

Enters: tokens with their source places (ours, uniform frames, or a folder that codec-video-prep wrote) and the source
frames at canvas size. Leaves: PSNR, SSIM, event recall. Design: all selections become BlockEvidence and go through
one code path, so that what is compared is the selection alone; frames stream through, the memory is one frame and the
evidence.

Hold: a block of a frame shows the latest evidence for its place given up to the frame's time (of two with one time, the
later one); a place without evidence so far shows its first. PSNR is that of the squared error averaged over all
pixels of the clip. The optimiser of policy "evidence" minimises nearly this measure, so SSIM and the events are to be
shown beside it.

Shape letters: N images, P patches of an image, E blocks of evidence, R x C places of a frame, B side of a block in
pixels, H x W pixels of a frame (H = R B, W = C B).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.kernel import kernel
from ov2_core.tokenized import TokenizedVideo

EVENT_TOLERANCE_SECONDS = 0.1
STRICT_SHARE = 0.5
_TIME_EPSILON_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockEvidence:
    """What a selection shows: blocks, each with its time and place. Sorted by time, stable in image order."""

    pixels_EBB3: npt.NDArray[np.uint8]
    t_E: npt.NDArray[np.int64]
    """Ticks, >= 0, ascending."""
    row_E: npt.NDArray[np.int64]
    column_E: npt.NDArray[np.int64]
    """Place in the source frame, in blocks."""
    num_rows: int
    num_columns: int
    num_padding: int = 0
    """Blocks that were handed over but stand for nothing (t < 0)."""

    @property
    def block_px(self) -> int:
        """Side of a block."""
        return int(self.pixels_EBB3.shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens that a reader pays for: blocks, padding included."""
        return len(self.t_E) + self.num_padding


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldScore:
    """How well the held evidence stands for the clip."""

    psnr_db: float
    """Of the mean squared error over all frames, RGB; inf where the frames are equal."""
    ssim: float
    """Mean over frames, luma."""
    num_frames: int
    share_unseen: float
    """Share of frame blocks shown before their place had any evidence (they show their first)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventScore:
    """Recall of known events; nan where there is none."""

    recall: float
    """Share of events with a token on the moving region within 0.1 s."""
    strict_recall: float
    """Share of events of which one frame within 0.1 s shows at least half of the moving blocks."""
    num_events: int
    shown: tuple[bool, ...] = ()
    """For each event, whether such a token is there."""


def evidence_of(video: TokenizedVideo) -> BlockEvidence:
    """The evidence of a tokenization of any mode.

    Raises:
        ValueError: as `block_evidence`.
    """
    return block_evidence(video.images_NHW3, video.positions_NP3, patch_px=video.patch_px, merge=video.merge)


def block_evidence(
    images_NHW3: npt.NDArray[np.uint8],
    positions_NP3: npt.NDArray[np.int32],
    *,
    patch_px: int,
    merge: int,
    times_N: Sequence[int] | None = None,
) -> BlockEvidence:
    """Cuts images into blocks of merge x merge patches, each with the source place of its patches.

    Args:
        images_NHW3: uint8 RGB, H and W multiples of a block.
        positions_NP3: (t, h, w) of each patch in raster order, h and w in patches; t < 0 marks padding.
        times_N: replaces t of every patch of an image (for whole frames whose positions carry no time).

    Raises:
        ValueError: sizes that do not fit, a block whose patches are not neighbours at one time, a place off the frame.
    """
    num_images, height, width, _ = images_NHW3.shape
    block_px = patch_px * merge
    rows, columns = height // block_px, width // block_px
    if (rows * block_px, columns * block_px) != (height, width):
        raise ValueError(f"image size must be a multiple of {block_px} px, got {width}x{height}")
    if positions_NP3.shape != (num_images, rows * columns * merge**2, 3):
        raise ValueError(
            f"positions must be [{num_images}, {rows * columns * merge**2}, 3] for {num_images} images of "
            f"{width}x{height} px, got {list(positions_NP3.shape)}"
        )
    places = (
        positions_NP3.astype(np.int64).reshape(num_images, rows, merge, columns, merge, 3).transpose(0, 1, 3, 2, 4, 5)
    )
    places = places.reshape(-1, merge, merge, 3)
    if times_N is not None:
        places[..., 0] = np.repeat(np.asarray(times_N, np.int64), rows * columns)[:, None, None]
    pixels = images_NHW3.reshape(num_images, rows, block_px, columns, block_px, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(-1, block_px, block_px, 3)

    real = places[:, 0, 0, 0] >= 0
    places, pixels = places[real], pixels[real]
    offsets = np.stack(np.meshgrid(np.arange(merge), np.arange(merge), indexing="ij"), axis=-1)
    corner = places[:, 0, 0]
    whole = (places[..., 0] == corner[:, None, None, 0]).all() and (
        places[..., 1:] == corner[:, None, None, 1:] + offsets
    ).all()
    if not whole or (corner[:, 1:] % merge).any():
        raise ValueError(f"the {merge}x{merge} patches of a block must be neighbours at one time, on the block grid")
    row, column = corner[:, 1] // merge, corner[:, 2] // merge
    if (row < 0).any() or (column < 0).any() or (row >= rows).any() or (column >= columns).any():
        raise ValueError(f"a block's place lies off the frame of {columns}x{rows} blocks")
    order = np.argsort(corner[:, 0], kind="stable")
    return BlockEvidence(
        pixels_EBB3=np.ascontiguousarray(pixels[order]),
        t_E=corner[order, 0],
        row_E=row[order],
        column_E=column[order],
        num_rows=rows,
        num_columns=columns,
        num_padding=int((~real).sum()),
    )


def read_codec_video_prep(folder: str | Path, *, ticks_T: npt.NDArray[np.int32] | None = None) -> BlockEvidence:
    """The evidence in an output folder of codec-video-prep (0.2.5): meta.json, src_patch_position.npy, canvas_*.jpg.

    Args:
        ticks_T: tick of each source frame; default its index, which is right for a constant rate.

    Raises:
        ValueError: a file is missing, or they do not fit together.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        patches = np.load(folder / "src_patch_position.npy", allow_pickle=False)
        images = []
        for name in meta["canvas_files"]:
            with Image.open(folder / Path(name).name) as image:
                images.append(np.asarray(image.convert("RGB")))
        patch_px, merge = int(meta["patch"]), int(meta["block_size"])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is no whole output of codec-video-prep ({error}); run it again") from None
    positions = patches.reshape(len(images), -1, 3).astype(np.int32)
    if ticks_T is not None:
        frame = positions[..., 0]
        if frame.max() >= len(ticks_T):
            raise ValueError(f"{folder} shows frame {frame.max()}, the source has {len(ticks_T)}")
        positions[..., 0] = np.where(frame < 0, -1, ticks_T[np.maximum(frame, 0)])
    return block_evidence(np.stack(images), positions, patch_px=patch_px, merge=merge)


def with_source_pixels(evidence: BlockEvidence, frames: Iterable[tuple[int, npt.NDArray[np.uint8]]]) -> BlockEvidence:
    """The same selection with the pixels of the given source frames: leaves out its own scaling and compression.

    Args:
        frames: (t, uint8 [H, W, 3]) ascending in t; a block takes the last frame at or before its time.

    Raises:
        ValueError: a block is earlier than the first frame, or a frame's size differs.
    """
    pixels = evidence.pixels_EBB3.copy()
    done, held = 0, None
    for t, frame in frames:
        end = int(np.searchsorted(evidence.t_E, t, side="left"))
        _fill(pixels, evidence, done, end, held)
        done, held = end, _blocks(evidence, frame)
    _fill(pixels, evidence, done, len(evidence.t_E), held)
    return replace(evidence, pixels_EBB3=pixels)


def _fill(pixels: Any, evidence: BlockEvidence, start: int, end: int, held: Any) -> None:
    if start == end:
        return
    if held is None:
        raise ValueError(f"evidence at t = {evidence.t_E[start]} is earlier than the first source frame")
    pixels[start:end] = held[evidence.row_E[start:end], evidence.column_E[start:end]]


def _blocks(evidence: BlockEvidence, frame_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[R, C, B, B, 3] view of a frame."""
    rows, columns, block_px = evidence.num_rows, evidence.num_columns, evidence.block_px
    if frame_HW3.shape != (rows * block_px, columns * block_px, 3):
        raise ValueError(
            f"source frames must be given at canvas size {columns * block_px}x{rows * block_px} px, "
            f"got shape {frame_HW3.shape}"
        )
    return frame_HW3.reshape(rows, block_px, columns, block_px, 3).transpose(0, 2, 1, 3, 4)


class HoldMeter:
    """Scores one selection against frames that are added one by one, so several can share one decoding."""

    def __init__(self, evidence: BlockEvidence) -> None:
        if not len(evidence.t_E):
            raise ValueError("no evidence: the tokenization holds no block")
        self._evidence = evidence
        self._held_HW3 = np.zeros(
            (evidence.num_rows * evidence.block_px, evidence.num_columns * evidence.block_px, 3), np.uint8
        )
        self._held = _blocks(evidence, self._held_HW3)
        self._seen_RC = np.zeros((evidence.num_rows, evidence.num_columns), bool)
        self._show(slice(None, None, -1))  # first evidence last: it stands until its place is seen
        self._next = 0
        self._last_t: int | None = None
        self._luma_held: npt.NDArray[np.float64] | None = None
        self._squared_error = 0.0
        self._ssim = 0.0
        self._num_frames = 0
        self._num_unseen = 0

    def add(self, t: int, frame_HW3: npt.NDArray[np.uint8], *, luma: npt.NDArray[np.float64] | None = None) -> None:
        """One source frame.

        Args:
            t: its tick; ascending from call to call.
            frame_HW3: uint8 RGB at canvas size.
            luma: `luma_of(frame_HW3)`, where the caller has it already.

        Raises:
            ValueError: t does not ascend, or the size differs.
        """
        if self._last_t is not None and t <= self._last_t:
            raise ValueError(f"frames must come in ascending time, got t = {t} after {self._last_t}")
        self._last_t = t
        end = int(np.searchsorted(self._evidence.t_E, t, side="right"))
        if end > self._next:
            self._show(slice(self._next, end))
            self._seen_RC[self._evidence.row_E[self._next : end], self._evidence.column_E[self._next : end]] = True
            self._next, self._luma_held = end, None
        _blocks(self._evidence, frame_HW3)
        if self._luma_held is None:
            self._luma_held = luma_of(self._held_HW3)
        difference = np.subtract(self._held_HW3, frame_HW3, dtype=np.int16)
        squared = np.square(difference, dtype=np.int32).sum(dtype=np.int64)
        self._squared_error += float(squared) / difference.size
        self._ssim += ssim(self._luma_held, luma_of(frame_HW3) if luma is None else luma)
        self._num_frames += 1
        self._num_unseen += int((~self._seen_RC).sum())

    def score(self) -> HoldScore:
        """Of the frames added so far.

        Raises:
            ValueError: none were.
        """
        if not self._num_frames:
            raise ValueError("no source frame was added")
        error = self._squared_error / self._num_frames
        return HoldScore(
            psnr_db=float("inf") if error == 0 else float(10 * np.log10(255**2 / error)),
            ssim=self._ssim / self._num_frames,
            num_frames=self._num_frames,
            share_unseen=self._num_unseen / (self._num_frames * self._seen_RC.size),
        )

    def _show(self, part: slice) -> None:
        """Numpy assigns repeated places in order: the last of them stands."""
        evidence = self._evidence
        self._held[evidence.row_E[part], evidence.column_E[part]] = evidence.pixels_EBB3[part]


def score_hold(evidence: BlockEvidence, frames: Iterable[tuple[int, npt.NDArray[np.uint8]]]) -> HoldScore:
    """Scores a selection against (t, uint8 [H, W, 3]) source frames, ascending in t, at canvas size."""
    meter = HoldMeter(evidence)
    for t, frame in frames:
        meter.add(t, frame)
    return meter.score()


def moving_blocks(
    evidence: BlockEvidence, box_xyxy_px: Sequence[float], *, source_width_px: int, source_height_px: int
) -> npt.NDArray[np.bool_]:
    """[R, C] places whose centre lies in a box of the source frame; the place of the box's centre if there is none."""
    scale_x = evidence.num_columns / source_width_px
    scale_y = evidence.num_rows / source_height_px
    x0, y0, x1, y1 = (v * s for v, s in zip(box_xyxy_px, (scale_x, scale_y, scale_x, scale_y), strict=True))
    x = np.arange(evidence.num_columns) + 0.5
    y = np.arange(evidence.num_rows) + 0.5
    moving = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None, :]
    if not moving.any():
        row = min(max(int((y0 + y1) / 2), 0), evidence.num_rows - 1)
        column = min(max(int((x0 + x1) / 2), 0), evidence.num_columns - 1)
        moving[row, column] = True
    return moving


def score_events(
    evidence: BlockEvidence,
    *,
    fps: float,
    event_seconds: Sequence[float],
    event_boxes_xyxy_px: Sequence[Sequence[float]],
    source_width_px: int,
    source_height_px: int,
) -> EventScore:
    """Recall and strict recall of known events.

    Args:
        fps: ticks a second of the evidence.
        event_seconds: on the evidence's clock (0 = first frame shown).
        event_boxes_xyxy_px: the region that moves at each event, pixels of the source frame as shown.
    """
    strict = 0
    shown: list[bool] = []
    seconds_E = evidence.t_E / fps
    for second, box in zip(event_seconds, event_boxes_xyxy_px, strict=True):
        moving = moving_blocks(evidence, box, source_width_px=source_width_px, source_height_px=source_height_px)
        near = np.abs(seconds_E - second) <= EVENT_TOLERANCE_SECONDS + _TIME_EPSILON_SECONDS
        near &= moving[evidence.row_E, evidence.column_E]
        shown.append(bool(near.any()))
        tokens = np.unique(np.stack([evidence.t_E[near], evidence.row_E[near], evidence.column_E[near]]), axis=1)
        _, per_frame = np.unique(tokens[0], return_counts=True)
        strict += bool(per_frame.max(initial=0) >= STRICT_SHARE * moving.sum())
    count = len(event_seconds)
    if count == 0:
        return EventScore(recall=float("nan"), strict_recall=float("nan"), num_events=0)
    return EventScore(recall=sum(shown) / count, strict_recall=strict / count, num_events=count, shown=tuple(shown))


def luma_of(frame_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """[H, W] luma of full-range RGB (BT.601 weights), 0..255, not rounded."""
    return np.asarray(frame_HW3 @ np.array([0.299, 0.587, 0.114]), np.float64)


def ssim(a_HW: npt.NDArray[np.float64], b_HW: npt.NDArray[np.float64]) -> float:
    """Mean structural similarity (Wang et al. 2004) of two luma images of range 255.

    Gaussian window 11 x 11, sigma 1.5, K1 = 0.01, K2 = 0.03, weighted (population) variances, mean over the places
    where the window lies inside the image.

    Raises:
        ValueError: shapes differ, or are smaller than the window.
    """
    if a_HW.shape != b_HW.shape or min(a_HW.shape) < 11:
        raise ValueError(f"expected two images of one size >= 11x11, got shapes {a_HW.shape} and {b_HW.shape}")
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    return float(_ssim_kernel(a_HW, b_HW, taps / taps.sum()))


def _ssim_loops(a: Any, b: Any, taps: Any) -> float:
    """Separable: five moments filtered down the columns for one output row, then along it."""
    height, width = a.shape
    size = taps.shape[0]
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    line = np.empty((5, width))
    total = 0.0
    for y in range(height - size + 1):
        line[:] = 0.0
        for k in range(size):
            weight = taps[k]
            for x in range(width):
                p, q = a[y + k, x], b[y + k, x]
                line[0, x] += weight * p
                line[1, x] += weight * q
                line[2, x] += weight * p * p
                line[3, x] += weight * q * q
                line[4, x] += weight * p * q
        for x in range(width - size + 1):
            m_a = m_b = m_aa = m_bb = m_ab = 0.0
            for k in range(size):
                weight = taps[k]
                m_a += weight * line[0, x + k]
                m_b += weight * line[1, x + k]
                m_aa += weight * line[2, x + k]
                m_bb += weight * line[3, x + k]
                m_ab += weight * line[4, x + k]
            numerator = (2 * m_a * m_b + c1) * (2 * (m_ab - m_a * m_b) + c2)
            total += numerator / ((m_a * m_a + m_b * m_b + c1) * (m_aa - m_a * m_a + m_bb - m_b * m_b + c2))
    return float(total / ((height - size + 1) * (width - size + 1)))


_ssim_kernel: Any = kernel(fastmath=True)(_ssim_loops)
