"""Cuts of drawn clips in several encodings, and what is none; clips of shots."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.evals.clips import RGB, texture, write_clip
from ov2_core.media.probe import probe_video
from ov2_core.shots import AROUND_FRAMES, CUT_LEVELS, CUT_RATIO, clip_bounds, find_shots, is_cut

HEIGHT, WIDTH = 96, 128
LENGTHS = (25, 40, 14, 60, 31)
CUTS = np.cumsum(LENGTHS)[:-1].tolist()


def movie(seed: int = 0, *, flash_at: int | None = None) -> Iterator[RGB]:
    """Shots of LENGTHS frames: still, a pan, still, a fast pan, a square that moves. flash_at: two bright frames."""
    rng = np.random.default_rng(seed)
    number = 0
    for shot, length in enumerate(LENGTHS):
        world = texture(rng, HEIGHT, WIDTH * 4)
        speed = (0, 2, 0, 5, 0)[shot]
        for index in range(length):
            left = index * speed
            frame = world[:, left : left + WIDTH].copy()
            if shot == 4:
                x = abs(index * 7 % (2 * (WIDTH - 40)) - (WIDTH - 40))
                frame[30:70, x : x + 40] = (230, 40, 60)
            if flash_at is not None and flash_at <= number < flash_at + 2:
                frame = np.clip(frame.astype(int) + 110, 0, 255).astype(np.uint8)
            number += 1
            yield frame


ENCODINGS: dict[str, dict[str, Any]] = {
    "x264.mp4": {},
    "x264_one_gop.mp4": {"options": {"x264-params": "mbtree=0:scenecut=0:keyint=400:bframes=8"}},
    "x264_every_20.mp4": {"options": {"x264-params": "mbtree=0:scenecut=0:keyint=20:min-keyint=20"}},
    "x264_intra.mp4": {"options": {"x264-params": "keyint=1"}},
    "x265.mp4": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9_altref.webm": {"codec": "libvpx-vp9", "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "25"}},
    "av1.mkv": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_cuts_are_found_to_the_frame_and_nothing_else_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_clip(path, movie(flash_at=50), fps=25, **ENCODINGS[name])
    assert find_shots(str(path), probe_video(str(path))).tolist() == [0, *CUTS]


def test_shots_of_a_range_count_from_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, movie(), fps=25)
    probe = probe_video(str(path), start_seconds=20 / 25, end_seconds=100 / 25)
    assert find_shots(str(path), probe).tolist() == [0, 5, 45, 59]


def test_still_video_is_one_shot(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    picture = texture(np.random.default_rng(0), HEIGHT, WIDTH)
    write_clip(path, (picture for _ in range(120)), fps=25, gop_frames=30)
    assert find_shots(str(path), probe_video(str(path))).tolist() == [0]


@given(st.lists(st.sampled_from([0.0, 3.0, 9.0, 12.0, 25.0, 60.0]), min_size=1, max_size=40))
def test_cut_is_a_step_that_stands_out_from_those_around(steps: list[float]) -> None:
    step_T: npt.NDArray[np.float64] = np.array(steps)
    naive = []
    for t, step in enumerate(steps):
        around = [steps[i] for i in range(t - AROUND_FRAMES, t + AROUND_FRAMES + 1) if 0 <= i < len(steps) and i != t]
        naive.append(step >= CUT_LEVELS and step >= CUT_RATIO * max(around, default=0.0))
    assert is_cut(step_T).tolist() == naive


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 99), max_size=5), st.integers(0, 30), st.integers(0, 100))
def test_clips_lie_in_one_shot_and_are_of_allowed_lengths(
    maximum: int, cuts: list[int], minimum: int, unused: int
) -> None:
    probe = _PROBE
    starts = np.array(sorted({0, *cuts}), np.int64)
    min_seconds, max_seconds = min(minimum, maximum / 2) / 10, maximum / 10
    bounds = clip_bounds(starts, probe, min_seconds=min_seconds, max_seconds=max_seconds)
    frame = 1 / 10
    edges = [*(starts * frame).tolist(), 10.0]
    for start, end in bounds:
        assert min_seconds - 1e-6 <= end - start <= max_seconds + frame + 1e-6
        assert any(a - 1e-6 <= start and end <= b + 1e-6 for a, b in pairwise(edges))
        assert round(start / frame) == pytest.approx(start / frame)
    assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(bounds))
    if min_seconds == 0:
        assert sum(end - start for start, end in bounds) == pytest.approx(10.0)


@pytest.fixture(scope="module", autouse=True)
def hundred_frames(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _PROBE
    path = tmp_path_factory.mktemp("shots") / "hundred.mp4"
    write_clip(path, (np.zeros((32, 32, 3), np.uint8) for _ in range(100)), fps=10)
    _PROBE = probe_video(str(path))


_PROBE: Any = None
