"""frames_to_look_at: which frames of a clip signals are computed of."""

from itertools import pairwise

import numpy as np
import pytest

from ov2_core.tokenizer.frames import frames_to_look_at

B_FRAMES = np.array([False, True, False, True] * 30)  # x264's defaults: every second one is free


@pytest.mark.parametrize(
    ("fps", "free", "max_step_seconds", "step"),
    [
        (30, B_FRAMES, 0.1, 2),  # three would be near enough, but others need only every second one
        (30, ~np.ones(120, bool), 0.1, 3),
        (25, ~np.ones(120, bool), 0.1, 2),
        (60, B_FRAMES, 0.1, 6),
        (30, B_FRAMES, 0.05, 1),
        (30, B_FRAMES, 0.0, 1),
        (5, ~np.ones(120, bool), 0.1, 1),
    ],
)
def test_steps_of_a_constant_rate(fps, free, max_step_seconds, step):
    looked_at = frames_to_look_at(
        np.arange(120) / fps,
        free,
        np.array([0, 60, 120]),
        max_step_seconds=max_step_seconds,
        fewest=8,
        short_whole=True,
    )
    assert set(looked_at) <= set(range(0, 120, step))
    assert len(looked_at) >= 120 // step - 1  # the end of the clip is near enough to the last but one


def plain_walk(seconds, free, start, end, step):
    here = [start]
    while here[-1] + 1 < end:
        near = [i for i in range(here[-1] + 1, 91) if seconds[min(i, 89)] - seconds[here[-1]] <= step + 1e-6]
        if end in near:  # the next group's first, or the clip's last: that one need not be looked at
            break
        needed = [i for i in near if not free[i]]
        here.append(max(needed or near or [here[-1] + 1]))
    return here


@pytest.mark.parametrize("seed", range(30))
def test_against_a_plain_loop(seed):
    random = np.random.default_rng(seed)
    seconds = np.cumsum(random.choice([0.02, 0.04, 0.15], 90, p=[0.5, 0.45, 0.05]))
    free = random.random(90) < random.choice([0.0, 0.5, 0.9])
    starts, step, fewest = np.array([0, 40, 44, 90]), float(random.choice([0.0, 0.05, 0.1, 0.2])), 8
    whole = bool(random.random() < 0.5)
    expected = []
    for start, end in pairwise(starts.tolist()):
        shorter, here = step, plain_walk(seconds, free, start, end, step)
        while not whole and len(here) < min(fewest, end - start) and shorter > 1e-6:
            shorter *= 0.75
            here = plain_walk(seconds, free, start, end, shorter)
        expected += here if len(here) >= fewest else range(start, end)
    got = frames_to_look_at(seconds, free, starts, max_step_seconds=step, fewest=fewest, short_whole=whole)
    assert got.tolist() == expected


@pytest.mark.parametrize(("frames", "step"), [(30, 3), (20, 2), (12, 1), (8, 1), (5, 1)])
def test_a_short_group_is_walked_through_in_shorter_steps(frames, step):
    looked_at = frames_to_look_at(
        np.arange(120) / 30,
        ~np.ones(120, bool),
        np.array([0, frames, 120]),
        max_step_seconds=0.1,
        fewest=8,
        short_whole=False,
    )
    here = looked_at[looked_at < frames]
    assert here.tolist() == list(range(0, frames, step))
    assert len(here) >= min(8, frames)
    assert looked_at[len(here) :].tolist() == list(range(frames, 119, 3))


def test_shorter_steps_prefer_frames_that_others_need():
    """Of 16 frames every second one is free: looking at all would decode them all."""
    looked_at = frames_to_look_at(
        np.arange(120) / 30, B_FRAMES, np.array([0, 16, 120]), max_step_seconds=0.134, fewest=8, short_whole=False
    )
    assert looked_at[looked_at < 16].tolist() == list(range(0, 16, 2))


def test_or_it_is_looked_at_whole():
    looked_at = frames_to_look_at(
        np.arange(120) / 30,
        ~np.ones(120, bool),
        np.array([0, 20, 120]),
        max_step_seconds=0.1,
        fewest=8,
        short_whole=True,
    )
    assert looked_at[:21].tolist() == list(range(21))
    assert looked_at[21:].tolist() == list(range(23, 119, 3))
