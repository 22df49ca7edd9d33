"""A video opened once gives the probe and the frames of one that is opened twice."""

import dataclasses

import numpy as np
import pytest

from ov2_core.errors import BadItemError
from ov2_core.evals.clips import write_canary_clip
from ov2_core.evals.odd_clips import ODDITIES, write_odd_clip
from ov2_core.media import kept as kept_module
from ov2_core.media.decode import DecodeStats, decode_frames, motion_vectors
from ov2_core.media.kept import KeptPackets
from ov2_core.media.probe import probe_video, probed_and_kept


def frames_of(path, probe, wanted, kept=None):
    stats = DecodeStats()
    options = {"seek": False, "export_vectors": True, "loop_filter": False}
    found = []
    for index, frame in decode_frames(path, probe, stats=stats, wanted=wanted, kept=kept, **options):
        vectors = motion_vectors(frame)
        found.append((index, frame.to_ndarray(format="gray").tobytes(), None if vectors is None else vectors.tolist()))
    return found, stats


def same(a, b):
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(a)
        if field.name != "timeline"
    ) and np.array_equal(a.timeline.ticks_T, b.timeline.ticks_T)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", sorted(ODDITIES))
def test_probe_and_frames_are_those_of_a_file_opened_twice(tmp_path, name, step):
    clip = write_odd_clip(name, tmp_path)
    path = str(clip.path)
    kept = KeptPackets(export_vectors=True, loop_filter=False)
    if clip.refused_as and clip.num_frames == 0:
        with pytest.raises(BadItemError) as caught, probed_and_kept(path, kept):
            pass
        assert caught.value.reason in clip.refused_as
        return
    plain = probe_video(path)
    wanted = list(range(0, plain.num_frames, step))
    with probed_and_kept(path, kept) as probe:
        assert same(probe, plain)
        assert kept.usable or clip.flag == "truncated"
        found, stats = frames_of(path, probe, wanted, kept)
        assert not kept.usable
        assert frames_of(path, probe, wanted, kept) == (found, stats), "afterwards the file is opened anew"
    expected = frames_of(path, plain, wanted)
    assert (found, stats) == expected


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4"])
def test_every_codec(tmp_path, codec):
    path = str(tmp_path / "clip.mkv")
    write_canary_clip(path, video_id=3, num_frames=30, codec=codec)
    kept = KeptPackets(export_vectors=True, loop_filter=False)
    with probed_and_kept(path, kept) as probe:
        assert kept.usable
        assert frames_of(path, probe, list(range(30)), kept) == frames_of(path, probe, list(range(30)))


def test_too_many_bytes_are_not_kept(tmp_path, monkeypatch):
    path = str(tmp_path / "clip.mp4")
    write_canary_clip(path, video_id=1, num_frames=20)
    plain = probe_video(path)
    monkeypatch.setattr(kept_module, "MAX_KEPT_BYTES", int(plain.frame_bytes_T.sum()) - 1)
    kept = KeptPackets(export_vectors=False, loop_filter=True)
    with probed_and_kept(path, kept) as probe:
        assert not kept.usable
        with pytest.raises(ValueError, match="open the file anew"):
            kept.take()
        assert same(probe, plain)
        assert len(frames_of(path, probe, None, kept)[0]) == 20
