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
        np.arange(120) / fps, free, np.array([0, 60, 120]), max_step_seconds=max_step_seconds, fewest=8
    )
    assert set(looked_at) <= set(range(0, 120, step))
    assert len(looked_at) >= 120 // step - 1  # the end of the clip is near enough to the last but one


@pytest.mark.parametrize("seed", range(30))
def test_against_a_plain_loop(seed):
    random = np.random.default_rng(seed)
    seconds = np.cumsum(random.choice([0.02, 0.04, 0.15], 90, p=[0.5, 0.45, 0.05]))
    free = random.random(90) < random.choice([0.0, 0.5, 0.9])
    starts, step, fewest = np.array([0, 40, 44, 90]), float(random.choice([0.0, 0.05, 0.1, 0.2])), 8
    expected = []
    for start, end in pairwise(starts.tolist()):
        here = [start]
        while here[-1] + 1 < end:
            near = [i for i in range(here[-1] + 1, 91) if seconds[min(i, 89)] - seconds[here[-1]] <= step + 1e-6]
            if end in near:  # the next group's first, or the clip's last: that one need not be looked at
                break
            needed = [i for i in near if not free[i]]
            here.append(max(needed or near or [here[-1] + 1]))
        expected += here if len(here) >= fewest else range(start, end)
    got = frames_to_look_at(seconds, free, starts, max_step_seconds=step, fewest=fewest)
    assert got.tolist() == expected


def test_a_group_with_few_frames_is_looked_at_whole():
    looked_at = frames_to_look_at(
        np.arange(120) / 30, ~np.ones(120, bool), np.array([0, 20, 120]), max_step_seconds=0.1, fewest=8
    )
    assert looked_at[:21].tolist() == list(range(21))
    assert looked_at[21:].tolist() == list(range(23, 119, 3))
