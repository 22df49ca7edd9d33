"""Generated JumpScore: truth exact to a frame, in the drawing and in the decoded file; splits apart; deterministic."""

import dataclasses
import json
from fractions import Fraction

import av
import numpy as np
import pytest

from ov2_core.config import recipe, with_overrides
from ov2_core.data.manifest import read_manifest
from ov2_core.evals.answers import read_truth
from ov2_core.evals.evidence import evidence_of, score_events
from ov2_core.evals.jump_clips import (
    JumpScene,
    camera_path,
    draw_scene,
    event_box,
    rope_pixels,
    scene_frames,
)
from ov2_core.evals.jump_dataset import write_jump_clips
from ov2_core.evals.jumpscore import score_times
from ov2_core.evals.suites import SUITES
from ov2_core.tokenize_video import tokenize_video

SEEDS = range(60)


def scenes(split="train", **options):
    return [draw_scene(seed, split, **options) for seed in SEEDS]


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_phases_are_whole_at_events_and_nowhere_else():
    for scene in scenes():
        rope = scene.main.rope
        phases = np.array([rope.phase(frame) for frame in range(scene.num_frames)])
        np.testing.assert_allclose(phases[list(rope.event_frames)], np.arange(len(rope.event_frames)), atol=1e-9)
        others = np.delete(phases, list(rope.event_frames))
        assert (np.abs(others - np.round(others)) > 1e-3).all()


def test_rope_passes_under_the_feet_once_an_event():
    """A pass: the phase grows over a whole number. Misses and retreats make none."""
    num_missing_clips = 0
    for scene in scenes():
        rope = scene.main.rope
        phases = np.array([rope.phase(frame) for frame in range(scene.num_frames)]) + 1e-9
        passes = np.flatnonzero(np.diff(np.floor(phases))) + 1
        expected = [frame for frame in rope.event_frames if frame > 0]
        assert passes.tolist() == expected
        num_missing_clips += bool(rope.miss_frames)
        for miss in rope.miss_frames:
            assert miss not in rope.event_frames
    assert 5 < num_missing_clips < 60


def test_clips_are_of_many_kinds():
    found = scenes() + scenes("heldout")
    tags = {tag for scene in found for tag in scene.tags}
    assert {f"camera:{name}" for name in ("static", "panning", "shaking", "zooming")} <= tags
    assert {"distractor:jumper", "distractor:ball", "distractor:walker", "occluded:pole", "misses", "no_jump"} <= tags
    assert "occluded:passer" in tags
    rates = {float(scene.fps) for scene in found}
    assert min(rates) < 24.5
    assert max(rates) == 60
    periods = np.concatenate([np.diff(scene.event_seconds) for scene in found])
    assert np.quantile(periods, 0.1) < 0.36
    assert np.quantile(periods, 0.9) > 0.6


def test_splits_share_no_look():
    train, heldout = scenes(), scenes("heldout")
    for name in ("fps",):
        assert not {getattr(s, name) for s in train} & {getattr(s, name) for s in heldout}
    for name in ("cloth", "trousers", "rope_colour", "height_px"):
        assert not {getattr(s.main, name) for s in train} & {getattr(s.main, name) for s in heldout}
    assert not {s.main.rope.event_frames for s in train} & {s.main.rope.event_frames for s in heldout} - {()}


def _lone(seed: int, **options) -> JumpScene:
    """A scene in which the rope's colour is its own."""
    scene = draw_scene(seed, "heldout", plain=True, **options)
    return dataclasses.replace(scene, main=dataclasses.replace(scene.main, rope_colour=(255, 0, 255)), crf=12)


@pytest.mark.parametrize(("seed", "fps"), [(1, Fraction(24)), (2, Fraction(30000, 1001)), (3, Fraction(60))])
def test_event_frames_of_decoded_files_are_those_in_which_the_rope_is_lowest(tmp_path, seed, fps):
    from ov2_core.evals.clips import write_clip

    scene = _lone(seed, fps=fps, seconds=2.5, width_px=320, height_px=260)
    write_clip(tmp_path / "a.mp4", scene_frames(scene), fps=scene.fps, options={"crf": "12"})
    frames = decoded(tmp_path / "a.mp4")
    assert len(frames) == scene.num_frames
    lowest = []
    for frame in frames:
        rows = np.flatnonzero(rope_pixels(frame, (255, 0, 255), tolerance=90).sum(axis=1) >= 3)
        lowest.append(rows.max() if len(rows) else 0)
    events = scene.main.rope.event_frames
    assert len(events) >= 3
    for before, event, after in zip((0, *events[:-1]), events, (*events[1:], scene.num_frames), strict=True):
        start, end = (before + event) // 2, (event + after) // 2 + 1
        window = np.array(lowest[start:end])
        at_bottom = np.flatnonzero(window == window.max()) + start
        assert event in at_bottom
        assert len(at_bottom) <= 3  # neighbours may lie within a pixel at 60 frames a second


