"""Static, black, look-alike: on clips whose truth is known, in several encodings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ov2_core.filters.duplicates import DuplicateIndex, mean_bits
from ov2_core.filters.pixels import NUM_FRAMES, difference_hash, look_at_still, look_at_video, spread
from ov2_core.media.image import load_image
from ov2_core.media.probe import probe_video
from schemas.video import PixelScores

Frames = list[npt.NDArray[np.uint8]]


def write(path: Path, frames: Frames, *, codec: str = "libx264", rate: int = 10, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1", **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def scene(seed: int, num_frames: int = 40, *, height_px: int = 144, width_px: int = 192) -> Frames:
    """A smooth random picture that drifts, with a bright disc that moves: low frequencies, as in camera pictures."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height_px, 0:width_px] / height_px
    waves = [(rng.uniform(0.5, 3, 2), rng.uniform(0, 6.28), rng.uniform(20, 50)) for _ in range(4)]
    frames = []
    for index in range(num_frames):
        shift = index / num_frames
        luma = 128 + sum(a * np.sin(6.28 * (f[0] * x + f[1] * y + 0.3 * shift) + p) for f, p, a in waves)
        centre = 0.3 + 0.7 * shift
        luma = np.where((x - centre) ** 2 + (y - 0.5) ** 2 < 0.02, 230, luma)
        frames.append(np.repeat(np.clip(luma, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    return frames


def look(path: Path, **range_seconds: float) -> PixelScores:
    return look_at_video(str(path), probe_video(str(path), **range_seconds))


def test_static_video_changes_nowhere_and_a_moving_one_everywhere(tmp_path: Path) -> None:
    still = look(write(tmp_path / "still.mp4", [scene(1)[0]] * 40))
    moving = look(write(tmp_path / "moving.mp4", scene(1)))
    assert len(still.change_levels) == NUM_FRAMES - 1
    assert max(still.change_levels) < 0.5
    assert min(moving.change_levels) > 2


def test_slides_are_static_but_where_they_change(tmp_path: Path) -> None:
    slides = look(write(tmp_path / "slides.mp4", [scene(1)[0]] * 20 + [scene(2)[0]] * 20))
    assert [level > 1 for level in slides.change_levels] == [False, False, False, True, False, False, False]


def test_black_is_dark_in_full_and_in_studio_range(tmp_path: Path) -> None:
    black = np.zeros((96, 128, 3), np.uint8)
    frames = [black] * 20 + scene(3, 20, height_px=96, width_px=128)
    for name, options in (("studio", {}), ("full", {"x264-params": "fullrange=on"})):
        found = look(write(tmp_path / f"{name}.mp4", frames, **options))
        assert [share == 1 for share in found.dark_share] == [True] * 4 + [False] * 4
        assert found.hashes[:4] == [None] * 4
        assert None not in found.hashes[4:]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crf35.mp4", {"crf": "35", "g": "7"}),
        ("hevc.mp4", {"codec": "libx265", "crf": "32", "x265-params": "log-level=error:pools=1"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "crf": "40", "b": "0", "cpu-used": "8"}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
    ],
)
def test_other_encodings_of_a_clip_look_alike_and_other_clips_do_not(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    with DuplicateIndex(4) as index:
        for seed in range(6):
            index.add(seed + 1, f"s{seed}", look(write(tmp_path / f"{seed}.mp4", scene(seed), crf="18")))
        smaller = [frame[::2, ::2] for frame in scene(4)]
        found = index.find(look(write(tmp_path / name, smaller, **options)))
        assert found is not None
        assert (found.line, found.id) == (5, "s4")
        assert index.find(look(write(tmp_path / f"other-{name}", scene(17), **options))) is None


def test_frame_rate_and_a_range_do_not_matter_where_the_time_is_the_same(tmp_path: Path) -> None:
    every = scene(5, 80)
    full = look(write(tmp_path / "full.mp4", every, rate=20))
    half = look(write(tmp_path / "half.mp4", every[::2], rate=10))
    longer = write(tmp_path / "longer.mp4", scene(6, 40) + every[::2], rate=10)
    with DuplicateIndex(4) as index:
        index.add(1, "full", full)
        assert index.find(half) is not None
        assert index.find(look(longer, start_seconds=4.0)) is not None
        assert index.find(look(longer, end_seconds=4.0)) is None


def test_rotation_is_applied(tmp_path: Path) -> None:
    upright = write(tmp_path / "a.mp4", scene(7))
    turned = write(tmp_path / "b.mp4", [np.ascontiguousarray(np.rot90(f, -1)) for f in scene(7)])
    probe = probe_video(str(turned))
    as_shown = look_at_video(str(turned), replace(probe, rotation_degrees=90))
    hashes = look(upright).hashes
    bits = [bin(int(a or "0", 16) ^ int(b or "0", 16)).count("1") for a, b in zip(hashes, as_shown.hashes, strict=True)]
    assert max(bits) <= 4


def test_still_is_one_frame(tmp_path: Path) -> None:
    Image.fromarray(scene(8)[0]).save(tmp_path / "a.png")
    Image.fromarray(scene(8)[0]).resize((96, 72)).save(tmp_path / "b.jpg", quality=60)
    a, b = (look_at_still(load_image(str(tmp_path / n), max_source_px=1 << 20)) for n in ("a.png", "b.jpg"))
    assert (a.seconds, a.change_levels, len(a.hashes)) == ([0.0], [], 1)
    with DuplicateIndex(3) as index:
        index.add(1, "a", a)
        assert index.find(b) is not None


def test_hash_is_the_naive_one() -> None:
    rng = np.random.default_rng(0)
    cells = rng.uniform(100, 110, (64, 72)).astype(np.float32)
    assert difference_hash(cells) is None, "faint noise has no contrast"
    cells += np.linspace(0, 100, 72, dtype=np.float32)
    bits = ""
    for row in range(8):
        means = [cells[8 * row : 8 * row + 8, 8 * c : 8 * c + 8].mean() for c in range(9)]
        bits += "".join("1" if means[c] > means[c + 1] else "0" for c in range(8))
    assert difference_hash(cells) == f"{int(bits, 2):016x}"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 100])
def test_frames_are_spread_over_the_time(count: int) -> None:
    seconds = np.sort(np.random.default_rng(count).uniform(0, 60, count))
    chosen = spread(seconds)
    middles = seconds[0] + (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * (seconds[-1] - seconds[0])
    naive = sorted({int(np.argmin(np.abs(seconds - middle))) for middle in middles})
    assert chosen.tolist() == naive


def random_scores(rng: np.random.Generator, *, flips: int = 0, of: PixelScores | None = None) -> PixelScores:
    values = rng.integers(0, 2**64, NUM_FRAMES, np.uint64)
    if of is not None:
        values = np.array([int(text or "0", 16) for text in of.hashes], np.uint64)
        for place in range(NUM_FRAMES):
            for bit in rng.choice(64, flips, replace=False):
                values[place] ^= np.uint64(1) << np.uint64(bit)
    return PixelScores(seconds=[], change_levels=[], dark_share=[], hashes=[f"{int(v):016x}" for v in values])


@pytest.mark.parametrize("flips", [0, 1, 3])
def test_index_finds_what_comparing_all_pairs_finds(flips: int) -> None:
    rng = np.random.default_rng(flips)
    known = [random_scores(rng) for _ in range(50)]
    with DuplicateIndex(flips) as index:
        for line, pixels in enumerate(known, start=1):
            index.add(line, f"v{line}", pixels)
        for line, pixels in enumerate(known, start=1):
            found = index.find(random_scores(rng, flips=flips, of=pixels))
            assert found is not None
            assert (found.line, found.bits) == (line, flips)
        assert index.find(random_scores(rng)) is None


def test_first_of_several_wins_and_half_of_the_frames_must_have_a_hash() -> None:
    pixels = random_scores(np.random.default_rng(1))
    with DuplicateIndex(4) as index:
        index.add(9, "later", pixels)
        index.add(2, "earlier", pixels)
        found = index.find(pixels)
        assert found is not None
        assert found.line == 2
        few = pixels.model_copy(update={"hashes": pixels.hashes[:3] + [None] * 5})
        assert index.find(few) is None
        half = pixels.model_copy(update={"hashes": pixels.hashes[:4] + [None] * 4})
        assert index.find(half) is not None
    assert mean_bits(*(np.zeros(2, np.uint64), np.zeros(2, bool)) * 2) is None
