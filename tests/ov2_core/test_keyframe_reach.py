"""Uniform frames of long clips stand at keyframes near by; those of shorter clips at equal steps."""

from dataclasses import replace

import numpy as np
import pytest

from ov2_core.config import TokenizerConfig, recipe
from ov2_core.evals.clips import write_rope_clip
from ov2_core.media.probe import probe_video
from ov2_core.tokenize_video import tokenize_video

FPS = 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """10 s, a keyframe each 1.1 s."""
    path = tmp_path_factory.mktemp("reach") / "clip.mp4"
    write_rope_clip(path, seconds=10, fps=FPS, width_px=128, height_px=96, gop_frames=11)
    return str(path)


def times(clip, **changed):
    config = replace(recipe("uniform-8").tokenizer, **changed)
    return np.unique(tokenize_video(clip, config).positions_NP3[..., 0]).tolist()


def test_samples_of_long_clips_move_to_keyframes_near_by_and_those_of_short_clips_do_not(clip):
    keyframes = set(np.flatnonzero(probe_video(clip).keyframe_T).tolist())
    even = times(clip)
    assert np.ptp(np.diff(even)) <= 1, "10 s is no long clip: equal steps"
    moved = times(clip, keyframe_reach_min_seconds=10.0)
    assert times(clip, keyframe_reach_min_seconds=10.1) == even
    assert times(clip, keyframe_reach_min_seconds=0.0, keyframe_reach=0.0) == even
    assert len(set(moved) & keyframes) > len(set(even) & keyframes)
    step = (even[-1] - even[0]) / 7
    assert all(abs(a - b) <= 0.25 * step for a, b in zip(moved, even, strict=True))
    assert all(b in keyframes or b < a for a, b in zip(even, moved, strict=True) if a != b)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_a_length_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="keyframe_reach_min_seconds must be >= 0"):
        TokenizerConfig(keyframe_reach_min_seconds=bad)
