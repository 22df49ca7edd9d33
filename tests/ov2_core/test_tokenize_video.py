"""The whole path on clips whose every block says where it is from: pixels, places and times agree, in every mode."""

from dataclasses import replace

import av
import numpy as np
import pytest

from ov2_core.config import GroupConfig, TokenizerConfig, recipe
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import read_canary, write_canary_clip, write_rope_clip
from ov2_core.evals.odd_clips import ODDITIES, write_odd_clip
from ov2_core.images import encode_jpeg
from ov2_core.media.probe import probe_video
from ov2_core.media.reference import discardable_test
from ov2_core.tokenize_video import tokenize_image, tokenize_video

RECIPES = ("codec-8", "evidence-8", "uniform-8")


def blocks_of(video):
    """Yields (t, row, column, pixels) of every block of every image, checking that its m x m patches lie together."""
    patch, merge = video.patch_px, video.merge
    side = patch * merge
    for image, position in zip(video.images_NHW3, video.positions_NP3, strict=True):
        rows, columns = image.shape[0] // side, image.shape[1] // side
        grid = position.reshape(rows, merge, columns, merge, 3)
        for r in range(rows):
            for c in range(columns):
                square = grid[r, :, c]
                t, h, w = square[0, 0].tolist()
                inner = np.stack(np.meshgrid(np.arange(merge), np.arange(merge), indexing="ij"), axis=2)
                assert (square == np.array([t, h, w]) + np.pad(inner, ((0, 0), (0, 0), (1, 0)))).all()
                assert h % merge == 0
                assert w % merge == 0
                yield t, h // merge, w // merge, image[r * side : (r + 1) * side, c * side : (c + 1) * side]


