"""A range is probed from a part of the file, and says what the whole would have said."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ov2_core.errors import BadItemError
from ov2_core.evals.clips import RGB, texture, write_clip
from ov2_core.media import probe as module
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import VideoProbe, probe_video

NUM_FRAMES = 150


def frames() -> Any:
    world: RGB = texture(np.random.default_rng(0), 64, 400)
    return (world[:, 2 * i : 2 * i + 80] for i in range(NUM_FRAMES))


CLIPS: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"options": {"x264-params": "mbtree=0:keyint=25:bframes=4:b-pyramid=normal"}},
    "open_gop.mp4": {"options": {"x264-params": "mbtree=0:keyint=25:bframes=4:open-gop=1"}},
    "hevc_open.mp4": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=error:pools=none:frame-threads=1:keyint=25:open-gop=1"},
    },
    "h264.mkv": {"gop_frames": 25},
    "late.mp4": {"gop_frames": 25, "pts_seconds": [5 + i / 25 for i in range(NUM_FRAMES)]},
    "uneven.mkv": {"gop_frames": 25, "pts_seconds": [i / 25 + 0.013 * (i % 3) for i in range(NUM_FRAMES)]},
    "vp9.webm": {"codec": "libvpx-vp9", "gop_frames": 25},
    "turned.mov": {"gop_frames": 25, "rotation_degrees": 90},
    "mpeg4.avi": {"codec": "mpeg4", "gop_frames": 25},
    "stream.ts": {"gop_frames": 25},
}
RANGES = [(None, 1.0), (0.0, 2.0), (1.0, 2.0), (1.5, 1.56), (2.0, 4.4), (3.3, None), (5.9, 20.0), (0.5, 0.9)]


@pytest.fixture(scope="module", params=CLIPS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("ranges") / request.param
    write_clip(path, frames(), fps=25, **CLIPS[request.param])
    return path


def whole(path: Path, monkeypatch: pytest.MonkeyPatch, **range_seconds: float | None) -> VideoProbe:
    with monkeypatch.context() as patch:
        patch.setattr(module, "demux_range", lambda *args, **kwargs: None)
        return probe_video(str(path), **range_seconds)


def fields(probe: VideoProbe) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in VideoProbe.__dataclass_fields__:
        value = getattr(probe, name)
        if name == "timeline":
            value = (value.fps, value.ticks_T.tolist(), value.variable_rate)
        found[name] = value.tolist() if isinstance(value, np.ndarray) else value
    return found | {"num_skipped": probe.num_skipped > 0}


@pytest.mark.parametrize("bounds", RANGES)
def test_range_says_what_the_whole_file_says(
    clip: Path, bounds: tuple[float | None, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = bounds
    expected = whole(clip, monkeypatch, start_seconds=start, end_seconds=end)
    found = probe_video(str(clip), start_seconds=start, end_seconds=end)
    assert fields(found) == fields(expected)
    indices = [index for index, _ in decode_frames(str(clip), found, stats=DecodeStats())]
    assert indices == list(range(found.num_frames))


class _Counting(io.FileIO):
    num_bytes = 0

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.num_bytes += count
        return count

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.num_bytes += len(data)
        return data


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_little_of_a_long_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0)
    pictures = (noise.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(100))
    write_clip(path, pictures, fps=10, gop_frames=5)
    with _Counting(path) as source:
        probe = probe_video(source, start_seconds=6.0, end_seconds=7.0)
    assert probe.num_frames == 10
    assert source.num_bytes < path.stat().st_size / 3


def test_range_behind_the_end_is_told_with_the_length(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_clip(path, frames(), fps=25)
    with pytest.raises(BadItemError, match=r"no frame in \[20.0, 30.0\) s: the video lasts 6.000 s") as error:
        probe_video(str(path), start_seconds=20.0, end_seconds=30.0)
    assert error.value.reason == "empty_range"
