"""Drawn clips: as many frames as asked for, the same each time, each with the property that it is named for."""

from typing import get_args

import numpy as np
import pytest

from ov2_core.evals.varied_clips import Scene, varied_clip

FORM = {"seconds": 2.0, "fps": 12.0, "width_px": 320, "height_px": 180}


def frames_of(scene, **changed):
    truth, frames = varied_clip(scene, **({"seed": 5} | FORM | changed))
    return truth, np.stack(list(frames))


def changes(frames):
    """Share of the pixels that differ from the frame before, by frame."""
    return (np.diff(frames.astype(int), axis=0) != 0).any(axis=3).mean(axis=(1, 2))


@pytest.mark.parametrize("scene", get_args(Scene))
def test_varied_clip_is_of_the_size_asked_for_and_the_same_each_time(scene):
    truth, frames = frames_of(scene)
    assert frames.shape == (24, 180, 320, 3)
    assert frames.dtype == np.uint8
    assert len(truth.pts_seconds) == 24
    assert np.array_equal(frames, frames_of(scene)[1])
    assert not np.array_equal(frames, frames_of(scene, seed=6)[1])


def test_shots_cut_now_and_then():
    _, frames = frames_of("shots", seconds=8.0)
    jumps = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    cuts = int((jumps > 20).sum())
    assert 2 <= cuts <= 8, "one every 1 to 3 s"


def test_a_screen_stands_still_for_the_most_part():
    assert np.median(changes(frames_of("screen", seconds=8.0)[1])) < 0.05


def test_low_light_is_dark_noisy_and_keeps_the_events_of_its_rope():
    truth, frames = frames_of("low-light")
    assert frames.mean() < 45
    assert changes(frames).min() > 0.8
    assert truth.event_frames


def test_cameras_of_sport_and_orbit_move_everything():
    for scene in ("sport", "orbit"):
        assert np.median(changes(frames_of(scene, seconds=4.0)[1])) > 0.2


def test_varied_clip_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="unknown scene 'sea'; expected one of shots"):
        varied_clip("sea", **FORM, seed=0)
    with pytest.raises(ValueError, match="64x64 px, got 24 of 32x180"):
        varied_clip("shots", **(FORM | {"width_px": 32}), seed=0)