def check_layout(video, budget):
    """What every reader relies on: no padding, nothing twice, groups cover the images, time goes on."""
    positions = video.positions_NP3
    assert positions.dtype == np.int32
    assert (positions >= 0).all()
    assert len(np.unique(positions.reshape(-1, 3), axis=0)) == positions.shape[0] * positions.shape[1]
    assert len(video.images_NHW3) <= budget
    assert [g.first_image for g in video.groups] == np.cumsum([0, *(g.num_images for g in video.groups[:-1])]).tolist()
    assert sum(g.num_images for g in video.groups) == len(video.images_NHW3)
    assert sum(g.num_frames for g in video.groups) == video.num_source_frames
    assert video.groups[0].t_start == 0
    assert sum(g.bit_cost for g in video.groups) == pytest.approx(1, abs=1e-6)
    for group, following in zip(video.groups, video.groups[1:], strict=False):
        assert group.t_end == following.t_start
    for group in video.groups:
        inside = positions[group.first_image : group.first_image + group.num_images]
        assert inside[..., 0].min() == group.t_start
        assert inside[..., 0].max() < group.t_end
        if video.mode == "codec":
            first = inside[0]
            assert (first[:, 0] == group.t_start).all(), "the I-canvas is the group's first frame in full"
            block = inside.reshape(len(inside), video.images_NHW3.shape[1] // 28, 2, -1, 2, 3)[:, :, 0, :, 0]
            order = [tuple(p) for p in block.reshape(-1, 3).tolist()]
            assert order == sorted(order), "blocks stand in order of (t, h, w)"


@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", sorted(n for n in ODDITIES))
def test_tokenize_binds_every_block_to_its_source(tmp_path, name, recipe_name):
    clip = write_odd_clip(name, tmp_path)
    config = recipe(recipe_name).tokenizer
    if clip.refused_as and clip.num_frames == 0:
        with pytest.raises(BadItemError) as caught:
            tokenize_video(str(clip.path), config)
        assert caught.value.reason in clip.refused_as
        return
    video = tokenize_video(str(clip.path), config)
    check_layout(video, budget=8)
    if clip.num_frames is not None:
        assert video.num_source_frames == clip.num_frames
    if clip.flag:
        assert clip.flag in video.flags or "corrupt_frames" in video.flags or "decode_errors" in video.flags
    if clip.video_id is None:
        return
    seen = {}
    for t, row, column, pixels in blocks_of(video):
        canary = read_canary(pixels)
        assert (canary.video_id, canary.row, canary.column) == (clip.video_id, row, column)
        assert seen.setdefault(t, canary.frame) == canary.frame
    if clip.pts_seconds:
        for t, frame in seen.items():
            assert t / video.fps == pytest.approx(clip.pts_seconds[frame] - clip.pts_seconds[0], abs=0.02)
    elif clip.num_frames is not None:
        assert all(t == frame for t, frame in seen.items())


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_tokenize_is_deterministic(tmp_path, recipe_name):
    write_rope_clip(tmp_path / "rope.mp4", seed=3, seconds=3.0)
    config = recipe(recipe_name).tokenizer
    one, two = (tokenize_video(str(tmp_path / "rope.mp4"), config) for _ in range(2))
    assert (one.images_NHW3 == two.images_NHW3).all()
    assert (one.positions_NP3 == two.positions_NP3).all()
    assert one.groups == two.groups


@pytest.mark.parametrize("clip", ["rope", "truncated_ts"])
@pytest.mark.parametrize("recipe_name", RECIPES)
def test_files_made_on_the_way_are_those_of_the_pixels(tmp_path, recipe_name, clip):
    if clip == "rope":
        path = tmp_path / "rope.mp4"
        write_rope_clip(path, seed=3, seconds=3.0)
    else:
        path = write_odd_clip(clip, tmp_path).path
    config = recipe(recipe_name).tokenizer
    pixels, files = tokenize_video(path, config), tokenize_video(path, config, as_jpeg=True)
    assert files.images_NHW3.shape == (0, *pixels.images_NHW3.shape[1:])
    assert list(files.jpegs_N) == [encode_jpeg(image, config) for image in pixels.images_NHW3]
    assert (files.positions_NP3 == pixels.positions_NP3).all()
    assert (files.groups, files.flags, files.num_tokens) == (pixels.groups, pixels.flags, pixels.num_tokens)
    assert pixels.jpegs_N is None


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_tokenize_reads_only_the_range(tmp_path, recipe_name):
    write_canary_clip(tmp_path / "clip.mp4", video_id=7, num_frames=90, fps=30)
    video = tokenize_video(
        str(tmp_path / "clip.mp4"), recipe(recipe_name).tokenizer, start_seconds=1.0, end_seconds=2.0
    )
    assert video.num_source_frames == 30
    assert video.first_shown_seconds == pytest.approx(1.0)
    for t, _, _, pixels in blocks_of(video):
        assert read_canary(pixels).frame == t + 30


def test_tokenize_from_a_binary_file_equals_from_a_path(tmp_path):
    path = tmp_path / "clip.mp4"
    write_canary_clip(path, video_id=7, num_frames=40)
    config = recipe("codec-8").tokenizer
    with path.open("rb") as file:
        from_file = tokenize_video(file, config)
    assert (from_file.images_NHW3 == tokenize_video(str(path), config).images_NHW3).all()
    assert (from_file.images_NHW3 == tokenize_video(path, config).images_NHW3).all()


@pytest.mark.parametrize("max_candidates", [4, 7, 96])
@pytest.mark.parametrize("policy", ["saliency", "evidence"])
def test_tokenize_long_groups_keep_few_candidates(tmp_path, policy, max_candidates):
    write_canary_clip(tmp_path / "clip.mp4", video_id=9, num_frames=100, columns=6, rows=4)
    config = TokenizerConfig(mode="codec", policy=policy, budget=4, max_candidates=max_candidates)
    video = tokenize_video(str(tmp_path / "clip.mp4"), config)
    check_layout(video, budget=4)
    assert len(np.unique(video.positions_NP3[..., 0])) <= max_candidates
    for t, row, column, pixels in blocks_of(video):
        canary = read_canary(pixels)
        assert (canary.frame, canary.row, canary.column) == (t, row, column)


def test_tokenize_longer_layout_of_seven_p_canvases(tmp_path):
    write_canary_clip(tmp_path / "clip.mp4", video_id=9, num_frames=60)
    groups = GroupConfig(canvases_per_group=8, min_frames=8)
    video = tokenize_video(str(tmp_path / "clip.mp4"), TokenizerConfig(mode="codec", budget=20, groups=groups))
    check_layout(video, budget=20)
    assert [g.num_images for g in video.groups] == [8, 8]


@pytest.mark.parametrize("policy", ["saliency", "evidence"])
def test_frames_that_no_other_needs_are_passed_over(tmp_path, policy):
    """On a clip with B frames: less is decoded, groups stay where they were, and every block still says where it is from."""
    path = str(tmp_path / "clip.mp4")
    write_canary_clip(path, video_id=7, num_frames=90)
    config = TokenizerConfig(policy=policy, budget=8)
    probe = probe_video(path)
    assert probe.discardable_T.sum() > 20
    quick, thorough = tokenize_video(path, config), tokenize_video(path, replace(config, max_step_seconds=0))
    check_layout(quick, 8)
    assert quick.groups == thorough.groups
    starts = {g.t_start for g in quick.groups}
    shown = set(quick.positions_NP3[..., 0].ravel().tolist())
    assert not shown & set(np.flatnonzero(probe.discardable_T).tolist()) - starts
    for t, row, column, pixels in blocks_of(quick):
        canary = read_canary(pixels)
        assert (canary.video_id, canary.frame, canary.row, canary.column) == (7, t, row, column)


@pytest.mark.parametrize("kind", ["codec", "evidence"])
def test_fast_recipes_look_at_less_and_hold_nearly_the_same_pixels(tmp_path, kind):
    path = str(tmp_path / "clip.mp4")
    write_rope_clip(path, seed=3, seconds=4.0, width_px=320, height_px=180)
    fast = tokenize_video(path, recipe(f"{kind}-8-fast").tokenizer)
    check_layout(fast, 8)
    again = tokenize_video(path, recipe(f"{kind}-8-fast").tokenizer)
    assert (again.images_NHW3 == fast.images_NHW3).all()
    filtered = tokenize_video(path, replace(recipe(f"{kind}-8-fast").tokenizer, loop_filter=True))
    assert filtered.groups == fast.groups
    difference = np.abs(filtered.images_NHW3[0].astype(int) - fast.images_NHW3[0]).mean()
    assert 0 < difference < 3, "a keyframe without its loop filter"
    steps = np.diff(np.unique(fast.positions_NP3[..., 0]))
    assert steps.min() >= 3
    assert np.median(steps) <= 8


def test_a_damaged_clip_is_looked_at_whole(tmp_path):
    """Where a frame that others need does not decode, those that were passed over are taken after all."""
    path = tmp_path / "clip.mp4"
    write_canary_clip(path, video_id=7, num_frames=90)
    with av.open(str(path)) as container:
        is_free = discardable_test("h264", container.streams.video[0].codec_context.extradata)
        packets = [p for p in container.demux(video=0) if p.size]
        victim = next(p for p in packets[40:] if not is_free(p))
        where, size = victim.pos, victim.size
    data = bytearray(path.read_bytes())
    data[where + 4 : where + size] = bytes(size - 4)
    path.write_bytes(bytes(data))
    video = tokenize_video(str(path), TokenizerConfig(budget=8))
    check_layout(video, 8)
    assert {"undecodable_frames", "decode_errors"} & set(video.flags)


@pytest.mark.parametrize("policy", ["saliency", "evidence"])
def test_groups_of_four_and_of_eight_canvases_in_one_clip(tmp_path, policy):
    """Three groups' worth of canvases: the first two groups become one; all canvases are filled, the table says how."""
    path = str(tmp_path / "clip.mp4")
    write_canary_clip(path, video_id=9, num_frames=96)
    config = TokenizerConfig(policy=policy, budget=12, groups=GroupConfig(max_canvases_per_group=8))
    video = tokenize_video(path, config)
    check_layout(video, 12)
    assert [g.num_images for g in video.groups] == [8, 4]
    assert len(video.images_NHW3) == 12
    for t, row, column, pixels in blocks_of(video):
        canary = read_canary(pixels)
        assert (canary.video_id, canary.frame, canary.row, canary.column) == (9, t, row, column)
    fixed = tokenize_video(path, replace(config, groups=GroupConfig()))
    assert {g.t_start for g in video.groups} < {g.t_start for g in fixed.groups}


def test_evidence_renews_what_changes_and_leaves_the_rest(tmp_path):
    """On a clip with one moving figure, both policies look at the figure far more often than at the wall."""
    truth = write_rope_clip(tmp_path / "rope.mp4", seed=5, seconds=4.0)
    boxes = np.array(truth.event_boxes_xyxy_px)
    x0, y0, x1, y1 = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
    for name in ("codec-8", "evidence-8"):
        video = tokenize_video(str(tmp_path / "rope.mp4"), recipe(name).tokenizer)
        height, width = video.images_NHW3.shape[1:3]
        sx, sy = width / truth.width_px, height / truth.height_px
        chosen = np.concatenate([video.positions_NP3[g.first_image + 1 : g.first_image + 4] for g in video.groups])
        x, y = chosen[..., 2] * 14 + 7, chosen[..., 1] * 14 + 7
        inside = (x >= x0 * sx - 28) & (x < x1 * sx + 28) & (y >= y0 * sy - 28) & (y < y1 * sy + 28)
        area = min(1.0, ((x1 - x0) * sx + 56) * ((y1 - y0) * sy + 56) / (width * height))
        assert inside.mean() > min(0.95, 1.2 * area), (name, inside.mean(), area)


def test_tokenize_refuses_too_large_sources_before_decoding(tmp_path):
    write_canary_clip(tmp_path / "clip.mp4", video_id=1, num_frames=8)
    with pytest.raises(BadItemError, match="max_source_px") as caught:
        tokenize_video(str(tmp_path / "clip.mp4"), TokenizerConfig(max_source_px=10_000))
    assert caught.value.reason == "too_large"


def test_tokenize_video_in_mode_still_points_to_tokenize_image(tmp_path):
    with pytest.raises(ValueError, match="tokenize_image"):
        tokenize_video("x.mp4", recipe("stills").tokenizer)


def test_tokenize_names_a_missing_file_and_an_empty_range(tmp_path):
    config = recipe("codec-8").tokenizer
    with pytest.raises(BadItemError, match=r"nowhere\.mp4") as caught:
        tokenize_video(str(tmp_path / "nowhere.mp4"), config)
    assert caught.value.reason == "source_missing"
    write_canary_clip(tmp_path / "clip.mp4", video_id=1, num_frames=8)
    with pytest.raises(BadItemError, match="lasts") as caught:
        tokenize_video(str(tmp_path / "clip.mp4"), config, start_seconds=50)
    assert caught.value.reason == "empty_range"


def test_playlists_are_not_opened(tmp_path):
    """A file that names another file must not make the demuxer read it, whatever its suffix says."""
    write_canary_clip(tmp_path / "secret.mp4", video_id=1, num_frames=8)
    target = tmp_path / "secret.mp4"
    for name, text in {
        "a.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{target}\n#EXT-X-ENDLIST\n",
        "b.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "c.m3u8": f"#EXTM3U\n#EXTINF:1,\n{target}\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadItemError) as caught:
            tokenize_video(str(tmp_path / name), recipe("uniform-8").tokenizer)
        assert caught.value.reason == "not_media"


def test_tokenize_image_keeps_native_size_on_the_grid(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (200, 333, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    still = tokenize_image(str(tmp_path / "a.png"), recipe("stills").tokenizer)
    assert still.images_NHW3.shape == (1, 196, 308, 3)
    assert still.fps is None
    assert (still.positions_NP3[..., 0] == 0).all()
    assert still.groups[0].num_images == 1
    assert still.num_tokens == 7 * 11
