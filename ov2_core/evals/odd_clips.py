"""Files as corpora have them: odd, damaged, or no video at all, each with what is true of it.

Enters: a folder and a name of ODDITIES. Leaves: a file and its OddClip. Design: every clip shows canary frames of 14 x
10 blocks (392 x 280 px) where its size allows, so a test can ask not only whether frames came out, but whether they
were the right ones.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ov2_core.evals.clips import RGB, add_video_stream, canary_frame, write_clip

_COLUMNS, _ROWS = 14, 10
_FPS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class OddClip:
    """A file and what a reader should make of it."""

    path: Path
    video_id: int | None
    """Id in its canary blocks; None where the frames carry none."""
    num_frames: int | None
    """Decodable frames: 0 for none; None where it depends on the decoder (a cut tail), but at least 1."""
    width_px: int = _COLUMNS * 28
    height_px: int = _ROWS * 28
    """As shown, rotation applied."""
    pts_seconds: tuple[float, ...] | None = None
    """When each frame is shown where that is not i / 30; on the file's own clock."""
    refused_as: tuple[str, ...] = ()
    """Quarantine reasons that would be right; empty for a file that must be tokenized."""
    flag: str | None = None
    """What should be flagged where it is tokenized: "truncated", if its container can tell."""


def write_odd_clip(name: str, folder: Path, *, num_frames: int = 36) -> OddClip:
    """Writes one oddity.

    Args:
        name: a key of ODDITIES.
        num_frames: frames of those whose length is not their oddity; at least 24.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ODDITIES:
        raise ValueError(f"unknown oddity {name!r}; expected one of {', '.join(ODDITIES)}")
    folder.mkdir(parents=True, exist_ok=True)
    return ODDITIES[name](folder, num_frames)


def video_id_of(name: str) -> int:
    """The canary id of an oddity, 16 bits of its name's CRC."""
    return zlib.crc32(name.encode()) & 0xFFFF


def _frames(name: str, count: int, *, turns: int = 0, scale: int = 1) -> Iterator[RGB]:
    for index in range(count):
        shown = canary_frame(video_id=video_id_of(name), frame=index, columns=_COLUMNS, rows=_ROWS, scale=scale)
        yield np.rot90(shown, -turns)


