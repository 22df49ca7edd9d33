"""Opening media with PyAV: one place for the whitelists, the choice of the stream and the translation of errors.

Playlists and other demuxers that open further files or URLs (HLS, DASH, concat, image2 ...) are never probed, so a file that
lies about its kind cannot make the decoder read anything but itself; nor is any protocol allowed: FFmpeg opens no file, it reads
from ours (local_file.py says why).
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import av.error

from ov2_core.config import Decoder
from ov2_core.errors import BadItemError
from ov2_core.media.hardware import accelerator
from ov2_core.storage.local_file import LocalFile, ReadFailedError
from schemas.shard import Stage

Source = str | os.PathLike[str] | BinaryIO
"""A local path, or a seekable binary file (an object store's)."""

CONTAINER_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "gif", "wav", "mp3",
    "aac", "flac", "h264", "hevc", "m4v", "mpegvideo", "ivf", "obu", "av1", "rm", "dv", "yuv4mpegpipe", "vc1", "swf", "apng",
)  # fmt: skip
"""Demuxers that read only the bytes they are given. Audio-only ones are here so that the error can say what the file is."""

MAX_SOURCE_PX = 8192 * 8192
"""Width x height of a frame that a decoder may allocate, unless a config says otherwise."""


@contextlib.contextmanager
def open_video(source: Source, *, stage: Stage, decoder: Decoder = "software") -> Iterator[tuple[Any, Any]]:
    """Open a container and choose its video stream.

    decoder: of the stream's packets; see hardware.require_decoder.

    Yields:
        (container, stream): the best video stream, cover art passed over.

    Raises:
        BadItemError: source_missing, source_empty, not_media or no_video_stream.
        ConnectionError: the machine or the storage cannot read it now; from the context's body too, while it demuxes.
    """
    with _file(source, stage) as file, _container(file, stage, decoder) as container:
        yield container, choose_stream(container, stage=stage)


@contextlib.contextmanager
def _file(source: Source, stage: Stage) -> Iterator[Any]:
    """The file to read from; at the end the fault that it met, whatever FFmpeg and its caller made of that."""
    if not isinstance(source, (str, os.PathLike)):
        yield source
        return
    with _local_file(os.fspath(source), stage) as file:
        try:
            yield file
        except Exception:
            if file.fault is not None:
                raise file.fault from None
            raise
        if file.fault is not None:
            raise file.fault


def _local_file(path: str, stage: Stage) -> LocalFile:
    try:
        file = LocalFile(path)
    except FileNotFoundError:
        raise BadItemError("source_missing", f"no such file: {path}; check the manifest's path", stage=stage) from None
    except IsADirectoryError:
        raise BadItemError("not_media", f"{path} is a folder; give a file", stage=stage) from None
    except ReadFailedError:
        raise
    except (OSError, ValueError) as error:
        raise BadItemError("source_missing", f"not readable: {error}", stage=stage) from None
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise BadItemError("source_empty", f"{path} is 0 bytes long; fetch it again", stage=stage)
    return file


@contextlib.contextmanager
def _container(file: Any, stage: Stage, decoder: Decoder) -> Iterator[Any]:
    file.seek(0)
    try:
        container = av.open(
            _Input(file),
            mode="r",
            options={"format_whitelist": ",".join(CONTAINER_FORMATS), "protocol_whitelist": "none"},
            metadata_errors="replace",
            hwaccel=accelerator(decoder),
        )
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, OSError) and isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise BadItemError(
            "not_media", f"no demuxer reads it ({_short(error)}); is it a complete video file?", stage=stage
        ) from None
    with container:
        yield container


class _Input:
    """What FFmpeg reads from. A header may send it before the file's begin: that is an answer to it and no exception of ours."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.name = str(getattr(file, "name", None) or getattr(file, "path", ""))
        """FFmpeg takes a suffix for a hint. fsspec's files have a path."""
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new position; below 0: FFmpeg's error code."""
        try:
            position: int = self._file.seek(offset, whence)
        except ValueError:  # fsspec
            return -errno.EINVAL
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -errno.EINVAL
        return position


def choose_stream(container: Any, *, stage: Stage) -> Any:
    """FFmpeg's best video stream, unless that is cover art and a real one stands beside it.

    Raises:
        BadItemError: no_video_stream, naming what there is instead.
    """
    real = [s for s in container.streams.video if not _is_cover(s) and s.codec_context is not None]
    best = container.streams.best("video")
    if best is not None and any(s.index == best.index for s in real):
        return best
    if real:
        return real[0]
    kinds = sorted({"cover art" if s.type == "video" else s.type for s in container.streams}) or ["no stream at all"]
    raise BadItemError("no_video_stream", f"no video stream, only: {', '.join(kinds)}", stage=stage)


def limit_pixels(stream: Any, max_px: int, **options: str) -> None:
    """Before the first packet is decoded: frames of more pixels are errors, whatever a header in the middle of the stream says."""
    stream.codec_context.options = {"max_pixels": str(max_px), **options}


def configure(stream: Any, *, export_vectors: bool, loop_filter: bool = True) -> None:
    """One thread, and motion vectors as side data where they are wanted. Before the first packet is decoded."""
    context = stream.codec_context
    context.thread_count = 1
    context.thread_type = "NONE"
    limit_pixels(
        stream,
        max(MAX_SOURCE_PX, context.width * context.height),  # the probe has let that size pass
        **({"flags2": "+export_mvs"} if export_vectors else {}),
        **({} if loop_filter else {"skip_loop_filter": "all"}),
    )


def _is_cover(stream: Any) -> bool:
    disposition = stream.disposition
    flag = getattr(type(disposition), "attached_pic", None)
    return flag is not None and bool(disposition & flag)


def _short(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
