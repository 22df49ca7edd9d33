"""TokenizedVideo: what tokenization returns and what shards store, for all three input modes.

Shape letters: N images (canvases or frames), H x W pixels of an image, P patches of an image in raster order.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ov2_core.config import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Consecutive images that a reader attends over together; see schemas.tokens.GroupRecord for the fields."""

    first_image: int
    num_images: int
    t_start: int
    t_end: int
    num_frames: int
    bit_cost: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedVideo:
    """Images with the source place of every patch."""

    images_NHW3: npt.NDArray[np.uint8]
    """RGB canvases or frames, in order. N = 0 where `jpegs_N` holds them; H and W are true."""
    positions_NP3: npt.NDArray[np.int32]
    """(t, h, w) of each patch, raster order; t in timeline ticks, h and w in patches of the source frame at image size."""
    fps: float | None
    """Seconds = t / fps; None for a still."""
    groups: tuple[Group, ...]
    mode: Literal["codec", "uniform", "still"]
    policy: Policy | None
    patch_px: int
    merge: int
    first_shown_seconds: float
    """Time on the file's own clock of t = 0."""
    duration_seconds: float
    num_source_frames: int
    codec: str
    source_width_px: int
    source_height_px: int
    frame_bit_cost: npt.NDArray[np.float32]
    """[<= 512] bit cost over time, sum 1 (empty for a still)."""
    flags: tuple[str, ...]
    """Oddities of the source that did not stop us: "truncated", "decode_errors", ..."""
    jpegs_N: tuple[bytes, ...] | None = None
    """The images as JPEG files, in place of pixels."""
    timings_seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds by step: probe, decode, signals, select, pack, jpeg (where files are made)."""

    @property
    def num_images(self) -> int:
        """Canvases or frames."""
        return len(self.positions_NP3)

    @property
    def num_tokens(self) -> int:
        """Merged visual tokens."""
        return int(self.positions_NP3.shape[0] * self.positions_NP3.shape[1] // self.merge**2)
