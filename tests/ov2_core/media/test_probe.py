"""Probe: what demuxing tells agrees with what decoding shows."""

import av
import numpy as np
import pytest

from ov2_core.errors import BadItemError
from ov2_core.evals.clips import write_canary_clip
from ov2_core.evals.odd_clips import ODDITIES, write_odd_clip
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import probe_video, restrict


@pytest.mark.parametrize("name", sorted(ODDITIES))
def test_probe_promises_the_frames_that_decode(tmp_path, name):
    clip = write_odd_clip(name, tmp_path)
    if clip.refused_as and clip.num_frames == 0:
        with pytest.raises(BadItemError) as caught:
            probe_video(str(clip.path))
        assert caught.value.reason in clip.refused_as
        return
    probe = probe_video(str(clip.path))
    stats = DecodeStats()
    indices = [i for i, _ in decode_frames(str(clip.path), probe, stats=stats)]
    if clip.flag is None:
        assert indices == list(range(probe.num_frames))
        assert stats == DecodeStats()
    else:
        assert set(indices) <= set(range(probe.num_frames))
        assert len(indices) >= probe.num_frames - 2
    assert (probe.width_px, probe.height_px) == (clip.width_px, clip.height_px)
    assert probe.frame_bytes_T.min() > 0
    assert (np.diff(probe.seconds_T) > 0).all()
    assert probe.record().num_frames == probe.num_frames
    assert ("truncated" in probe.flags) == (clip.flag == "truncated"), probe.flags


def test_probe_anchor_distances_follow_the_picture_types(tmp_path):
    path = str(tmp_path / "clip.mp4")
    write_canary_clip(path, video_id=1, num_frames=40)
    probe = probe_video(path)
    kinds = [f.pict_type for _, f in decode_frames(path, probe, stats=DecodeStats())]
    is_b = np.array([k == av.video.frame.PictureType.B for k in kinds])
    assert is_b.any()
    assert ((probe.anchor_distance_T2[:, 1] > 0) == is_b).all()
    anchors = np.flatnonzero(~is_b)
    for i, (back, ahead) in enumerate(probe.anchor_distance_T2.tolist()):
        before = anchors[anchors < i]
        assert back == (i - before[-1] if len(before) else 1)
        assert ahead == (anchors[anchors > i][0] - i if is_b[i] else 0)


@pytest.mark.parametrize("wanted", [[0], [39], [5, 6, 30], [0, 13, 14, 39], list(range(0, 120, 17)), [119]])
def test_decode_by_seeking_equals_decoding_in_sequence(tmp_path, wanted):
    path = str(tmp_path / "clip.mp4")
    from ov2_core.evals.clips import canary_frame, write_clip

    frames = (canary_frame(video_id=2, frame=i, columns=6, rows=4) for i in range(120))
    write_clip(path, frames, fps=30, gop_frames=24)
    probe = probe_video(path)
    every = {i: f.to_ndarray(format="gray") for i, f in decode_frames(path, probe, stats=DecodeStats())}
    sparse = {i: f.to_ndarray(format="gray") for i, f in decode_frames(path, probe, stats=DecodeStats(), wanted=wanted)}
    assert list(sparse) == wanted
    assert all((sparse[i] == every[i]).all() for i in wanted)


def test_probe_of_a_range_is_a_slice_of_the_whole(tmp_path):
    path = str(tmp_path / "clip.mp4")
    write_canary_clip(path, video_id=1, num_frames=60, fps=25)
    whole, part = probe_video(path), probe_video(path, start_seconds=0.4, end_seconds=1.6)
    assert part.num_frames == 30
    assert (part.pts_T == whole.pts_T[10:40]).all()
    assert (part.frame_bytes_T == whole.frame_bytes_T[10:40]).all()
    assert part.timeline.ticks_T.tolist() == list(range(30))
    assert part.duration_seconds == pytest.approx(1.2)


def test_restrict_keeps_true_times(tmp_path):
    path = str(tmp_path / "clip.mp4")
    write_canary_clip(path, video_id=1, num_frames=30, fps=30)
    left = restrict(probe_video(path), np.array([2, 3, 4, 10, 11]))
    assert left.timeline.ticks_T.tolist() == [0, 1, 2, 8, 9]
    assert left.duration_seconds == pytest.approx(10 / 30)
