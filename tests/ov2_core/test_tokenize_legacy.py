"""Policy "legacy" from file to canvases, with a reader of bit costs that is made up: binding, filling, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ov2_core.media.bit_cost as bit_cost
from ov2_core.config import StreamConfig, recipe, with_overrides
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import read_canary, write_canary_clip, write_clip
from ov2_core.evals.odd_clips import write_odd_clip
from ov2_core.media.probe import probe_video
from ov2_core.prediction import predict
from ov2_core.storage.files import Store
from ov2_core.tokenize_stream import tokenize_stream
from ov2_core.tokenize_video import tokenize_video
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos


@pytest.fixture
def reader(monkeypatch):
    """Costs by frame number; no map for every seventh frame."""

    def read(path, numbers, **options):
        assert Path(path).stat().st_size
        assert options == {"thread_count": 1, "export_bitcost": 1, "thread_type": "slice"}
        maps = {n: np.random.default_rng(n).integers(0, 500, (9, 11), np.int32) for n in numbers}
        return [
            {
                "frame_idx": n,
                "width": found.size[0],
                "height": found.size[1],
                "bitcost": None if n % 7 == 0 else {"mb_bit_cost": maps[n], "ctu_bit_cost": maps[n]},
            }
            for n in numbers
        ]

    found = SimpleNamespace(read_video_fast_selected=read, size=None)
    monkeypatch.setattr(bit_cost, "bit_cost_reader", lambda: found)
    monkeypatch.setattr("ov2_core.tokenize_video.bit_cost_reader", lambda: found)
    return found


def coded_size(path):
    probe = probe_video(str(path))
    return probe.coded_width_px, probe.coded_height_px


@pytest.mark.parametrize("rotation", [0, 90])
def test_every_block_is_where_its_position_says(tmp_path, reader, rotation):
    path = tmp_path / "canary.mp4"
    write_canary_clip(path, video_id=5, num_frames=80, columns=6, rows=4, rotation_degrees=rotation)
    reader.size = coded_size(path)
    video = tokenize_video(str(path), recipe("authors-legacy-8").tokenizer)
    assert (len(video.images_NHW3), video.policy, video.flags) == (8, "legacy", ())
    assert len(np.unique(video.positions_NP3.reshape(-1, 3), axis=0)) == video.positions_NP3.size // 3
    _, height, width, _ = video.images_NHW3.shape
    for image, positions in zip(video.images_NHW3, video.positions_NP3, strict=True):
        corners = positions.reshape(height // 28, 2, width // 28, 2, 3)[:, 0, :, 0]
        for r, c in np.ndindex(*corners.shape[:2]):
            t, h, w = corners[r, c].tolist()
            canary = read_canary(image[r * 28 : r * 28 + 28, c * 28 : c * 28 + 28])
            assert (canary.video_id, canary.frame) == (5, t)
            assert (canary.row, canary.column) == (h // 2, w // 2)
    assert [(g.first_image, g.num_images, g.t_end) for g in video.groups] == [(0, 4, 40), (4, 4, 80)]
    assert sum(g.num_frames for g in video.groups) == 80
    predicted = predict(probe_video(str(path)).record(), recipe("authors-legacy-8").tokenizer)
    assert predicted.tokens == video.num_tokens


def test_groups_by_readiness_stay_within_the_budget(tmp_path, reader):
    path = tmp_path / "canary.mp4"
    write_canary_clip(path, video_id=7, num_frames=150, columns=4, rows=4)
    reader.size = coded_size(path)
    config = with_overrides(recipe("authors-legacy-64"), {"legacy_grouping": "readiness"}).tokenizer
    video = tokenize_video(str(path), config)
    assert len({g.num_frames for g in video.groups}) > 1
    assert len(video.images_NHW3) == 4 * len(video.groups) <= 64
    assert sum(g.num_frames for g in video.groups) == 150
    for group in video.groups:
        times = video.positions_NP3[group.first_image : group.first_image + 4, :, 0]
        assert group.t_start <= times.min() <= times.max() < group.t_end
    for image, positions in zip(video.images_NHW3, video.positions_NP3, strict=True):
        assert read_canary(image[:28, :28]).frame == positions[0, 0]


def test_padding_is_filled_with_blank_frames_and_counted(tmp_path, reader):
    path = tmp_path / "dark.mp4"
    rng = np.random.default_rng(0)
    bright = rng.integers(0, 255, (112, 112, 3)).astype(np.uint8)
    write_clip(path, (bright if i in (9, 20) else np.zeros_like(bright) for i in range(32)), fps=25)
    reader.size = (112, 112)
    video = tokenize_video(str(path), recipe("authors-legacy-4").tokenizer)
    times = video.positions_NP3[..., 0]
    assert video.flags == ("filled_blocks:32",)
    assert (times[0] == 9).all(), "the first frame that is not blank is shown whole"
    assert (times[1] == 20).all()
    assert not np.isin(times[2:], (9, 20)).any(), "what fills comes last"
    assert len(np.unique(video.positions_NP3.reshape(-1, 3), axis=0)) == 4 * 64


def test_a_file_object_and_a_range_are_read_as_the_file(tmp_path, reader):
    path = tmp_path / "clip.mp4"
    write_canary_clip(path, video_id=1, num_frames=60, columns=4, rows=4)
    reader.size = coded_size(path)
    config = recipe("authors-legacy-4").tokenizer
    whole = tokenize_video(str(path), config)
    with open(path, "rb") as file:
        same = tokenize_video(file, config)
    np.testing.assert_array_equal(whole.positions_NP3, same.positions_NP3)
    np.testing.assert_array_equal(whole.images_NHW3, same.images_NHW3)
    part = tokenize_video(str(path), config, start_seconds=1.0, end_seconds=1.8)
    first = probe_video(str(path), start_seconds=1.0, end_seconds=1.8).num_skipped
    for image, positions in zip(part.images_NHW3, part.positions_NP3, strict=True):
        assert read_canary(image[:28, :28]).frame == positions[0, 0] + first


def test_a_damaged_clip_is_made_of_the_frames_that_decode(tmp_path, reader):
    clip = write_odd_clip("truncated_mp4", tmp_path)
    reader.size = coded_size(clip.path)
    video = tokenize_video(str(clip.path), recipe("authors-legacy-8").tokenizer)
    assert {"truncated", "undecodable_frames"} <= set(video.flags)
    assert len(video.images_NHW3) == 8


def test_what_has_no_bit_costs_is_refused(tmp_path, reader):
    path = tmp_path / "clip.mp4"
    config = recipe("authors-legacy-4").tokenizer
    write_canary_clip(path, video_id=1, num_frames=8, columns=4, rows=4, codec="mpeg4")
    with pytest.raises(BadItemError, match="h264, hevc, vp9, this video is mpeg4; use a recipe codec-N") as caught:
        tokenize_video(str(path), config)
    assert caught.value.reason == "unsupported"
    write_canary_clip(path, video_id=1, num_frames=8, columns=4, rows=4)
    reader.size = (64, 64)
    with pytest.raises(BadItemError, match="another of its video streams"):
        tokenize_video(str(path), config)
    with pytest.raises(ValueError, match="a stream has no end"):
        tokenize_stream(str(path), config, StreamConfig())


def test_without_the_reader_nothing_is_opened_and_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "codec_video_prep", None)
    with pytest.raises(ValueError, match=r"pip install --no-deps codec-video-prep==0\.2\.5") as caught:
        tokenize_video(str(tmp_path / "absent.mp4"), recipe("authors-legacy-4").tokenizer)
    assert not isinstance(caught.value, BadItemError)
    run = Store(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="authors-legacy-N"):
        tokenize_videos(str(tmp_path / "absent.jsonl"), run, recipe("authors-legacy-4"), RunOptions(workers=0))
    assert not (tmp_path / "run" / "plan").exists()
