"""Every kind of visual input as one `Visual`: its images, the source place of each patch, its groups. No torch, no decoding.

Enters: a TokenizedVideo, a sample of a token shard, frames, a still. Leaves: a Visual whose images are fetched one at a time, so
a shard's canvases are decoded while they are cut. Codec canvases and frames of one video share one coordinate system: t in
ticks of the same timeline, h and w in patches of the frame at image size.

Shapes: N images, P patches of an image in raster order, K merged tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from ov2_core.model.chatml import VisionRuns, time_runs
from ov2_core.model.patches import merged_times
from ov2_core.tokenized import TokenizedVideo
from ov2_core.tokenizer.canvas import frame_positions
from ov2_core.tokenizer.frames import FRAMES_PER_WINDOW

if TYPE_CHECKING:
    from ov2_core.storage.reader import StoredSample

RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Visual:
    """One medium as the model sees it; stands for one placeholder."""

    kind: Literal["video", "image"]
    image: Callable[[int], RGB] = field(repr=False)
    """Image i, uint8 [H, W, 3]."""
    positions_NP3: npt.NDArray[np.int32] = field(repr=False)
    """(t, h, w) of each patch, raster order."""
    rows: int
    columns: int
    """Patches of an image."""
    fps: float | None
    """Seconds = t / fps; None for a still."""
    timestamp_decimal: int
    group_images: tuple[int, ...]
    """Images of each attention group, in order."""
    patch_px: int
    merge: int

    def __post_init__(self) -> None:
        num, patches = self.positions_NP3.shape[:2]
        if self.positions_NP3.shape != (num, self.rows * self.columns, 3) or not num or not patches:
            raise ValueError(
                f"positions must be [N, {self.rows} x {self.columns}, 3], got {list(self.positions_NP3.shape)}; "
                "one (t, h, w) for each patch of each image"
            )
        if self.rows % self.merge or self.columns % self.merge:
            raise ValueError(
                f"a grid of {self.rows} x {self.columns} patches cannot be merged {self.merge} x {self.merge}"
            )
        if sum(self.group_images) != num or min(self.group_images) < 1:
            raise ValueError(f"groups of {list(self.group_images)} images do not cover {num} images")
        if (self.fps is None) != (self.kind == "image"):
            raise ValueError(f"a video needs fps > 0 and a still none, got {self.fps} for a {self.kind}")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps must be > 0, got {self.fps}")

    @property
    def num_images(self) -> int:
        return len(self.positions_NP3)

    @property
    def num_patches(self) -> int:
        """Of all images."""
        return self.num_images * self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Merged tokens of all images."""
        return self.num_patches // self.merge**2

    def images(self) -> Iterator[RGB]:
        """The images in order, checked against the grid; made one at a time."""
        expected = (self.rows * self.patch_px, self.columns * self.patch_px, 3)
        for index in range(self.num_images):
            image = self.image(index)
            if image.shape != expected:
                raise ValueError(f"image {index} is {list(image.shape)}, its positions say {list(expected)}")
            yield image

    def runs(self) -> VisionRuns:
        """Its runs of one source time, for the text. Raises ValueError for blocks that mix times, and for t < 0."""
        t_K = merged_times(self.positions_NP3, rows=self.rows, columns=self.columns, merge=self.merge)
        if self.fps is None:
            return VisionRuns(kind="image", seconds_R=(None,), num_tokens_R=(len(t_K),), timestamp_decimal=0)
        t_R, num_R = time_runs(t_K)
        seconds = tuple(t / self.fps for t in t_R.tolist())
        return VisionRuns(
            kind="video",
            seconds_R=seconds,
            num_tokens_R=tuple(num_R.tolist()),
            timestamp_decimal=self.timestamp_decimal,
        )

    def group_lengths(self) -> list[int]:
        """Patches of each attention group."""
        return [count * self.rows * self.columns for count in self.group_images]

    def grid_rows(self, window: int) -> list[tuple[int, int, int]]:
        """Rows (t, h, w) of image_grid_thw: as few as let windows of `window` images fall on the groups."""
        return [(count, self.rows, self.columns) for count in join_groups(self.group_images, window)]


def join_groups(group_images: Sequence[int], window: int) -> list[int]:
    """Images of each grid row: groups are joined while all but the last of a row have exactly `window` images.

    A reader that cuts a row into windows then finds the groups again; a group larger than the window it would cut. With a
    window of 0 (rows are never cut) each group is a row.
    """
    rows: list[int] = []
    open_row = False
    for count in group_images:
        if open_row and count <= window:
            rows[-1] += count
        else:
            rows.append(count)
        open_row = count == window > 0
    return rows


