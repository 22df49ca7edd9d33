"""Bit-cost maps: what each macroblock (H.264) or coding tree unit (HEVC, VP9) of a frame cost in bits.

Enters: a video and frame numbers. Leaves: an int32 map a frame. Read with `cv_reader_fast` of codec-video-prep, the published tool:
a patched FFmpeg 5.1 of its own. That package asks for numpy < 2, which its reader does not need, so it is no extra of this one:
it is installed without its dependencies and imported only here, when policy "legacy" asks.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.errors import BadItemError
from ov2_core.media.container import Source, open_video
from ov2_core.media.probe import VideoProbe

INSTALL = "pip install --no-deps codec-video-prep==0.2.5"
MAPS = {"h264": "mb_bit_cost", "hevc": "ctu_bit_cost", "vp9": "ctu_bit_cost"}
"""Name of the map that the tool takes for a codec."""


def bit_cost_reader() -> Any:
    """The module `cv_reader_fast`.

    Raises:
        ValueError: it is not installed; the message says how to.
    """
    try:
        from codec_video_prep import cv_reader_fast
    except ImportError as error:
        raise ValueError(
            f'policy "legacy" (recipes authors-legacy-N) reads bit costs with codec-video-prep, which cannot be imported here '
            f"({error}); on every machine that tokenizes: {INSTALL} (--no-deps: it asks for numpy < 2, its reader does not)"
        ) from error
    return cv_reader_fast


def read_bit_cost(source: Source, probe: VideoProbe, frames_K: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
    """One map for each frame, as coded (not turned upright).

    All frames are read in one call: for some the reader gives no map, and which depends on the others asked for. Those take
    the map of the one before, as in the tool. Finer maps come with it: memory is a quarter of a byte per source pixel and frame.

    Args:
        frames_K: ascending indices in the probe.

    Raises:
        ValueError: the reader is not installed.
        BadItemError: unsupported (another codec), or no_decodable_frame where the reader gives no map at all.
    """
    reader = bit_cost_reader()
    name = require_bit_cost(probe)
    numbers = (probe.num_skipped + frames_K).tolist()
    with _local_path(source) as path:
        try:
            read = reader.read_video_fast_selected(path, numbers, thread_count=1, export_bitcost=1, thread_type="slice")
        except (RuntimeError, ValueError, OSError) as error:
            raise BadItemError("no_decodable_frame", f"codec-video-prep does not read it: {error}") from error
    coded = (probe.coded_width_px, probe.coded_height_px)
    if any((item["width"], item["height"]) != coded for item in read):
        raise BadItemError(
            "unsupported", "codec-video-prep reads another of its video streams; leave one video stream in the file"
        )
    maps = {item["frame_idx"]: item["bitcost"][name] for item in read if item["bitcost"] and name in item["bitcost"]}
    if not maps:
        raise BadItemError("no_decodable_frame", "codec-video-prep gives no bit costs for it; use a recipe codec-N")
    latest = maps[min(maps)]
    filled = []
    for number in numbers:
        latest = maps.get(number, latest)
        filled.append(np.asarray(latest))
    return filled


def require_bit_cost(probe: VideoProbe) -> str:
    """The name of the codec's map; BadItemError unsupported for a codec without one (the reader may abort on it)."""
    if probe.codec not in MAPS:
        message = f"bit costs exist for {', '.join(MAPS)}, this video is {probe.codec}; use a recipe codec-N"
        raise BadItemError("unsupported", message)
    return MAPS[probe.codec]


def keyframe_numbers(source: Source, probe: VideoProbe) -> list[int]:
    """The frames that the tool takes for keyframes, as indices in the probe (outside 0..T-1 too, for a range).

    In MP4 and MOV those are the keyframes' places in decode order, elsewhere (and where all are keyframes) their time stamps
    times the mean rate; with leading pictures, or a clock that does not start at 0, that is not where keyframes are shown.
    Elsewhere all frames of VP9 count, because FFmpeg's decoder does not leave out what it is told to.
    """
    with open_video(source, stage="tokenize") as (container, stream):
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
        rate = float(stream.average_rate or 30)
        if "mp4" in container.format.name and not all(key for _, key in packets):
            numbers = [i for i, (_, key) in enumerate(packets) if key]
        else:
            vp9 = probe.codec == "vp9"
            seconds = [float(pts * stream.time_base) for pts, key in packets if (key or vp9) and pts is not None]
            last = probe.num_skipped + probe.num_frames - 1
            numbers = [min(round(round(s, 6) * rate), last) for s in seconds]
    return [n - probe.num_skipped for n in {0, *numbers}]


@contextmanager
def _local_path(source: Source) -> Iterator[str]:
    """The reader takes paths alone: other files are copied to a temporary one."""
    if isinstance(source, str | os.PathLike):
        yield os.fspath(source)
        return
    source.seek(0)
    with tempfile.NamedTemporaryFile(prefix="ov2-bit-cost-") as copy:
        shutil.copyfileobj(source, copy)
        copy.flush()
        yield copy.name
