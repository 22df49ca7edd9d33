"""Frames that no other frame needs: leaving them out changes no pixel of the rest."""

from dataclasses import replace

import av
import numpy as np
import pytest

from ov2_core.evals.clips import canary_frame, write_clip
from ov2_core.media.decode import DecodeStats, _needed, decode_frames
from ov2_core.media.probe import probe_video
from ov2_core.media.reference import discardable_test


def clip(path, codec, **options):
    frames = (canary_frame(video_id=3, frame=i, columns=6, rows=4) for i in range(48))
    write_clip(path, frames, fps=24, codec=codec, **options)
    return str(path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("length-prefixed.mp4", "libx264"),
        ("start-codes.ts", "libx264"),
        ("hevc.mp4", "libx265"),
        ("hevc.ts", "libx265"),
        ("av1.mp4", "libsvtav1"),
        ("av1.mkv", "libsvtav1"),
    ],
)
def test_the_rest_decodes_alike_without_them(tmp_path, name, codec):
    path = clip(tmp_path / name, codec)
    probe = probe_video(path)
    kept = np.flatnonzero(~probe.discardable_T)
    assert 0 < len(kept) < probe.num_frames
    whole = {i: frame.to_ndarray() for i, frame in decode_frames(path, probe, stats=DecodeStats())}
    stats = DecodeStats()
    found = {
        i: frame.to_ndarray() for i, frame in decode_frames(path, probe, stats=stats, wanted=kept.tolist(), seek=False)
    }
    assert list(found) == kept.tolist()
    assert stats == DecodeStats()
    assert all((found[i] == whole[i]).all() for i in found)


def test_the_decoder_agrees_which_they_are(tmp_path):
    """FFmpeg's own way of passing over them gives as many frames."""
    path = clip(tmp_path / "clip.mp4", "libx264")
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONREF"
        decoded = sum(1 for _ in container.decode(stream))
    assert decoded == (~probe_video(path).discardable_T).sum()


def test_without_trusted_stamps_everything_is_decoded(tmp_path):
    """The probe of such a file tells frames by dts, packets by pts: a frame that others need could be left out."""
    path = clip(tmp_path / "clip.mp4", "libx264")
    probe = probe_video(path)
    wanted = np.flatnonzero(~probe.discardable_T).tolist()

    def fed(probe):
        with av.open(path) as container:
            return sum(packet.size > 0 for packet in _needed(container.demux(video=0), probe, wanted))

    assert fed(probe) == len(wanted) < 48
    assert fed(replace(probe, flags=("missing_pts",))) == 48


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9"])
def test_other_codecs_have_none_that_are_known(tmp_path, codec):
    assert not probe_video(clip(tmp_path / "clip.mkv", codec)).discardable_T.any()


def test_without_b_frames_there_are_none(tmp_path):
    assert not probe_video(clip(tmp_path / "clip.mp4", "libx264", options={"bf": "0"})).discardable_T.any()


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_any_bytes_have_an_answer(codec):
    rng = np.random.default_rng(0)
    for extradata in (None, b"", b"\x01" * 30, bytes(30)):
        test = discardable_test(codec, extradata)
        for size in (0, 1, 3, 4, 5, 64, 999):
            assert test(rng.bytes(size)) in (True, False)
            assert test(b"\x00\x00\x01" * size) in (True, False)