def test_rope_is_before_the_legs_until_the_event_and_behind_them_from_it_on():
    scene = _lone(5, fps=Fraction(30), seconds=3.0)
    frames, left_top = list(scene_frames(scene)), camera_path(scene)
    for event in scene.main.rope.event_frames[1:]:
        _, y0, _, y1 = event_box(scene, event)
        unit = scene.main.height_px / 8
        before, behind = [], []
        for index, counts in ((event - 2, before), (event + 2, behind)):
            assert left_top[index] == (0.0, 0.0, 1.0)
            middle = slice(round(scene.main.x - 0.7 * unit), round(scene.main.x + 0.7 * unit))
            shins = frames[index][round(y0 + 0.45 * (y1 - y0)) : y1, middle]
            counts.append(int(rope_pixels(shins, (255, 0, 255)).sum()))
        assert before[0] > behind[0]


def test_event_box_holds_what_changes_around_the_event():
    scene = draw_scene(2, "train", plain=True, seconds=2.0)
    frames = list(scene_frames(scene))
    for event in scene.main.rope.event_frames:
        x0, y0, x1, y1 = event_box(scene, event)
        for other in (event - 1, event + 1):
            if 0 <= other < scene.num_frames:
                ys, xs = np.nonzero((frames[event] != frames[other]).any(axis=2))
                assert x0 <= xs.min() <= xs.max() < x1
                assert y0 <= ys.min() <= ys.max() < y1


def test_written_clips_are_deterministic_and_their_files_agree(tmp_path):
    options = {"num_clips": 2, "split": "heldout", "seed": 3, "seconds": 1.5, "width_px": 112, "height_px": 84}
    first = write_jump_clips(tmp_path / "a", **options)
    second = write_jump_clips(tmp_path / "b", **options)
    for here, there in zip(first, second, strict=True):
        assert here.read_bytes() == there.read_bytes()
    rows = list(read_manifest(str(first[0])))
    assert all(row.error is None for row in rows)
    truth = read_truth(first[1], SUITES["jumpscore"].parse_truth)
    for item, row in zip(truth, rows, strict=True):
        assert item.id == row.row.id
        assert row.row.messages[1].content == item.row["answer"]
        assert (tmp_path / "a" / row.row.video).read_bytes() == (tmp_path / "b" / row.row.video).read_bytes()
        frames = decoded(tmp_path / "a" / row.row.video)
        assert (len(frames), frames[0].shape) == (item.row["num_frames"], (84, 112, 3))
        exact = [frame / Fraction(item.row["fps"]) for frame in item.row["event_frames"]]
        assert score_times([float(time) for time in exact], item.answer)["AP@0.1"] == 1.0
        assert max((abs(a - b) for a, b in zip(exact, item.answer, strict=True)), default=0) <= 0.005
    assert json.loads(first[1].read_text().splitlines()[0])["split"] == "heldout"


def test_codec_tokens_show_the_events_of_a_clip(tmp_path):
    """With budget to spare nearly every event has tokens on the jumper within 0.1 s; sixteen frames over 8 s cannot."""
    _, truth_path = write_jump_clips(
        tmp_path, num_clips=1, split="train", seed=1, seconds=8.0, width_px=320, height_px=180
    )
    row = json.loads(truth_path.read_text())
    recall = {}
    for name in ("evidence-32", "uniform-16"):
        config = with_overrides(recipe(name), {"area_px": "37632"}).tokenizer
        video = tokenize_video(str(tmp_path / row["video"]), config)
        score = score_events(
            evidence_of(video), fps=video.fps, event_seconds=row["event_seconds"],
            event_boxes_xyxy_px=row["event_boxes_xyxy_px"], source_width_px=320, source_height_px=180,
        )  # fmt: skip
        recall[name] = score.recall
    assert recall["evidence-32"] > 0.9
    assert recall["uniform-16"] < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split"),
        ({"split": "train", "seconds": 0.01}, "2 frames"),
        ({"split": "train", "width_px": 40}, "48x48"),
        ({"split": "train", "turns_per_second": (3.0, 1.0)}, "ascend"),
        ({"split": "train", "fps": Fraction(8)}, "fps / 4"),
    ],
)
def test_scenes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(0, **options)
