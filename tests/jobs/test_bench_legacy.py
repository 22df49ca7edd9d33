"""The comparison with codec-video-prep counts right; and where the tool is, the recipe shows the same places."""

import importlib.util

import numpy as np
import pytest

import jobs.bench_legacy as bench
from jobs.bench_peer import find_peer
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import write_rope_clip

with_tool = pytest.mark.skipif(
    importlib.util.find_spec("codec_video_prep") is None, reason="codec-video-prep is not installed (docs/tokenizer.md)"
)


def test_places_are_compared_in_ticks_and_without_padding():
    ours = np.array([[[0, 0, 0], [3, 0, 1]], [[3, 2, 2], [9, 9, 9]]], np.int32)
    theirs = np.array([[0, 0, 0], [1, 0, 1], [1, 2, 3], [-1, -1, -1]], np.int32)
    ticks = np.array([0, 3, 5], np.int32)
    assert bench.same_places(ours, theirs, ticks) == (3, 2)
    assert bench.same_places(ours[:1], theirs, ticks) == (3, 0)


def test_lines_say_what_differs_and_what_was_not_compared():
    same = bench.Agreement(clip="a.mp4", codec="vp9", canvases=4, num_places=1200, num_same=1200, num_padded=8)
    assert same.line() == "a.mp4 (vp9), 4 canvases: 1,200 places, identical; 8 more are padding there, blocks here"
    other = bench.Agreement(clip="a.mp4", codec="vp9", canvases=4, num_places=1200, num_same=7)
    assert "DIFFERENT, 7 the same" in other.line()
    assert not other.identical
    none = bench.Agreement(clip="a.mp4", codec="av1", reason="no bit costs")
    assert none.line() == "a.mp4 (av1): not compared: no bit costs"
    assert not none.identical


def test_without_the_tool_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "codec_video_prep", None)
    with pytest.raises(ValueError, match="pip install --no-deps codec-video-prep"):
        bench.main([])


@pytest.mark.slow
@with_tool
@pytest.mark.parametrize(
    ("name", "codec", "camera"),
    [("a.mp4", "libx264", "static"), ("b.mkv", "libx265", "panning"), ("c.webm", "libvpx-vp9", "shaking")],
)
def test_the_recipe_shows_what_the_tool_shows(tmp_path, name, codec, camera):
    python, reason = find_peer(None)
    if python is None:
        pytest.skip(reason)
    path = tmp_path / name
    write_rope_clip(path, seed=3, seconds=4, codec=codec, camera=camera)
    for budget in (4, 16):
        found = bench.compare_clip(path, budget=budget, python=python, folder=tmp_path / "out")
        assert found.identical, found.line()
        assert found.num_places == budget * 36 * 20
    found = bench.compare_clip(path, budget=48, python=python, folder=tmp_path / "out", grouping="readiness")
    assert found.identical, found.line()
    assert 4 <= found.canvases <= 48


@pytest.mark.slow
@with_tool
def test_clips_that_cannot_be_compared_are_named(tmp_path):
    path = tmp_path / "clip.mp4"
    write_rope_clip(path, seconds=1, codec="mpeg4")
    found = bench.compare_clip(path, budget=4, python="unused", folder=tmp_path / "out")
    assert found.reason is not None
    assert "mpeg4" in found.reason
    path.write_bytes(b"")
    with pytest.raises(BadItemError):
        bench.compare_clip(path, budget=4, python="unused", folder=tmp_path / "out")
