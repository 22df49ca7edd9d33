"""Where a video's images go as they are made: kept as pixels, or as JPEG, so that memory does not grow with their number.

Enters: pixels, a group of images or one at a time. Leaves: all of them as one array, or as files.
"""

import io
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.canvas_layout import CanvasLayout
from ov2_core.config import TokenizerConfig


class Images(Protocol):
    """Takes images in order: `room`, fill it, `keep`."""

    def room(self, count: int) -> npt.NDArray[np.uint8]:
        """[count, H, W, 3] to be filled with the next images' RGB; valid until `keep`."""

    def keep(self) -> None:
        """The room is filled."""

    def pixels(self) -> npt.NDArray[np.uint8]:
        """[N, H, W, 3] what was kept; N = 0 where that are files."""

    def files(self) -> tuple[bytes, ...] | None:
        """JPEG files of what was kept; None where that are pixels."""


class RawImages:
    """All pixels of `count` images."""

    def __init__(self, count: int, *, height: int, width: int) -> None:
        self._pixels = np.empty((count, height, width, 3), np.uint8)
        self._first = self._end = 0

    def room(self, count: int) -> npt.NDArray[np.uint8]:
        """See Images."""
        self._end = self._first + count
        return self._pixels[self._first : self._end]

    def keep(self) -> None:
        """See Images."""
        self._first = self._end

    def pixels(self) -> npt.NDArray[np.uint8]:
        """See Images."""
        return self._pixels[: self._first]

    def files(self) -> None:
        """See Images."""


class JpegImages:
    """Files at the config's quality; the pixels of one room alone."""

    def __init__(self, config: TokenizerConfig, *, height: int, width: int) -> None:
        self._config = config
        self._buffer = np.empty((0, height, width, 3), np.uint8)
        self._room = self._buffer
        self._files: list[bytes] = []

    def room(self, count: int) -> npt.NDArray[np.uint8]:
        """See Images."""
        if len(self._buffer) < count:
            self._buffer = np.empty((count, *self._buffer.shape[1:]), np.uint8)
        self._room = self._buffer[:count]
        return self._room

    def keep(self) -> None:
        """See Images."""
        self._files += [encode_jpeg(image_HW3, self._config) for image_HW3 in self._room]

    def pixels(self) -> npt.NDArray[np.uint8]:
        """See Images."""
        return self._buffer[:0]

    def files(self) -> tuple[bytes, ...]:
        """See Images."""
        return tuple(self._files)


def new_images(
    count: int, layout: CanvasLayout, config: TokenizerConfig, *, as_jpeg: bool
) -> tuple[Images, npt.NDArray[np.int32]]:
    """Where `count` images of a layout go, and room for their positions."""
    positions_NP3 = layout.empty_positions(count, config)
    if as_jpeg:
        return JpegImages(config, height=layout.height, width=layout.width), positions_NP3
    return RawImages(count, height=layout.height, width=layout.width), positions_NP3


def encode_jpeg(image_HW3: npt.NDArray[np.uint8], config: TokenizerConfig) -> bytes:
    """RGB as a JPEG file at config.jpeg_quality and config.jpeg_subsampling."""
    out = io.BytesIO()
    Image.fromarray(image_HW3, "RGB").save(
        out, format="JPEG", quality=config.jpeg_quality, subsampling=config.jpeg_subsampling, optimize=False
    )
    return out.getvalue()