def show_tokenized(tokenized: TokenizedVideo, *, timestamp_decimal: int = 1) -> Visual:
    """What `tokenize_video` or `tokenize_image` returned: codec canvases, uniform frames or a still."""
    images = tokenized.images_NHW3
    return Visual(
        kind="image" if tokenized.mode == "still" else "video",
        image=images.__getitem__,
        positions_NP3=tokenized.positions_NP3,
        rows=images.shape[1] // tokenized.patch_px,
        columns=images.shape[2] // tokenized.patch_px,
        fps=tokenized.fps,
        timestamp_decimal=timestamp_decimal,
        group_images=tuple(group.num_images for group in tokenized.groups),
        patch_px=tokenized.patch_px,
        merge=tokenized.merge,
    )


def show_sample(sample: "StoredSample") -> Visual:
    """A sample of a token shard; its canvases are decoded when they are asked for."""
    record = sample.record
    return Visual(
        kind=record.media,
        image=sample.image,
        positions_NP3=sample.positions_NP3,
        rows=record.image_height_px // record.patch_px,
        columns=record.image_width_px // record.patch_px,
        fps=record.fps,
        timestamp_decimal=record.timestamp_decimal,
        group_images=tuple(group.num_images for group in record.groups),
        patch_px=record.patch_px,
        merge=record.merge,
    )


def show_frames(
    frames: Sequence[RGB] | npt.NDArray[np.uint8],
    *,
    ticks: Sequence[int],
    fps: float,
    timestamp_decimal: int = 1,
    window: int = FRAMES_PER_WINDOW,
    patch_px: int = 14,
    merge: int = 2,
) -> Visual:
    """Whole frames with their times, in windows of `window`.

    Args:
        frames: uint8 [H, W, 3], all of one size, sides multiples of patch_px * merge.
        ticks: t of each frame, ascending; seconds = t / fps.

    Raises:
        ValueError: no frames, another number of ticks, or ticks that do not ascend from 0 or later.
    """
    if not len(frames) or len(frames) != len(ticks):
        raise ValueError(f"{len(frames)} frames with {len(ticks)} ticks; give one tick for each of at least one frame")
    if ticks[0] < 0 or any(b <= a for a, b in pairwise(ticks)):
        raise ValueError(f"ticks must ascend and be >= 0, got {list(ticks)[:16]}")
    rows, columns = frames[0].shape[0] // patch_px, frames[0].shape[1] // patch_px
    return Visual(
        kind="video",
        image=frames.__getitem__,
        positions_NP3=np.stack([frame_positions(int(tick), rows, columns) for tick in ticks]),
        rows=rows,
        columns=columns,
        fps=fps,
        timestamp_decimal=timestamp_decimal,
        group_images=tuple(min(window, len(frames) - first) for first in range(0, len(frames), window)),
        patch_px=patch_px,
        merge=merge,
    )


def show_still(image_HW3: RGB, *, patch_px: int = 14, merge: int = 2) -> Visual:
    """A still whose sides are multiples of patch_px * merge: a group of its own at t = 0."""
    rows, columns = image_HW3.shape[0] // patch_px, image_HW3.shape[1] // patch_px
    return Visual(
        kind="image",
        image=[image_HW3].__getitem__,
        positions_NP3=frame_positions(0, rows, columns)[None],
        rows=rows,
        columns=columns,
        fps=None,
        timestamp_decimal=0,
        group_images=(1,),
        patch_px=patch_px,
        merge=merge,
    )


def split_stills(visual: Visual) -> list[Visual]:
    """The images of a video of whole frames as stills without time: each a group of its own.

    Raises:
        ValueError: an image mixes times (a codec canvas), which is no still.
    """
    stills = []
    for index, positions_P3 in enumerate(visual.positions_NP3):
        if len(list(groupby(positions_P3[:, 0].tolist()))) > 1:
            raise ValueError(
                f"image {index} is a codec canvas of several source times; only whole frames can be stills"
            )
        stills.append(show_still(visual.image(index), patch_px=visual.patch_px, merge=visual.merge))
    return stills


def attend_alone(visual: Visual) -> Visual:
    """The same with each image a group of its own: a grid row of one canvas each, as image lists reach released readers."""
    return replace(visual, group_images=(1,) * visual.num_images)


def is_sample(value: Any) -> "TypeGuard[StoredSample]":
    """Whether a value is a StoredSample, told without importing the storage."""
    return hasattr(value, "record") and hasattr(value, "positions_NP3") and callable(getattr(value, "image", None))
