"""Decoded frames at canvas size, and their luma on the way there: area means, rows first.

Rows are averaged by a kernel of our own, columns by swscale: of large frames that reads a quarter of what swscale alone would
work on, takes a third of its time, and the averaged rows are what the signals are computed of (docs/LOG.md). Planar 8-bit YUV that
is scaled down goes this way; all else goes through swscale in one call. Frames whose pixels may be wanted are kept as planar
YUV; only those that are shown are turned to RGB (JPEG halves the chroma anyway).

Shape letters: H x W pixels of a plane.
"""

import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from ov2_core.kernel import kernel

ONE = 256
"""Sum of a row's weights: with 8-bit values the sums fit in 16 bits, of which twice as many are added at a time."""
_ROWS_FIRST = re.compile(r"yuvj?4(?:20|22|44)p|nv12")
_LUMA_FIRST = re.compile(
    r"(?:yuvj?|yuva)4\d\dp(?P<bits>9|10|12|14|16)?(?:le)?|gray(?P<gray>9|10|12|14|16)?(?:le)?|nv(?:12|16|21)"
)


class Scaler:
    """Scales decoded frames to canvas size and turns them upright. Keeps swscale's contexts between frames.

    Args:
        width_px, height_px: size of the upright result, even.
        rotation_degrees: the probe's.
        full_chroma: keep colour at full size (YUV 4:4:4) rather than at half (4:2:0, as JPEG stores it by default).
    """

    def __init__(self, *, width_px: int, height_px: int, rotation_degrees: int, full_chroma: bool = False) -> None:
        self._turns, self._width_px = rotation_degrees // 90, width_px
        self._size = (height_px, width_px) if self._turns % 2 else (width_px, height_px)
        self._format = "yuv444p" if full_chroma else "yuv420p"
        self._scaler = VideoReformatter()
        self._to_gray = VideoReformatter()
        self._to_rgb = VideoReformatter()
        self._planes_to_rgb = VideoReformatter()
        self._rows: dict[tuple[str, int, int], _RowMeans] = {}
        self._num_looks = 0

    def look(self, frame: Any) -> "Look":
        """Averages the rows of an av.VideoFrame's luma. The result is good until the next frame is looked at."""
        rows = None
        if _ROWS_FIRST.fullmatch(frame.format.name) and frame.height > self._size[1]:
            key = (frame.format.name, frame.width, frame.height)
            if key not in self._rows:
                self._rows[key] = _RowMeans(*key, to_height_px=self._size[1])
            rows = self._rows[key]
            rows.average(frame, 0)
        self._num_looks += 1
        return Look(self, frame, rows, self._num_looks)

    def scaled(self, frame: Any) -> Any:
        """The frame at (unturned) canvas size, planar YUV, area-averaged."""
        return self.look(frame).scaled()

    def rgb(self, scaled: Any) -> npt.NDArray[np.uint8]:
        """[H, W, 3] upright RGB of a scaled frame."""
        return self.upright(self._to_rgb.reformat(scaled, format="rgb24", threads=1).to_ndarray())

    def planes(self, scaled: Any) -> list[npt.NDArray[np.uint8]]:
        """Upright Y, U and V of a scaled frame; views of it."""
        return [np.rot90(plane, self._turns) for plane in _planes(scaled)]

    def blank(self, height_px: int, like: Any) -> tuple[Any, list[npt.NDArray[np.uint8]]]:
        """A frame as wide as an upright one, and its planes to be filled; their values mean what those of the scaled frame
        `like` mean."""
        frame = av.VideoFrame(self._width_px, height_px, self._format)
        frame.colorspace, frame.color_range = like.colorspace, like.color_range
        return frame, _planes(frame)

    def write_rgb(self, filled: Any, target_HW3: npt.NDArray[np.uint8]) -> None:
        """RGB of a frame that was blank."""
        rgb: Any = self._planes_to_rgb.reformat(filled, format="rgb24", threads=1).planes[0]
        height, width, _ = target_HW3.shape
        target_HW3[...] = np.frombuffer(rgb, np.uint8).reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)

    def upright(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn an [H, W, ...] array of the decoded frame upright."""
        return np.ascontiguousarray(np.rot90(array, self._turns)) if self._turns else array

    def _finish(self, look: "Look") -> Any:
        if look.rows is None:
            return self._resize(look.frame)
        assert look.number == self._num_looks, "another frame was looked at since"
        for plane in range(1, len(look.rows.planes)):
            look.rows.average(look.frame, plane)
        averaged = look.rows.frame
        averaged.colorspace, averaged.color_range = look.frame.colorspace, look.frame.color_range
        scaled = self._resize(averaged)
        if scaled is averaged:  # already of the right width: it is given away
            self._rows.clear()
        return scaled

    def _resize(self, frame: Any) -> Any:
        return self._scaler.reformat(frame, *self._size, self._format, interpolation="AREA", threads=1)

    def _luma(self, frame: Any) -> tuple[npt.NDArray[Any], int]:
        known = _LUMA_FIRST.fullmatch(frame.format.name)
        if known is None:
            frame = self._to_gray.reformat(frame, format="gray8", threads=1)
        bits = 8 if known is None else int(known["bits"] or known["gray"] or 8)
        plane = frame.planes[0]
        luma = np.frombuffer(plane, np.uint8 if bits == 8 else np.dtype("<u2")).reshape(plane.height, -1)
        return luma[:, : plane.width], bits


@dataclass(frozen=True, slots=True)
class Look:
    """A decoded frame on its way to canvas size, until the next is looked at."""

    scaler: Scaler
    frame: Any
    rows: "_RowMeans | None"
    number: int

    def luma(self) -> tuple[npt.NDArray[Any], int]:
        """([H, W] luma, bits of a value), not turned: with rows of the canvas where they were averaged, else as decoded or
        converted. A view."""
        return self.scaler._luma(self.frame) if self.rows is None else (self.rows.planes[0], 8)

    def scaled(self) -> Any:
        """The frame at (unturned) canvas size, planar YUV, area-averaged."""
        return self.scaler._finish(self)


class _RowMeans:
    """Averages the rows of frames of one size and format into a frame that is as wide."""

    def __init__(self, pixel_format: str, width_px: int, height_px: int, *, to_height_px: int) -> None:
        self.frame = av.VideoFrame(width_px, to_height_px, pixel_format)
        self.planes = _planes(self.frame)
        self._tables: dict[tuple[int, int], _Table] = {}

    def average(self, frame: Any, plane: int) -> None:
        """Fills one plane."""
        source, target = _planes(frame)[plane], self.planes[plane]
        size = (len(source), len(target))
        if size not in self._tables:
            self._tables[size] = row_weights(*size)
        _average_rows(source, *self._tables[size], target)


_Table = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint16]]


def row_weights(length: int, parts: int) -> _Table:
    """Each of `parts` equal parts of [0, length) as a weighted mean of rows.

    Returns:
        first row [parts], number of rows [parts], weights [parts, most rows] that sum to ONE, by largest remainder.
    """
    edges = np.arange(parts + 1) * length
    first, end = edges[:-1] // parts, -(-edges[1:] // parts)
    rows = first[:, None] + np.arange((end - first).max())
    low, high = edges[:-1, None], edges[1:, None]
    share = np.clip(np.minimum((rows + 1) * parts, high) - np.maximum(rows * parts, low), 0, None) * ONE
    weights, rest = np.divmod(share, length)
    order = np.argsort(-rest, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    weights += rank < ONE - weights.sum(axis=1, keepdims=True)
    return first, end - first, weights.astype(np.uint16)


@kernel(
    "uint8[:, ::1], int64[::1], int64[::1], uint16[:, ::1], uint8[:, ::1]",
    "uint8[:, :], int64[::1], int64[::1], uint16[:, ::1], uint8[:, :]",
)
def _average_rows(source, first, count, weights, target):  # type: ignore[no-untyped-def]
    total = np.empty(source.shape[1], np.uint16)
    for r in range(target.shape[0]):
        total[:] = np.uint16(ONE // 2)
        for k in range(count[r]):
            y, weight = first[r] + k, weights[r, k]
            for x in range(total.shape[0]):
                total[x] = np.uint16(total[x] + np.uint16(weight * np.uint16(source[y, x])))
        for x in range(total.shape[0]):
            target[r, x] = np.uint8(total[x] // np.uint16(ONE))


def _planes(frame: Any) -> list[npt.NDArray[np.uint8]]:
    """[H, W] views; of NV12 the second holds both colours side by side."""
    sides = [plane.width for plane in frame.planes]
    if frame.format.name == "nv12":
        sides[1] *= 2
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, :width]
        for plane, width in zip(frame.planes, sides, strict=True)
    ]
