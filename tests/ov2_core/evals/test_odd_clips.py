"""Each oddity is what it says: its frames, its place in time, its damage."""

import av
import numpy as np
import pytest

from ov2_core.evals.clips import read_canary
from ov2_core.evals.odd_clips import ODDITIES, jittered_pts_seconds, write_odd_clip


def decode_what_comes(path):
    """Upright RGB frames, their seconds, and the stream's facts; stops at the first error."""
    frames, seconds = [], []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        if stream is None:
            return frames, seconds, None
        facts = {"declared": stream.frames, "cover": bool(stream.disposition & av.stream.Disposition.attached_pic)}
        try:
            for frame in container.decode(stream):
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4))
                seconds.append(frame.time)
                facts |= {"format": frame.format.name, "interlaced": frame.interlaced_frame}
        except av.error.FFmpegError:
            pass
    return frames, seconds, facts


@pytest.mark.parametrize("name", ODDITIES)
def test_odd_clip_holds_the_frames_it_promises(tmp_path, name):
    clip = write_odd_clip(name, tmp_path)
    if clip.refused_as and clip.num_frames == 0:
        try:
            frames, _, facts = decode_what_comes(clip.path)
        except av.error.FFmpegError:
            return
        assert frames == [] or facts["cover"]
        return
    frames, seconds, _ = decode_what_comes(clip.path)
    if clip.num_frames is None:
        assert 12 <= len(frames) < 36 * 3
    else:
        assert len(frames) == clip.num_frames
    assert {f.shape for f in frames} == {(clip.height_px, clip.width_px, 3)}
    if clip.pts_seconds:
        assert seconds == pytest.approx(clip.pts_seconds, abs=0.0011)
    if clip.video_id is not None:
        for index, frame in enumerate(frames):
            canary = read_canary(frame[56:84, 28:56])
            assert (canary.video_id, canary.frame, canary.row, canary.column) == (clip.video_id, index, 2, 1)


def facts_of(name, folder):
    return decode_what_comes(write_odd_clip(name, folder).path)[2]


def test_oddities_are_odd(tmp_path):
    assert facts_of("h264_10bit", tmp_path)["format"] == "yuv420p10le"
    assert facts_of("hevc_10bit", tmp_path)["format"] == "yuv420p10le"
    assert facts_of("full_range", tmp_path)["format"] == "yuvj420p"
    assert facts_of("interlaced", tmp_path)["interlaced"]
    for name in ("no_frame_count_mkv", "no_frame_count_ts", "no_pts"):
        assert facts_of(name, tmp_path)["declared"] == 0
    assert facts_of("truncated_mp4", tmp_path)["declared"] == 36 * 3


def test_clip_without_pts_has_none(tmp_path):
    _, seconds, _ = decode_what_comes(write_odd_clip("no_pts", tmp_path).path)
    assert set(seconds) == {None}


def test_two_video_streams_show_the_small_one_first(tmp_path):
    with av.open(str(write_odd_clip("two_video_streams", tmp_path).path)) as container:
        assert [s.width for s in container.streams.video] == [160, 392]
        assert container.streams.best("video").index == 1


def test_jittered_times_ascend_drop_frames_and_leave_the_grid():
    seconds = np.array(jittered_pts_seconds(60))
    steps = np.diff(seconds)
    assert seconds[0] == 0
    assert steps.min() > 0.01
    assert steps.max() > 1.5 / 30
    off_grid = np.abs(seconds * 30 - np.round(seconds * 30))
    assert (off_grid > 0.05).sum() > 20


def test_odd_clip_refuses_an_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="unknown oddity 'nothing'"):
        write_odd_clip("nothing", tmp_path)
