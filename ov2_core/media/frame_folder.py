"""A folder of stills that stands for a video: frame i, in the order of the numbers in the names, is shown at i / fps seconds.

Enters: the folder's path or URL and its rate. Leaves: a VideoProbe, as of a video file, and frames as stills. There is no codec
behind them: no motion vectors, and file sizes that say nothing of change, so only uniform sampling takes them.
"""

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ov2_core.errors import BadItemError
from ov2_core.media.image import StillImage, load_image
from ov2_core.media.probe import VideoProbe, frames_in_range
from ov2_core.media.timeline import Timeline
from ov2_core.storage.source import list_folder, open_source
from schemas.video import SourceIdentity

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Other files of the folder are no frames."""
CODEC = "frames"


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFolder:
    """The frames of a folder, in order."""

    uri: str
    fps: Fraction
    frame_uris: tuple[str, ...]
    frame_bytes: tuple[int, ...]
    identity: SourceIdentity
    """All sizes, and a digest of names, sizes and stamps: a frame that is added, taken away or written anew shows."""


def list_frames(uri: str, fps: float) -> FrameFolder:
    """The folder's frames, by one listing.

    Raises:
        BadItemError: refused_uri, source_missing, or source_empty where no image lies in it.
    """
    listed = [(name, found) for name, found in list_folder(uri) if name.lower().endswith(FRAME_SUFFIXES)]
    if not listed:
        raise BadItemError("source_empty", f"{uri}: no file ends in {', '.join(FRAME_SUFFIXES)}", stage="probe")
    listed.sort(key=lambda item: _natural(item[0]))
    digest = hashlib.sha256()
    for name, found in listed:
        digest.update(f"{name}\n{found.size_bytes}\n{found.stamp}\n".encode("utf-8", "surrogateescape"))
    sizes = tuple(found.size_bytes for _, found in listed)
    return FrameFolder(
        uri=uri,
        fps=Fraction(fps).limit_denominator(1001),
        frame_uris=tuple(name for name, _ in listed),
        frame_bytes=sizes,
        identity=SourceIdentity(size_bytes=sum(sizes), stamp=digest.hexdigest()[:32]),
    )


def probe_frames(
    folder: FrameFolder, *, max_source_px: int, start_seconds: float | None = None, end_seconds: float | None = None
) -> VideoProbe:
    """What a probe of a video file says, of the frames in the range. The first of them is decoded: its size is the clip's.

    Raises:
        BadItemError: empty_range, or as load_frame.
    """
    fps = float(folder.fps)
    seconds = np.arange(len(folder.frame_uris)) / fps
    chosen = frames_in_range(seconds, 1 / fps, start_seconds, end_seconds)
    first = load_frame(folder, int(chosen[0]), max_source_px=max_source_px)
    return VideoProbe(
        container=CODEC,
        codec=CODEC,
        pixel_format="rgb24",
        coded_width_px=first.width,
        coded_height_px=first.height,
        width_px=first.width,
        height_px=first.height,
        rotation_degrees=0,
        timeline=Timeline(fps=folder.fps, ticks_T=np.arange(len(chosen), dtype=np.int32), variable_rate=False),
        pts_T=None,
        num_skipped=int(chosen[0]),
        frame_bytes_T=np.array(folder.frame_bytes, np.int64)[chosen],
        keyframe_T=np.ones(len(chosen), bool),
        discardable_T=np.zeros(len(chosen), bool),
        anchor_distance_T2=np.tile(np.array([[1, 0]], np.int32), (len(chosen), 1)),
        seconds_T=seconds[chosen],
        duration_seconds=len(chosen) / fps,
        size_bytes=folder.identity.size_bytes,
        flags=(),
    )


def load_frame(folder: FrameFolder, index: int, *, max_source_px: int) -> StillImage:
    """Frame `index` of the folder.

    Raises:
        BadItemError: as load_image; the message opens with the file.
    """
    uri = folder.frame_uris[index]
    source = open_source(uri)
    try:
        return load_image(source, max_source_px=max_source_px)
    except BadItemError as error:
        raise BadItemError(error.reason, f"{uri}: {error}", stage=error.stage) from error
    finally:
        if not isinstance(source, str):
            source.close()


def require_uniform(mode: str) -> None:
    """Raises BadItemError (unsupported) for a tokenizer mode that needs a codec's signals."""
    if mode != "uniform":
        raise BadItemError(
            "unsupported", f"a folder of frames holds no codec signal for mode {mode!r}; use a recipe uniform-N"
        )


def _natural(uri: str) -> tuple[list[tuple[int, int, str]], str]:
    """Numbers as numbers: frame_9 before frame_10."""
    name = uri.rpartition("/")[2]
    parts = [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"([0-9]+)", name)]
    return parts, name