def _moving_stripes(count: int, width_px: int, height_px: int) -> Iterator[RGB]:
    x = np.arange(width_px)[None, :] + np.arange(height_px)[:, None]
    for index in range(count):
        grey = ((x + 3 * index) // 16 % 2 * 180 + 40).astype(np.uint8)
        yield np.repeat(grey[:, :, None], 3, axis=2)


def _plain(name: str, suffix: str, **options: Any) -> Callable[[Path, int], OddClip]:
    """A clip of canary frames whose oddity is an encoder or a container setting."""

    def write(folder: Path, num_frames: int) -> OddClip:
        path = folder / f"{name}{suffix}"
        write_clip(path, _frames(name, num_frames), fps=_FPS, **options)
        return OddClip(path=path, video_id=video_id_of(name), num_frames=num_frames)

    return write


def _short(name: str, count: int) -> Callable[[Path, int], OddClip]:
    return lambda folder, num_frames: _plain(name, ".mp4", options={"crf": "12"})(folder, count)


def _rotated(degrees: int) -> Callable[[Path, int], OddClip]:
    def write(folder: Path, num_frames: int) -> OddClip:
        name = f"rotated_{degrees}"
        path = folder / f"{name}.mp4"
        frames = _frames(name, num_frames, turns=degrees // 90)
        write_clip(path, frames, fps=_FPS, rotation_degrees=degrees, options={"crf": "12"})
        return OddClip(path=path, video_id=video_id_of(name), num_frames=num_frames)

    return write


def jittered_pts_seconds(num_frames: int, *, seed: int = 0, fps: float = _FPS) -> tuple[float, ...]:
    """Times of a variable-rate clip in whole ms: a quarter of the frames dropped, the rest off by up to 8 ms."""
    rng = np.random.default_rng(seed)
    slots = np.sort(rng.choice(np.arange(1, num_frames * 4 // 3 + 1), num_frames - 1, replace=False))
    jitter = rng.uniform(-0.008, 0.008, num_frames - 1)
    return (0.0, *(float(round(s / fps + j, 3)) for s, j in zip(slots, jitter, strict=True)))


def _variable_rate(suffix: str) -> Callable[[Path, int], OddClip]:
    def write(folder: Path, num_frames: int) -> OddClip:
        name = f"variable_rate_{suffix[1:]}"
        path = folder / f"{name}{suffix}"
        pts = jittered_pts_seconds(num_frames)
        write_clip(path, _frames(name, num_frames), fps=_FPS, pts_seconds=pts, options={"crf": "12"})
        return OddClip(path=path, video_id=video_id_of(name), num_frames=num_frames, pts_seconds=pts)

    return write


def _late_start(folder: Path, num_frames: int) -> OddClip:
    """The first frame is shown at 5 s on the file's clock."""
    path = folder / "late_start.mkv"
    pts = tuple(5 + i / _FPS for i in range(num_frames))
    write_clip(path, _frames("late_start", num_frames), fps=_FPS, pts_seconds=pts, options={"crf": "12"})
    return OddClip(path=path, video_id=video_id_of("late_start"), num_frames=num_frames, pts_seconds=pts)


def _odd_size(folder: Path, num_frames: int) -> OddClip:
    path = folder / "odd_size.mp4"
    write_clip(path, _moving_stripes(num_frames, 333, 187), fps=_FPS, pixel_format="yuv444p")
    return OddClip(path=path, video_id=None, num_frames=num_frames, width_px=333, height_px=187)


def _below_a_block(folder: Path, num_frames: int) -> OddClip:
    """Smaller than one 28-px block, so that it has to be enlarged."""
    path = folder / "below_a_block.mp4"
    write_clip(path, _moving_stripes(num_frames, 24, 16), fps=_FPS)
    return OddClip(path=path, video_id=None, num_frames=num_frames, width_px=24, height_px=16)


def _audio(output: Any, seconds: float = 1.0) -> tuple[Any, Iterator[Any]]:
    """An AAC stream of a soft tone, and its packets."""
    stream = output.add_stream("aac", rate=16000, layout="mono")

    def packets() -> Iterator[Any]:
        for start in range(0, int(16000 * seconds), 1024):
            tone = (np.sin((start + np.arange(1024)) * 0.17) * 0.1).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return stream, packets()


def _audio_only(folder: Path, num_frames: int) -> OddClip:
    path = folder / "audio_only.mp4"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        _, packets = _audio(output)
        output.mux(list(packets))
    return OddClip(path=path, video_id=None, num_frames=0, refused_as=("no_video_stream",))


def _cover_art_only(folder: Path, num_frames: int) -> OddClip:
    """Audio with one JPEG marked attached_pic, which FFmpeg lists as a video stream."""
    path = folder / "cover_art_only.m4a"
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as output:
        _, packets = _audio(output)
        cover: Any = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 280, 280, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(next(_moving_stripes(1, 280, 280)), format="rgb24")
        picture.pts = 0
        output.mux(cover.encode(picture.reformat(format="yuvj420p", threads=1)))
        output.mux(list(packets))
        output.mux(cover.encode(None))
    return OddClip(path=path, video_id=None, num_frames=0, refused_as=("no_video_stream",))


def _two_video_streams(folder: Path, num_frames: int) -> OddClip:
    """A small preview stands first; the canary frames are in the second stream, larger and marked as the default."""
    path = folder / "two_video_streams.mp4"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        small = add_video_stream(output, Fraction(_FPS), (120, 160, 3), "libx264", "yuv420p", {"crf": "45"})
        large = add_video_stream(output, Fraction(_FPS), (_ROWS * 28, _COLUMNS * 28, 3), "libx264", "yuv420p")
        large.disposition = av.stream.Disposition.default
        both = zip(_moving_stripes(num_frames, 160, 120), _frames("two_video_streams", num_frames), strict=True)
        for index, pair in enumerate(both):
            for stream, rgb in zip((small, large), pair, strict=True):
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts, frame.time_base = index * 90000 // _FPS, Fraction(1, 90000)
                output.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        for stream in (small, large):
            output.mux(stream.encode(None))
    return OddClip(path=path, video_id=video_id_of("two_video_streams"), num_frames=num_frames)


def _with_audio(folder: Path, num_frames: int) -> OddClip:
    path = folder / "with_audio.mp4"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        video = add_video_stream(output, Fraction(_FPS), (_ROWS * 28, _COLUMNS * 28, 3), "libx264", "yuv420p")
        _, packets = _audio(output)
        for index, rgb in enumerate(_frames("with_audio", num_frames)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index * 90000 // _FPS, Fraction(1, 90000)
            output.mux(video.encode(frame.reformat(format="yuv420p", threads=1)))
        output.mux(video.encode(None))
        output.mux(list(packets))
    return OddClip(path=path, video_id=video_id_of("with_audio"), num_frames=num_frames)


def _truncated(name: str, suffix: str, share: float, **options: Any) -> Callable[[Path, int], OddClip]:
    """A clip of three times num_frames, keyframes every 12 frames, cut at a share of its bytes."""

    def write(folder: Path, num_frames: int) -> OddClip:
        path = folder / f"{name}{suffix}"
        write_clip(path, _frames(name, num_frames * 3), fps=_FPS, gop_frames=12, **options)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        flag = None if suffix == ".ts" else "truncated"  # a transport stream does not say how long it is
        return OddClip(path=path, video_id=video_id_of(name), num_frames=None, flag=flag)

    return write


def _truncated_without_index(folder: Path, num_frames: int) -> OddClip:
    """An mp4 whose index stood at the end and was cut off: nothing of it can be decoded."""
    clip = _truncated("truncated_without_index", ".mp4", 0.7, faststart=False)(folder, num_frames)
    return OddClip(
        path=clip.path, video_id=None, num_frames=0, refused_as=("not_media", "no_decodable_frame", "no_video_stream")
    )


def _raw_bytes(name: str, payload: bytes, *reasons: str) -> Callable[[Path, int], OddClip]:
    def write(folder: Path, num_frames: int) -> OddClip:
        path = folder / f"{name}.mp4"
        path.write_bytes(payload)
        return OddClip(path=path, video_id=None, num_frames=0, refused_as=reasons)

    return write


_FINE = {"crf": "12"}
ODDITIES: dict[str, Callable[[Path, int], OddClip]] = {
    "variable_rate_mp4": _variable_rate(".mp4"),
    "variable_rate_mkv": _variable_rate(".mkv"),
    "late_start": _late_start,
    "rotated_90": _rotated(90),
    "rotated_180": _rotated(180),
    "rotated_270": _rotated(270),
    "odd_size": _odd_size,
    "below_a_block": _below_a_block,
    "h264_10bit": _plain("h264_10bit", ".mp4", pixel_format="yuv420p10le", options=_FINE),
    "hevc_10bit": _plain("hevc_10bit", ".mp4", codec="libx265", pixel_format="yuv420p10le", options=_FINE),
    "full_range": _plain("full_range", ".mp4", pixel_format="yuvj420p", options=_FINE),
    "interlaced": _plain(
        "interlaced", ".mp4", options={**_FINE, "flags": "+ildct+ilme", "x264-params": "mbtree=0:tff=1"}
    ),
    "one_frame": _short("one_frame", 1),
    "two_frames": _short("two_frames", 2),
    "three_frames": _short("three_frames", 3),
    "no_frame_count_mkv": _plain("no_frame_count_mkv", ".mkv", options=_FINE),
    "no_frame_count_ts": _plain("no_frame_count_ts", ".ts", options=_FINE),
    "no_pts": _plain("no_pts", ".h264", options=_FINE, container="h264"),
    "hevc": _plain("hevc", ".mp4", codec="libx265", options=_FINE),
    "vp9": _plain("vp9", ".webm", codec="libvpx-vp9", options={"crf": "10"}),
    "av1": _plain("av1", ".mkv", codec="libsvtav1", options={"crf": "6", "preset": "8"}),
    "mpeg4": _plain("mpeg4", ".avi", codec="mpeg4", options={"qscale": "2"}),
    "with_audio": _with_audio,
    "two_video_streams": _two_video_streams,
    "truncated_mp4": _truncated("truncated_mp4", ".mp4", 0.6, options=_FINE),
    "truncated_mkv": _truncated("truncated_mkv", ".mkv", 0.6, options=_FINE),
    "truncated_ts": _truncated("truncated_ts", ".ts", 0.6, options=_FINE),
    "truncated_without_index": _truncated_without_index,
    "audio_only": _audio_only,
    "cover_art_only": _cover_art_only,
    "zero_length": _raw_bytes("zero_length", b"", "source_empty"),
    "text_named_mp4": _raw_bytes("text_named_mp4", b"This is a line of text, not a video.\n" * 40, "not_media"),
}
"""Writers by name. Each takes a folder and a number of frames."""
