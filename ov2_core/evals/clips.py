"""Small video files with known truth, made with the encoders that PyAV bundles: for tests, samples and benchmarks.

Enters: a path and a seed. Leaves: a file and its ClipTruth. Design: frames come from generators of RGB arrays, so a
clip of any length is written in the memory of one frame; encoders run on one thread, so a file is the same bytes each
time it is made with the same PyAV. Three families: rope clips (here; events exact to a frame), canary clips (here;
every 28-px block carries the video's id, its frame and its place) and oddities (odd_clips.py).

Shape letters: H x W pixels of a frame as stored.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

RGB = npt.NDArray[np.uint8]
Camera = Literal["static", "panning", "shaking"]

# x264's mbtree and swscale's slice threads (RGB to 10 bit, width 8 mod 16) were seen to vary from run to run: both are off.
_ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"},
    "libx265": {"preset": "ultrafast", "crf": "22", "x265-params": "log-level=error:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "35", "svtav1-params": "lp=1"},
    "mpeg4": {"qscale": "4"},
}
CODECS = tuple(_ENCODER_OPTIONS)
"""Encoders that `write_clip` has settings for; other names of FFmpeg encoders work with their own defaults."""

CANARY_BLOCK_PX = 28
_CANARY_CELLS = 7
_CANARY_BITS = {"video_id": 16, "frame": 14, "row": 5, "column": 5}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTruth:
    """What is known of a clip because we made it."""

    width_px: int
    height_px: int
    """As stored; rotation metadata not applied."""
    pts_seconds: tuple[float, ...]
    """When each frame is shown, in display order, on the file's own clock."""
    event_frames: tuple[int, ...] = ()
    """Ascending frame indices at which something happens (the rope passes under the feet)."""
    event_boxes_xyxy_px: tuple[tuple[int, int, int, int], ...] = ()
    """Per event the box of the region that moves at that time, half-open, in pixels of the frame as stored."""

    @property
    def event_seconds(self) -> tuple[float, ...]:
        """Times of the events on the clip's clock, 0 = first frame shown."""
        return tuple(self.pts_seconds[f] - self.pts_seconds[0] for f in self.event_frames)


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """What a block of a canary clip says of itself."""

    video_id: int
    frame: int
    row: int
    column: int
    """Row and column of the block in its frame, in blocks of 28 px at canvas size."""


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """Gives the thread its scheduling class back: under root SVT-AV1 makes its caller a real-time thread for good.

    All threads started later would inherit that, and two of them that spin on a barrier freeze a machine of two cores.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)


def write_clip(
    path: str | Path,
    frames: Iterable[RGB],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    pts_seconds: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    gop_frames: int | None = None,
    rotation_degrees: int = 0,
    faststart: bool = True,
    container: str | None = None,
) -> int:
    """Encodes frames into a file of one video stream.

    Args:
        frames: uint8 [H, W, 3] RGB, all of one size; odd sizes need a pixel format without chroma subsampling.
        pts_seconds: when each frame is shown; default i / fps. Rounded to 1/90000 s.
        options: encoder options laid over the codec's defaults here.
        gop_frames: most frames between keyframes; default the encoder's.
        rotation_degrees: counter-clockwise turn to apply when shown, 0, 90, 180 or 270, written as a display matrix
            (shown = np.rot90(stored, rotation_degrees // 90)); mp4, mov and mkv keep it.
        faststart: mp4 and mov only: the index stands before the media data.
        container: FFmpeg's name of the muxer where the suffix does not say it.

    Returns:
        The number of frames written.

    Raises:
        ValueError: no frames.
    """
    rate = Fraction(fps).limit_denominator(1001)
    muxer_options = {"fflags": "+bitexact"}
    if container in ("mp4", "mov") or (container is None and Path(path).suffix in (".mp4", ".mov")):
        muxer_options["movflags"] = "+faststart" if faststart else "-faststart"
    count = 0
    with _scheduling_kept(), av.open(str(path), "w", format=container, options=muxer_options) as output:
        stream: Any = None
        for index, rgb in enumerate(frames):
            if stream is None:
                stream = add_video_stream(output, rate, rgb.shape, codec, pixel_format, options, gop_frames)
                if rotation_degrees:
                    stream.set_display_rotation(rotation_degrees)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            if pts_seconds is None:
                frame.pts = round(Fraction(index) / rate * 90000)
            else:
                frame.pts = round(pts_seconds[index] * 90000)
            frame.time_base = Fraction(1, 90000)
            output.mux(stream.encode(frame.reformat(format=pixel_format, threads=1)))
            count += 1
        if stream is None:
            raise ValueError(f"write_clip({path}): no frames given, expected at least 1")
        output.mux(stream.encode(None))
    return count


def add_video_stream(
    output: Any,
    rate: Fraction,
    shape: Sequence[int],
    codec: str,
    pixel_format: str,
    options: dict[str, str] | None = None,
    gop_frames: int | None = None,
) -> Any:
    """A video stream of an open output: one encoder thread, clock of 1/90000 s. `shape` is a frame's (H, W, 3)."""
    if codec == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it writes a banner to stderr otherwise
    stream = output.add_stream(codec, rate=rate, options={**_ENCODER_OPTIONS.get(codec, {}), **(options or {})})
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = pixel_format
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = 1 / rate if codec == "mpeg4" else Fraction(1, 90000)
    context.flags |= int(av.codec.context.Flags.bitexact)
    if gop_frames is not None:
        context.gop_size = gop_frames
    return stream


# -------------------------------------------------------------------------------- rope clips


def write_rope_clip(
    path: str | Path,
    *,
    seed: int = 0,
    seconds: float = 6.0,
    fps: float = 30.0,
    width_px: int = 640,
    height_px: int = 360,
    camera: Camera = "static",
    figure: bool = True,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop_frames: int | None = None,
) -> ClipTruth:
    """A figure that jumps a swinging rope over a textured background, at a tempo that changes.

    An event is the frame in which the rope is lowest, under the feet; see `rope_truth` for exactness.
    """
    truth, frames = rope_clip(
        seed=seed, seconds=seconds, fps=fps, width_px=width_px, height_px=height_px, camera=camera, figure=figure
    )
    write_clip(path, frames, fps=fps, codec=codec, pixel_format=pixel_format, gop_frames=gop_frames)
    return truth


def rope_clip(
    *,
    seed: int = 0,
    seconds: float = 6.0,
    fps: float = 30.0,
    width_px: int = 640,
    height_px: int = 360,
    camera: Camera = "static",
    figure: bool = True,
) -> tuple[ClipTruth, Iterator[RGB]]:
    """Truth and frames of a rope clip.

    Events are whole frames by construction: they are drawn first (tempo 1.2 to 3 turns a second, changing every few
    turns), and the rope's phase runs linearly from one to the next. An event's box bounds all pixels of figure and rope
    that differ from the frame before or after. Without a figure there is the camera alone and no event.

    Raises:
        ValueError: fewer than one frame, or a frame too small to draw in.
    """
    num_frames = round(seconds * fps)
    if num_frames < 1 or min(width_px, height_px) < 64:
        raise ValueError(
            f"expected at least 1 frame of at least 64x64 px, got {num_frames} of {width_px}x{height_px}: "
            "raise seconds or the size"
        )
    rng = np.random.default_rng(seed)
    margin_px = max(16, width_px // 6)
    world_HW3 = texture(rng, height_px + 2 * margin_px, width_px + 2 * margin_px)
    offsets = _camera_path(rng, num_frames, fps, margin_px, camera)
    events = _event_frames(rng, num_frames, fps) if figure else ()
    rate = Fraction(fps).limit_denominator(1001)
    boxes = []
    for event in events:
        here = _figure_alone(event, events, offsets, width_px, height_px)
        changed = np.zeros((height_px, width_px), bool)
        for other in (event - 1, event + 1):
            if 0 <= other < num_frames:
                changed |= (here != _figure_alone(other, events, offsets, width_px, height_px)).any(axis=2)
        ys, xs = np.nonzero(changed)
        boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    truth = ClipTruth(
        width_px=width_px,
        height_px=height_px,
        pts_seconds=tuple(float(i / rate) for i in range(num_frames)),
        event_frames=events,
        event_boxes_xyxy_px=tuple(boxes),
    )

    def frames() -> Iterator[RGB]:
        for index in range(num_frames):
            x, y = offsets[index]
            picture = Image.fromarray(world_HW3[y : y + height_px, x : x + width_px])
            if figure:
                _draw_figure(picture, index, events, offsets)
            yield np.asarray(picture)

    return truth, frames()


def texture(rng: np.random.Generator, height: int, width: int) -> RGB:
    """Noise at three scales, each bilinearly enlarged: edges and fine grain, like foliage or gravel."""
    total = np.zeros((height, width, 3), np.float32)
    for cell_px, weight in ((96, 70.0), (24, 35.0), (5, 18.0)):
        coarse = rng.integers(0, 256, (height // cell_px + 2, width // cell_px + 2, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
        total += (np.asarray(fine, np.float32) / 127.5 - 1) * weight
    return np.clip(total + 128, 16, 235).astype(np.uint8)


def _camera_path(
    rng: np.random.Generator, num_frames: int, fps: float, margin_px: int, camera: Camera
) -> list[tuple[int, int]]:
    """(x, y) offset of the view into the world for each frame; margin_px is the middle."""
    seconds = np.arange(num_frames) / fps
    x, y = np.zeros(num_frames), np.zeros(num_frames)
    if camera == "panning":
        x = np.sin(seconds * 2 * np.pi / 7.0) * 0.95
    elif camera == "shaking":
        for frequency in (0.4, 0.9, 2.3):
            x += np.sin(2 * np.pi * (seconds * frequency + rng.random())) * 0.12
            y += np.sin(2 * np.pi * (seconds * frequency + rng.random())) * 0.08
    return [(round(margin_px * float(1 + dx)), round(margin_px * float(1 + dy))) for dx, dy in zip(x, y, strict=True)]


def _event_frames(rng: np.random.Generator, num_frames: int, fps: float) -> tuple[int, ...]:
    events: list[int] = []
    at, turns_left, period = 0.35 * fps, 0, 0.0
    while round(at) < num_frames - 1:
        events.append(round(at))
        if turns_left == 0:
            period, turns_left = fps / rng.uniform(1.2, 3.0), int(rng.integers(2, 5))
        turns_left -= 1
        at += max(period, 4)
    return tuple(events)


def _phase(index: int, events: Sequence[int]) -> float:
    """Turns of the rope at a frame, whole at events, linear between them."""
    if len(events) == 1:
        return (index - events[0]) / max(events[0], 8)
    if index < events[0]:
        return (index - events[0]) / (events[1] - events[0])
    if index > events[-1]:
        return len(events) - 1 + (index - events[-1]) / (events[-1] - events[-2])
    return float(np.interp(index, events, range(len(events))))


def _shapes(
    index: int, events: Sequence[int], offsets: Sequence[tuple[int, int]], width_px: int, height_px: int
) -> Iterator[tuple[str, list[tuple[float, float]], int, tuple[int, int, int]]]:
    """Lines and discs of figure and rope: kind, points in pixels of the frame, thickness, colour."""
    phase = _phase(index, events)
    unit = height_px / 10
    first_x, first_y = offsets[0]
    centre_x = width_px / 2 - (offsets[index][0] - first_x)
    ground_y = height_px * 0.85 - (offsets[index][1] - first_y)
    lift = 0.7 * unit * max(0.0, np.cos(2 * np.pi * phase))
    feet_y = ground_y - lift
    hip_y, neck_y = feet_y - 2.4 * unit, feet_y - 4.6 * unit
    hand_y = feet_y - 3.0 * unit
    skin, cloth, rope = (230, 190, 160), (200, 40, 40), (250, 250, 90)
    for side in (-1, 1):
        foot = (centre_x + side * 0.5 * unit, feet_y)
        hand = (centre_x + side * 1.4 * unit, hand_y)
        yield "line", [(centre_x, hip_y), foot], int(0.45 * unit), (40, 50, 120)
        yield "line", [(centre_x, neck_y), hand], int(0.35 * unit), skin
    yield "line", [(centre_x, neck_y), (centre_x, hip_y)], int(1.0 * unit), cloth
    yield "disc", [(centre_x, neck_y - 0.6 * unit)], int(0.6 * unit), skin
    # A quadratic curve from hand to hand; its middle lies half way to the control point. Lowest at whole phases.
    reach = hand_y + (2 * (ground_y - hand_y) if np.cos(2 * np.pi * phase) > 0 else 8.0 * unit) * np.cos(
        2 * np.pi * phase
    )
    left, right = (centre_x - 1.4 * unit, hand_y), (centre_x + 1.4 * unit, hand_y)
    curve = []
    for s in np.linspace(0, 1, 17):
        bulge = 2.2 * unit * np.sin(2 * np.pi * s) * -1
        x = (1 - s) ** 2 * left[0] + 2 * s * (1 - s) * centre_x + s**2 * right[0] + bulge * 0.3
        y = (1 - s) ** 2 * left[1] + 2 * s * (1 - s) * reach + s**2 * right[1]
        curve.append((float(x), float(y)))
    yield "line", curve, max(2, int(0.18 * unit)), rope


def _draw_figure(picture: Image.Image, index: int, events: Sequence[int], offsets: Sequence[tuple[int, int]]) -> None:
    draw = ImageDraw.Draw(picture)
    for kind, points, thickness, colour in _shapes(index, events, offsets, *picture.size):
        if kind == "line":
            draw.line(points, fill=colour, width=max(1, thickness), joint="curve")
        else:
            (x, y) = points[0]
            draw.ellipse((x - thickness, y - thickness, x + thickness, y + thickness), fill=colour)


def _figure_alone(
    index: int, events: Sequence[int], offsets: Sequence[tuple[int, int]], width_px: int, height_px: int
) -> RGB:
    picture = Image.new("RGB", (width_px, height_px))
    _draw_figure(picture, index, events, offsets)
    return np.asarray(picture)


# -------------------------------------------------------------------------------- canary clips


def write_canary_clip(
    path: str | Path,
    *,
    video_id: int,
    num_frames: int = 48,
    fps: float = 30.0,
    columns: int = 14,
    rows: int = 10,
    scale: int = 1,
    codec: str = "libx264",
    pts_seconds: Sequence[float] | None = None,
    rotation_degrees: int = 0,
) -> ClipTruth:
    """A clip whose every 28-px block says which video, frame and place it is from; `read_canary` reads it back.

    The frame as shown is columns x rows blocks; scale 2 stores it twice as large, for tokenizers that halve it. The
    pattern is black and white cells of 4 px (x scale), encoded finely, so it survives the codec, an exact AREA
    reduction and JPEG 75. With rotation_degrees the stored frames lie turned, so that the shown ones are upright.

    Raises:
        ValueError: a number that does not fit its bits (id 16, frame 14, row and column 5).
    """

    turns = rotation_degrees // 90

    def frames() -> Iterator[RGB]:
        for index in range(num_frames):
            shown = canary_frame(video_id=video_id, frame=index, columns=columns, rows=rows, scale=scale)
            yield np.rot90(shown, -turns)

    fine = {
        "libx264": {"crf": "12"},
        "libx265": {"crf": "12"},
        "libvpx-vp9": {"crf": "10"},
        "libsvtav1": {"crf": "6", "preset": "8"},
    }
    write_clip(
        path,
        frames(),
        fps=fps,
        codec=codec,
        options=fine.get(codec),
        pts_seconds=pts_seconds,
        rotation_degrees=rotation_degrees,
    )
    rate = Fraction(fps).limit_denominator(1001)
    height_px, width_px = rows * CANARY_BLOCK_PX * scale, columns * CANARY_BLOCK_PX * scale
    return ClipTruth(
        width_px=height_px if turns % 2 else width_px,
        height_px=width_px if turns % 2 else height_px,
        pts_seconds=tuple(pts_seconds)
        if pts_seconds is not None
        else tuple(float(i / rate) for i in range(num_frames)),
    )


def canary_frame(*, video_id: int, frame: int, columns: int, rows: int, scale: int = 1) -> RGB:
    """One frame of a canary clip: uint8 [rows * 28 * scale, columns * 28 * scale, 3]."""
    cells = np.empty((rows, _CANARY_CELLS, columns, _CANARY_CELLS), np.uint8)
    for row in range(rows):
        for column in range(columns):
            values = {"video_id": video_id, "frame": frame, "row": row, "column": column}
            cells[row, :, column, :] = _canary_bits(values).reshape(_CANARY_CELLS, _CANARY_CELLS)
    cell_px = CANARY_BLOCK_PX // _CANARY_CELLS * scale
    grey = (cells.reshape(rows * _CANARY_CELLS, columns * _CANARY_CELLS) * 203 + 26).astype(np.uint8)
    grey = grey.repeat(cell_px, axis=0).repeat(cell_px, axis=1)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_canary(block_HW3: RGB) -> Canary:
    """Reads a 28x28 block of a canary clip.

    Args:
        block_HW3: uint8 [28, 28, 3] (or [28, 28]), whole and upright.

    Raises:
        ValueError: the block's size is wrong or its checksum fails: it is not one whole block of one canary frame.
    """
    if block_HW3.shape[:2] != (CANARY_BLOCK_PX, CANARY_BLOCK_PX):
        raise ValueError(f"expected a {CANARY_BLOCK_PX}x{CANARY_BLOCK_PX} block, got shape {block_HW3.shape}")
    grey = block_HW3.astype(np.float32) if block_HW3.ndim == 2 else block_HW3.astype(np.float32).mean(axis=2)
    cell_px = CANARY_BLOCK_PX // _CANARY_CELLS
    means = grey.reshape(_CANARY_CELLS, cell_px, _CANARY_CELLS, cell_px)[:, 1:-1, :, 1:-1].mean(axis=(1, 3))
    bits = (means > 127).astype(np.uint8).reshape(-1)
    values, at = {}, 0
    for name, width in _CANARY_BITS.items():
        values[name] = int("".join(map(str, bits[at : at + width])), 2)
        at += width
    if not np.array_equal(_canary_bits(values), bits):
        raise ValueError(f"not a whole canary block: checksum differs (read {values})")
    return Canary(**values)


def _canary_bits(values: dict[str, int]) -> npt.NDArray[np.uint8]:
    text = ""
    for name, width in _CANARY_BITS.items():
        if not 0 <= values[name] < 1 << width:
            raise ValueError(f"canary {name} must be in [0, {1 << width}), got {values[name]}")
        text += format(values[name], f"0{width}b")
    text += format(zlib.crc32(text.encode()) & 0x1FF, "09b")
    return np.array([int(c) for c in text], np.uint8)
