"""The two model-free measures, held against naive references."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import correlate

from ov2_core.evals.evidence import (
    BlockEvidence,
    HoldMeter,
    block_evidence,
    luma_of,
    moving_blocks,
    read_codec_video_prep,
    score_events,
    score_hold,
    ssim,
    with_source_pixels,
)

ROWS, COLUMNS, BLOCK = 2, 3, 28


def make_frames(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(t, rng.integers(0, 256, (ROWS * BLOCK, COLUMNS * BLOCK, 3), dtype=np.uint8)) for t in range(count)]


def positions_of(blocks):
    """[P, 3] of one image from its (t, row, column) blocks in raster order."""
    grid = np.zeros((ROWS, 2, COLUMNS, 2, 3), np.int32)
    for i, (t, row, column) in enumerate(blocks):
        for a in range(2):
            for b in range(2):
                padding = t < 0
                grid[i // COLUMNS, a, i % COLUMNS, b] = (-1, -1, -1) if padding else (t, row * 2 + a, column * 2 + b)
    return grid.reshape(-1, 3)


def pack(blocks, frames):
    """One image of the given source blocks."""
    image = np.zeros((ROWS * BLOCK, COLUMNS * BLOCK, 3), np.uint8)
    for i, (t, row, column) in enumerate(blocks):
        y, x = i // COLUMNS * BLOCK, i % COLUMNS * BLOCK
        if t >= 0:
            source = dict(frames)[t][row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            image[y : y + BLOCK, x : x + BLOCK] = source
    return image


def selection(images, frames):
    return block_evidence(
        np.stack([pack(blocks, frames) for blocks in images]),
        np.stack([positions_of(blocks) for blocks in images]),
        patch_px=14,
        merge=2,
    )


def random_selection(frames, num_images, seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        times = rng.integers(0, len(frames), ROWS * COLUMNS)
        places = rng.integers(0, ROWS * COLUMNS, ROWS * COLUMNS)
        images.append([(int(t), int(p) // COLUMNS, int(p) % COLUMNS) for t, p in zip(times, places, strict=True)])
    images[0] = [(int(t), p // COLUMNS, p % COLUMNS) for p, (t, _, _) in enumerate(images[0])]  # all places once
    return images


def naive_hold(images, frames, t):
    """The frame that the evidence tells at time t, by search."""
    held = np.zeros_like(frames[0][1])
    for row in range(ROWS):
        for column in range(COLUMNS):
            mine = [b for blocks in images for b in blocks if b[1:] == (row, column) and b[0] >= 0]
            past = [b[0] for b in mine if b[0] <= t]
            shown = max(past) if past else min(b[0] for b in mine)
            place = np.s_[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            held[place] = dict(frames)[shown][place]
    return held


def naive_ssim(a, b):
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(x):
        return correlate(x, window, mode="constant")[5:-5, 5:-5]

    m_a, m_b = mean(a), mean(b)
    v_a, v_b, v_ab = mean(a * a) - m_a**2, mean(b * b) - m_b**2, mean(a * b) - m_a * m_b
    c1, c2 = 2.55**2, 7.65**2
    return (((2 * m_a * m_b + c1) * (2 * v_ab + c2)) / ((m_a**2 + m_b**2 + c1) * (v_a + v_b + c2))).mean()


@pytest.mark.parametrize("seed", range(4))
def test_hold_equals_naive_rebuild(seed):
    frames = make_frames(9, seed)
    images = random_selection(frames, 3, seed)
    score = score_hold(selection(images, frames), frames)
    rebuilt = [naive_hold(images, frames, t) for t, _ in frames]
    errors = [((a.astype(float) - f) ** 2).mean() for a, (_, f) in zip(rebuilt, frames, strict=True)]
    similarity = [naive_ssim(luma_of(a), luma_of(f)) for a, (_, f) in zip(rebuilt, frames, strict=True)]
    assert score.psnr_db == pytest.approx(10 * np.log10(255**2 / np.mean(errors)), abs=1e-9)
    assert score.ssim == pytest.approx(np.mean(similarity), abs=1e-9)
    assert score.num_frames == 9


@pytest.mark.parametrize("noise", [0, 3, 60])
def test_ssim_equals_naive_reference(noise):
    rng = np.random.default_rng(1)
    a = rng.random((40, 57)).cumsum(axis=1) * 8 % 255
    b = np.clip(a + rng.normal(0, noise, a.shape), 0, 255)
    assert ssim(a, b) == pytest.approx(naive_ssim(a, b), abs=1e-9)


def test_ssim_of_an_image_with_itself_is_one_and_of_its_negative_is_lower():
    a = np.random.default_rng(2).random((30, 30)) * 255
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, 255 - a) < 0


def test_ssim_refuses_images_below_its_window():
    with pytest.raises(ValueError, match="11x11"):
        ssim(np.zeros((10, 40)), np.zeros((10, 40)))


def test_hold_of_every_frame_is_exact():
    frames = make_frames(4)
    images = [[(t, r, c) for r in range(ROWS) for c in range(COLUMNS)] for t, _ in frames]
    score = score_hold(selection(images, frames), frames)
    assert score.psnr_db == float("inf")
    assert score.ssim == pytest.approx(1)
    assert score.share_unseen == 0


def test_hold_of_a_black_frame_against_white_is_zero_db():
    white = np.full((ROWS * BLOCK, COLUMNS * BLOCK, 3), 255, np.uint8)
    evidence = selection([[(0, r, c) for r in range(ROWS) for c in range(COLUMNS)]], [(0, np.zeros_like(white))])
    assert score_hold(evidence, [(0, white)]).psnr_db == pytest.approx(0)


def test_hold_shows_a_place_without_past_evidence_its_first():
    frames = make_frames(6)
    images = [[(4, r, c) for r in range(ROWS) for c in range(COLUMNS)], [(5, 0, 0)] * (ROWS * COLUMNS)]
    evidence = selection(images, frames)
    early = score_hold(evidence, [(1, frames[4][1])])
    assert early.psnr_db == float("inf")
    assert early.share_unseen == 1


def test_meter_does_not_depend_on_which_frames_share_a_decoding():
    frames = make_frames(7)
    one, other = (selection(random_selection(frames, 2, s), frames) for s in (1, 2))
    meters = [HoldMeter(one), HoldMeter(other)]
    for t, frame in frames:
        for meter in meters:
            meter.add(t, frame, luma=luma_of(frame))
    assert [m.score() for m in meters] == [score_hold(one, frames), score_hold(other, frames)]


def test_meter_refuses_frames_out_of_order_and_of_another_size():
    frames = make_frames(3)
    evidence = selection(random_selection(frames, 1, 0), frames)
    meter = HoldMeter(evidence)
    meter.add(*frames[1])
    with pytest.raises(ValueError, match="ascending"):
        meter.add(*frames[0])
    with pytest.raises(ValueError, match="canvas size"):
        meter.add(2, frames[2][1][:28])


def test_source_pixels_replace_what_a_selection_delivered():
    frames = make_frames(5)
    images = random_selection(frames, 2, 3)
    true = selection(images, frames)
    spoiled = BlockEvidence(
        **{f: getattr(true, f) for f in BlockEvidence.__slots__ if f != "pixels_EBB3"},
        pixels_EBB3=np.zeros_like(true.pixels_EBB3),
    )
    np.testing.assert_array_equal(with_source_pixels(spoiled, frames).pixels_EBB3, true.pixels_EBB3)


def test_padding_is_paid_for_but_shows_nothing():
    frames = make_frames(2)
    whole = [(0, r, c) for r in range(ROWS) for c in range(COLUMNS)]
    padded = selection([whole, [(1, 0, 0)] + [(-1, -1, -1)] * 5], frames)
    assert padded.num_padding == 5
    assert padded.num_tokens == 12
    assert len(padded.t_E) == 7


@pytest.mark.parametrize("spoil", ["shift", "off_frame", "two_times"])
def test_block_evidence_refuses_positions_that_are_no_blocks(spoil):
    frames = make_frames(1)
    blocks = [(0, r, c) for r in range(ROWS) for c in range(COLUMNS)]
    positions = positions_of(blocks)[None]
    if spoil == "shift":
        positions[0, :, 2] += 1
    elif spoil == "off_frame":
        positions[0, :, 1] += 2
    else:
        positions[0, 0, 0] += 1
    with pytest.raises(ValueError, match="block"):
        block_evidence(pack(blocks, frames)[None], positions, patch_px=14, merge=2)


def test_moving_blocks_are_those_whose_centre_lies_in_the_box():
    evidence = selection(random_selection(make_frames(1), 1, 0), make_frames(1))
    # The source is twice the canvas: 168 x 112 px, blocks of 56 px, centres at 28, 84, 140.
    size = {"source_width_px": 168, "source_height_px": 112}
    np.testing.assert_array_equal(moving_blocks(evidence, (20, 20, 100, 60), **size), [[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(moving_blocks(evidence, (60, 60, 70, 70), **size), [[0, 0, 0], [0, 1, 0]])


def test_events_count_near_tokens_on_the_moving_region():
    """Moving region: the four places of columns 0 and 1. fps 10, so 0.1 s is one tick."""
    frames = make_frames(30)
    far = [(29, 1, 2)] * 6
    events = {"fps": 10.0, "event_seconds": [1.0], "event_boxes_xyxy_px": [(0, 0, 56, 56)]}
    size = {"source_width_px": 84, "source_height_px": 56}

    def score(*blocks):
        image = [*blocks, *far][:6]
        return score_events(selection([image], frames), **events, **size)

    nothing = score()
    assert (nothing.recall, nothing.strict_recall, nothing.num_events) == (0, 0, 1)
    assert score((10, 0, 2)).recall == 0, "a token beside the moving region"
    assert score((12, 0, 0)).recall == 0, "a token 0.2 s late"
    assert score((11, 0, 0)).recall == 1, "a token 0.1 s late"
    assert score((9, 0, 0), (10, 0, 1), (11, 1, 0)).strict_recall == 0, "one moving block in each of three frames"
    assert score((11, 0, 0), (11, 0, 0)).strict_recall == 0, "one moving block, sent twice"
    assert score((11, 0, 0), (11, 1, 1)).strict_recall == 1, "half of the moving blocks in one frame"


def test_events_of_a_clip_without_events_are_not_a_number():
    evidence = selection(random_selection(make_frames(1), 1, 0), make_frames(1))
    score = score_events(
        evidence, fps=10, event_seconds=[], event_boxes_xyxy_px=[], source_width_px=84, source_height_px=56
    )
    assert np.isnan(score.recall)
    assert score.num_events == 0


def test_codec_video_prep_folder_reads_as_evidence(tmp_path):
    frames = make_frames(6)
    images = random_selection(frames, 2, 5)
    images[1][5] = (-1, -1, -1)
    for i, blocks in enumerate(images):
        Image.fromarray(pack(blocks, frames)).save(tmp_path / f"canvas_{i:03d}.png")
    np.save(tmp_path / "src_patch_position.npy", np.concatenate([positions_of(b) for b in images]))
    names = [f"/elsewhere/canvas_{i:03d}.png" for i in range(2)]
    (tmp_path / "meta.json").write_text(json.dumps({"canvas_files": names, "patch": 14, "block_size": 2}))
    read = read_codec_video_prep(tmp_path)
    expected = selection(images, frames)
    for name in ("pixels_EBB3", "t_E", "row_E", "column_E"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    slow = read_codec_video_prep(tmp_path, ticks_T=np.arange(6, dtype=np.int32) * 3)
    np.testing.assert_array_equal(slow.t_E, expected.t_E * 3)
    assert slow.num_padding == 1
    (tmp_path / "canvas_001.png").unlink()
    with pytest.raises(ValueError, match="run it again"):
        read_codec_video_prep(tmp_path)
