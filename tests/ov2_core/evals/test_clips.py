"""Generated clips: their truth is checked against their own pixels and against the decoder."""

import hashlib
import io
import os

import av
import numpy as np
import pytest
from PIL import Image

from ov2_core.evals.clips import (
    CODECS,
    canary_frame,
    read_canary,
    rope_clip,
    write_canary_clip,
    write_clip,
    write_rope_clip,
)

SUFFIX = {"libvpx-vp9": ".webm", "libsvtav1": ".mkv"}


def decode(path):
    """(seconds, RGB) of every frame."""
    with av.open(str(path)) as container:
        return [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(container.streams.best("video"))]


def blocks_of(rgb):
    for row in range(rgb.shape[0] // 28):
        for column in range(rgb.shape[1] // 28):
            yield row, column, rgb[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28]


@pytest.mark.parametrize("codec", CODECS)
def test_rope_clip_decodes_to_the_frames_of_its_truth(tmp_path, codec):
    path = tmp_path / f"clip{SUFFIX.get(codec, '.mp4')}"
    truth = write_rope_clip(path, seconds=1.5, fps=24, width_px=320, height_px=180, codec=codec)
    frames = decode(path)
    assert len(frames) == len(truth.pts_seconds) == 36
    assert [s for s, _ in frames] == pytest.approx(truth.pts_seconds, abs=0.0011)
    _, drawn = rope_clip(seconds=1.5, fps=24, width_px=320, height_px=180)
    worst = max(np.abs(a.astype(int) - b).mean() for (_, a), b in zip(frames, drawn, strict=True))
    assert worst < 12


@pytest.mark.parametrize("codec", CODECS)
def test_rope_clip_is_the_same_bytes_each_time(tmp_path, codec):
    digests = set()
    for name in ("a", "b"):
        path = tmp_path / f"{name}{SUFFIX.get(codec, '.mp4')}"
        write_rope_clip(path, seconds=0.5, width_px=192, height_px=128, codec=codec)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_rope_clip_seed_changes_tempo_and_texture():
    truths = [rope_clip(seed=s, seconds=8)[0] for s in range(3)]
    assert len({t.event_frames for t in truths}) == 3
    for truth in truths:
        steps = np.diff(truth.event_frames)
        assert len(set(steps.tolist())) > 1, "one tempo only"
        assert (steps >= 30 / 3.0 - 1).all()
        assert (steps <= 30 / 1.2 + 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_rope_is_lowest_exactly_at_events(seed):
    """Seen in the pixels: the rope's yellow reaches furthest down in the event frames."""
    truth, frames = rope_clip(seed=seed, seconds=4, width_px=320, height_px=240)
    lowest = []
    for rgb in frames:
        yellow = (rgb == (250, 250, 90)).all(axis=2)
        lowest.append(int(np.flatnonzero(yellow.any(axis=1)).max()))
    turns = [max(range(e - 3, min(e + 4, len(lowest))), key=lambda i: lowest[i]) for e in truth.event_frames]
    for event, turn in zip(truth.event_frames, turns, strict=True):
        assert lowest[turn] == lowest[event], f"rope is lower at {turn} than at event {event}"
    bottom = max(lowest)
    assert all(lowest[e] == bottom for e in truth.event_frames)


@pytest.mark.parametrize("camera", ["static", "panning", "shaking"])
def test_event_box_bounds_what_moves(camera):
    truth, frames = rope_clip(seed=1, seconds=3, width_px=320, height_px=180, camera=camera)
    frames = list(frames)
    assert len(truth.event_frames) > 2
    for event, (x0, y0, x1, y1) in zip(truth.event_frames, truth.event_boxes_xyxy_px, strict=True):
        assert 0 <= x0 < x1 <= 320
        assert 0 <= y0 < y1 <= 180
        if camera == "static":
            here, before, after = frames[event], frames[event - 1], frames[event + 1]
            ys, xs = np.nonzero((here != before).any(axis=2) | (here != after).any(axis=2))
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)


@pytest.mark.parametrize("camera", ["panning", "shaking"])
def test_camera_moves_the_background(camera):
    _, frames = rope_clip(seconds=2, camera=camera, figure=False, width_px=320, height_px=180)
    first, *_, last = frames
    assert np.abs(first.astype(int) - last).mean() > 5


def test_clip_without_figure_has_no_event_and_stands_still_under_a_static_camera():
    truth, frames = rope_clip(seconds=0.5, figure=False)
    assert truth.event_frames == truth.event_seconds == ()
    first, *rest = frames
    assert all(np.array_equal(first, f) for f in rest)


def test_event_seconds_count_from_the_first_frame(tmp_path):
    truth, _ = rope_clip(seconds=2, fps=60)
    assert truth.event_seconds == pytest.approx([f / 60 for f in truth.event_frames])


def test_rope_clip_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="at least 1 frame"):
        rope_clip(seconds=0)


@pytest.mark.parametrize("codec", CODECS)
def test_canary_survives_codec_and_jpeg(tmp_path, codec):
    path = tmp_path / f"clip{SUFFIX.get(codec, '.mp4')}"
    write_canary_clip(path, video_id=51234, num_frames=20, columns=8, rows=5, codec=codec)
    for index, (_, rgb) in enumerate(decode(path)):
        packed = io.BytesIO()
        Image.fromarray(rgb).save(packed, "JPEG", quality=75)
        for row, column, block in blocks_of(np.asarray(Image.open(packed))):
            canary = read_canary(block)
            assert (canary.video_id, canary.frame, canary.row, canary.column) == (51234, index, row, column)


def test_canary_stored_larger_survives_an_area_reduction(tmp_path):
    write_canary_clip(tmp_path / "clip.mp4", video_id=7, num_frames=6, columns=6, rows=4, scale=2)
    for index, (_, rgb) in enumerate(decode(tmp_path / "clip.mp4")):
        small = rgb.reshape(4 * 28, 2, 6 * 28, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
        assert {(c.video_id, c.frame) for c in (read_canary(b) for _, _, b in blocks_of(small))} == {(7, index)}


def test_canary_refuses_a_block_that_is_not_whole():
    rgb = canary_frame(video_id=3, frame=5, columns=3, rows=2)
    shifted = rgb[4:32, 0:28]
    with pytest.raises(ValueError, match="not a whole canary block"):
        read_canary(shifted)
    other = canary_frame(video_id=4, frame=900, columns=3, rows=2)
    mixed = np.concatenate([rgb[:28, :14], other[:28, 14:28]], axis=1)
    with pytest.raises(ValueError, match="not a whole canary block"):
        read_canary(mixed)


def test_canary_refuses_numbers_beyond_its_bits():
    with pytest.raises(ValueError, match="video_id"):
        canary_frame(video_id=1 << 16, frame=0, columns=1, rows=1)


def test_write_clip_refuses_no_frames(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write_clip(tmp_path / "clip.mp4", [], fps=30)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux only")
def test_write_clip_leaves_the_threads_scheduling_alone(tmp_path):
    """SVT-AV1 under root turns its caller into a real-time thread, which froze a test run once."""
    before = os.sched_getscheduler(0)
    write_clip(tmp_path / "a.mkv", [np.zeros((64, 64, 3), np.uint8)] * 4, fps=10, codec="libsvtav1")
    assert os.sched_getscheduler(0) == before
