"""The kernels of policy "legacy": against naive references, and against what codec-video-prep itself gave (tests/assets/golden)."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ov2_core.tokenizer.frames import round_size
from ov2_core.tokenizer.legacy import is_blank, readiness_groups, sample_frames, score_blocks, select_legacy

GOLDEN = Path(__file__).parents[2] / "assets" / "golden" / "codec_video_prep.npz"


@pytest.mark.parametrize(
    ("source", "tool"),  # what codec-video-prep 0.2.5 makes of a size
    [
        ((640, 272), (588, 252)),
        ((1280, 720), (504, 280)),
        ((350, 438), (336, 448)),
        ((351, 437), (364, 448)),
        ((380, 402), (392, 392)),
        ((420, 370), (392, 364)),
        ((48, 40), (84, 56)),
        ((1000, 60), (1008, 56)),
        ((30, 1000), (28, 1008)),
        ((70, 98), (56, 112)),
    ],
)
def test_sizes_are_the_tools(source, tool):
    assert round_size(*source, area_px=392 * 392, multiple_px=28) == tool


def naive_samples(num_frames, count, keyframes):
    """By search over all frames, one after the other."""
    chosen = []
    for i in range(count):
        frame = int(i * (num_frames - 1) / max(count - 1, 1) + 1e-9)
        near = [f for step in range(5) for f in (frame + step, frame - step) if 0 <= f < num_frames]
        chosen.append(next((f for f in near if f not in keyframes), frame))
    samples = sorted(set(chosen))
    seeds = list(samples)
    while len(samples) < count:
        free = [f for f in range(num_frames) if f not in samples]
        plain = [f for f in free if f not in keyframes]
        rank = [(min(abs(f - s) for s in seeds), abs(f - num_frames // 2), f) for f in plain]
        samples.append(min(rank)[2] if rank else free[0])
    return sorted(samples)


def test_samples_agree_with_a_naive_search():
    rng = np.random.default_rng(0)
    filled = 0
    for _ in range(300):
        num_frames = int(rng.integers(1, 60))
        count = int(rng.integers(1, num_frames + 1))
        keyframes = np.flatnonzero(rng.random(num_frames + 5) < rng.choice([0.05, 0.4, 0.95])).tolist()
        found = sample_frames(num_frames, count, [-3, *keyframes]).tolist()
        assert found == naive_samples(num_frames, count, set(keyframes)), (num_frames, count, keyframes)
        filled += any(f in keyframes for f in found)
    assert filled, "some clips have too few other frames"
    with pytest.raises(ValueError, match=r"count must be in 1\.\.4"):
        sample_frames(4, 5, [])


@pytest.mark.parametrize(("height", "width"), [(6, 9), (5, 4), (1, 1), (90, 121)])
def test_scores_agree_with_a_loop_over_pixels(height, width):
    rows, columns, patch, merge = 3, 4, 14, 2
    rng = np.random.default_rng(height)
    bits = rng.integers(-1, 900, (height, width)).astype(np.int32)
    logs = np.log1p(np.maximum(bits, 0).astype(float))
    cap = max(np.percentile(logs, 99), 1e-6)
    expected = np.zeros(rows * columns)
    side = patch * merge
    for y in range(rows * side):
        for x in range(columns * side):
            value = logs[y * height // (rows * side), x * width // (columns * side)]
            expected[y // side * columns + x // side] += min(value / cap, 1.0)
    found = score_blocks(bits, rows=rows, columns=columns, patch_px=patch, merge=merge)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_frame_without_bits_scores_nothing():
    assert not score_blocks(np.zeros((4, 4), np.int32), rows=2, columns=2, patch_px=14, merge=2).any()


def naive_is_blank(image):
    """With numpy over whole channels."""
    pixels = image.reshape(-1, 3).astype(float)
    luma = np.floor(pixels @ [4899, 9617, 1868] / 2**14 + 0.5)
    red, green, blue = pixels.mean(axis=0)
    black = luma.mean() <= 8 and luma.std() <= 6
    plain = max(luma.std(), *pixels.std(axis=0)) <= 4 and np.ptp(pixels, axis=0).max() <= 12
    broken = ((pixels[:, 1] >= 180) & (pixels[:, 0] <= 90) & (pixels[:, 2] <= 90)).mean() >= 0.35
    greenish = green > 120 and green - max(red, blue) > 80 and pixels[:, 1].std() < 50
    return bool(black or plain or broken or greenish)


def test_blank_frames_are_those_of_a_naive_rule():
    rng = np.random.default_rng(0)
    found = set()
    for colour in [(0, 0, 0), (7, 8, 9), (120, 120, 120), (20, 160, 30), (80, 200, 80), (200, 30, 40), (10, 10, 60)]:
        for noise in (0, 2, 5, 9, 30, 120):
            for share in (0.2, 0.34, 0.36, 1.0):
                image = np.full((20, 30, 3), colour) + rng.integers(-noise, noise + 1, (20, 30, 3))
                image[: round(20 * (1 - share))] = rng.integers(0, 256, (round(20 * (1 - share)), 30, 3))
                image = image.clip(0, 255).astype(np.uint8)
                assert is_blank(image) == naive_is_blank(image), (colour, noise, share)
                found.add(is_blank(image))
    assert found == {True, False}


def test_selection_takes_the_best_blocks_of_frames_that_are_not_blank():
    rng = np.random.default_rng(1)
    for _ in range(100):
        frames, blocks = int(rng.integers(4, 12)), int(rng.integers(1, 9))
        score = rng.permutation(frames * blocks).reshape(frames, blocks).astype(np.float32)
        blank = rng.random(frames) < rng.choice([0.0, 0.5, 0.9, 1.0])
        budget = 3 * blocks
        found = select_legacy(score, blank, budget=budget)
        good = [k for k in range(frames) if not blank[k]]
        assert found.anchor == (good or [0])[0]
        pairs = [(k, b) for k in good if k != found.anchor for b in range(blocks)]
        expected = sorted(sorted(pairs, key=lambda p: -score[p])[:budget])
        assert [tuple(p) for p in found.chosen_M2.tolist()] == expected
        left = [(k, b) for k in range(frames) if blank[k] and k != found.anchor for b in range(blocks)]
        missing = budget - len(expected)
        assert [tuple(p) for p in found.filled_F2.tolist()] == sorted(sorted(left, key=lambda p: -score[p])[:missing])
        assert len(found.chosen_M2) + len(found.filled_F2) == budget
    with pytest.raises(ValueError, match="6 blocks cannot be chosen"):
        select_legacy(np.zeros((3, 2), np.float32), np.zeros(3, bool), budget=6)


def naive_readiness(score, budget, canvases):
    """By sorting all blocks of every prospective group."""

    def judge(group):
        ranked = sorted(((s, t) for t, row in enumerate(group) if t for s in row), reverse=True)[:budget]
        edges = [int(1 + i * (len(group) - 1) / 3) for i in range(4)]
        thirds = {sum(t >= edge for edge in edges) for _, t in ranked}
        return sum(s for s, _ in ranked), len(thirds)

    chunks = [score[i : i + 32] for i in range(0, len(score), 32)]
    threshold = np.mean([judge(c)[0] for c in chunks if len(c) >= 4])
    edges = [0]
    while len(score) - edges[-1] >= 8:
        ends = range(edges[-1] + 8, min(len(score), edges[-1] + 64) + 1)
        judged = [(end, *judge(score[edges[-1] : end])) for end in ends]
        ready = [end for end, total, thirds in judged if total >= threshold and thirds >= min(3, canvases - 1)]
        settled = [
            end for (_, before, _), (end, total, _) in pairwise(judged) if end in ready and total < before * 1.05
        ]
        edges.append((settled[:1] or ready[-1:] or [ends[-1]])[0])
    return edges


def test_readiness_agrees_with_a_naive_search():
    rng = np.random.default_rng(2)
    lengths = set()
    for _ in range(60):
        samples, blocks, canvases = int(rng.integers(8, 150)), int(rng.integers(1, 5)), int(rng.integers(2, 5))
        activity = rng.choice([1, 20, 300], samples).astype(float) if rng.random() < 0.7 else np.arange(samples) + 1.0
        score = (rng.random((samples, blocks)) * activity[:, None]).astype(np.float32)
        found = readiness_groups(score, budget=(canvases - 1) * blocks, canvases=canvases)
        assert found == naive_readiness(score.astype(float).tolist(), (canvases - 1) * blocks, canvases)
        lengths.update(np.diff(found).tolist())
    assert len(lengths) > 10
    assert readiness_groups(np.ones((5, 2), np.float32), budget=6, canvases=4) == [0, 5]


@pytest.mark.parametrize("clip", ["h264", "hevc", "vp9"])
def test_places_are_those_that_the_tool_gave(clip):
    with np.load(GOLDEN) as file:
        golden = {name.partition(".")[2]: file[name] for name in file.files if name.startswith(f"{clip}.")}
    ids, bits = golden["frame_ids"], golden["bit_cost"]
    assert sample_frames(int(golden["num_frames"]), len(ids), golden["keyframes"].tolist()).tolist() == ids.tolist()
    rows, columns = (golden["size_hw"] // 28).tolist()
    score = [score_blocks(map_HW, rows=rows, columns=columns, patch_px=14, merge=2) for map_HW in bits]
    groups = readiness_groups(np.stack(score), budget=3 * rows * columns, canvases=4)
    assert groups == golden["readiness_groups"].tolist()
    score = np.reshape(score, (2, 32, -1))  # 2 groups of 4 canvases
    expected = golden["src_patch_position"].reshape(8, rows, 2, columns, 2, 3)[:, :, 0, :, 0].reshape(2, -1, 3)
    tied = False
    for group in range(2):
        here = ids[group * 32 : group * 32 + 32]
        found = select_legacy(score[group], golden["blank"][group * 32 : group * 32 + 32], budget=3 * rows * columns)
        whole = [(here[found.anchor], b) for b in range(rows * columns)]
        shown = [*whole, *((here[k], b) for k, b in found.chosen_M2)]
        places = [(t, b // columns * 2, b % columns * 2) for t, b in shown]
        padded = [(-1, -1, -1)] * len(found.filled_F2)
        assert expected[group].tolist() == [[int(x) for x in place] for place in [*places, *padded]]
        others = np.delete(score[group], found.anchor, axis=0).ravel()
        cut = np.sort(others)[-3 * rows * columns]
        tied |= len(others[others >= cut]) > 3 * rows * columns
    assert tied or clip != "vp9", "its coding tree units cover several blocks: the choice among equals counts"
