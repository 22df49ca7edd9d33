"""How many frames are decoded and looked at, as predicted from counts, against what the rules choose frame by frame."""

from typing import Any

import numpy as np
import pytest

from ov2_core.config import recipe, with_overrides
from ov2_core.prediction import cost_terms, predict
from ov2_core.tokenizer.frames import (
    FEWEST_LOOKED_AT_PER_IMAGE,
    frames_to_look_at,
    move_to_cheaper,
    sample_uniform,
)
from schemas.video import ProbeRecord

PATTERNS = {"P": "P", "bP": "bP", "bBbP": "bBbP", "bbP": "bbP", "bbbbbbbP": "bbbbbbbP"}
"""Small b: frames that no other needs."""


def probe_of(num_frames: int, *, fps: float = 30.0, **fields: Any) -> ProbeRecord:
    plain: dict[str, Any] = {
        "media": "video",
        "container": "mp4",
        "codec": "h264",
        "pixel_format": "yuv420p",
        "width_px": 1000,
        "height_px": 1000,
        "num_frames": num_frames,
        "duration_seconds": num_frames / fps,
        "fps": fps,
        "variable_rate": False,
        "rotation_degrees": 0,
        "size_bytes": 2_000_000,
        "video_bytes": 1_000_000,
    }
    return ProbeRecord(**(plain | fields))


@pytest.mark.parametrize("fps", [24.0, 30.0, 60.0])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["codec-16", "evidence-16-fast", "evidence-128", "codec-256-fast"])
def test_codec_frames_are_those_that_are_looked_at_and_those_that_they_need(
    name: str, pattern: str, fps: float
) -> None:
    total, config = 1200, recipe(name).tokenizer
    discardable = np.array([letter == "b" for letter in (pattern * total)[:total]])
    starts = np.linspace(0, total, config.budget // 4 + 1).astype(np.int64)
    looked_at = frames_to_look_at(
        np.arange(total) / fps,
        discardable,
        starts,
        max_step_seconds=config.max_step_seconds,
        fewest=FEWEST_LOOKED_AT_PER_IMAGE * 4,
        short_whole=config.short_groups_whole,
    )
    decoded = np.union1d(looked_at, np.flatnonzero(~discardable))
    terms = cost_terms(probe_of(total, fps=fps, num_keyframes=5, num_discardable=int(discardable.sum())), config)
    assert terms["frame"] == pytest.approx(len(looked_at), rel=0.15)
    assert terms["mpx h264"] == pytest.approx(len(decoded), rel=0.15)  # of one mpx each
    assert terms["mbyte"] == pytest.approx(len(decoded) / total, rel=0.15)


@pytest.mark.parametrize("keyframes", [1, 6, 40, 300])
@pytest.mark.parametrize("name", ["uniform-8", "uniform-32"])
@pytest.mark.parametrize("seconds", [40.0, 600.0])
def test_uniform_frames_cost_what_lies_between_them_and_their_keyframes(
    name: str, keyframes: int, seconds: float
) -> None:
    total, config = 1200, recipe(name).tokenizer
    at = np.arange(total) * seconds / total
    starts = np.arange(keyframes) * total // keyframes
    is_key = np.zeros(total, bool)
    is_key[starts] = True
    chosen = sample_uniform(at, config.budget)
    if seconds >= config.keyframe_reach_min_seconds:
        chosen = move_to_cheaper(chosen, at, is_key, reach=config.keyframe_reach)
    behind = np.searchsorted(starts, chosen, side="right") - 1
    decoded = sum(int(chosen[behind == stretch].max()) - int(starts[stretch]) + 1 for stretch in np.unique(behind))
    terms = cost_terms(probe_of(total, fps=total / seconds, num_keyframes=keyframes, num_discardable=0), config)
    assert terms["mpx h264"] == pytest.approx(decoded, rel=0.35, abs=2.0 * config.budget)
    assert "frame" not in terms


def test_every_frame_is_decoded_where_it_has_to_be_or_nothing_is_known() -> None:
    all_of_them = with_overrides(recipe("codec-8"), {"max_step_seconds": "0"}).tokenizer
    assert cost_terms(probe_of(300, num_discardable=200), all_of_them)["mpx h264"] == 300
    older = probe_of(300)
    assert cost_terms(older, recipe("codec-8").tokenizer)["mpx h264"] == 300
    assert predict(older, recipe("uniform-8").tokenizer).cpu_seconds > 0
    few = recipe("codec-8").tokenizer
    assert cost_terms(probe_of(12, num_discardable=8), few)["frame"] == 12, "groups this short are looked at whole"
