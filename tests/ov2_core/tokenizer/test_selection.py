"""Scores, saliency, events, open groups, packing and uniform sampling: invariants and naive references."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.config import EvidenceConfig, ScoreConfig, TokenizerConfig
from ov2_core.signals.cells import to_block_cells
from ov2_core.signals.frame import BlockSignals
from ov2_core.tokenizer.blocks import (
    equal_steps,
    force_events,
    region_activity,
    select_evidence,
    select_saliency,
    smooth,
)
from ov2_core.tokenizer.canvas import cut_blocks, frame_positions, pack_blocks
from ov2_core.tokenizer.frames import fit_size, move_to_cheaper, num_uniform_frames, sample_uniform
from ov2_core.tokenizer.group import OpenGroup
from ov2_core.tokenizer.hold import hold_costs
from ov2_core.tokenizer.score import score_blocks
from ov2_core.tokenizer.structure import held_structure


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.integers(1, 9), st.integers(0, 2**32 - 1), st.data())
def test_saliency_takes_the_best_blocks(candidates, blocks, seed, data):
    score = np.random.default_rng(seed).integers(0, 5, (candidates, blocks)).astype(np.float32)
    budget = data.draw(st.integers(1, (candidates - 1) * blocks))
    chosen = [tuple(p) for p in select_saliency(score, budget=budget).tolist()]
    naive = sorted(((k, b) for k in range(1, candidates) for b in range(blocks)), key=lambda p: (-score[p], p))[:budget]
    assert chosen == sorted(naive)


def test_saliency_refuses_more_than_there_is():
    with pytest.raises(ValueError, match="exceeds the 3"):
        select_saliency(np.zeros((2, 3), np.float32), budget=4)


def test_score_is_the_weighted_sum_of_normalised_maps():
    rng = np.random.default_rng(1)
    motion, residual, intra = rng.random((3, 4, 20)).astype(np.float32) * [[[9]], [[50]], [[1]]]
    score = score_blocks(motion, residual, intra, ScoreConfig())
    for t in range(4):
        mv = np.minimum(motion[t] / max(np.percentile(motion[t], 95), 0.25), 2)
        res = np.minimum(residual[t] / max(np.percentile(residual[t], 95), 1.0), 2)
        assert score[t] == pytest.approx(mv / 4 + res + intra[t] / 2, rel=1e-5)


def test_score_per_clip_ranks_a_busy_frame_over_a_quiet_one():
    residual = np.stack([np.linspace(1.1, 2, 10), np.linspace(20, 40, 10)]).astype(np.float32)
    zero = np.zeros_like(residual)
    per_frame = score_blocks(zero, residual, zero, ScoreConfig(normalisation="frame"))
    per_clip = score_blocks(zero, residual, zero, ScoreConfig(normalisation="clip"))
    assert per_frame[0].max() == pytest.approx(per_frame[1].max(), rel=0.1)
    assert per_clip[0].max() < 0.2 * per_clip[1].max()


def naive_peaks(strength, seconds, apart):
    """Strongest first, each at least so far from those before it."""
    peaks = []
    for k in sorted(range(1, len(strength)), key=lambda k: (-strength[k], k)):
        if all(abs(seconds[k] - seconds[p]) >= apart - 1e-6 for p in peaks):
            peaks.append(k)
    return peaks


def test_events_are_forced_strongest_first_until_the_share_is_spent():
    seconds = np.arange(40) / 30
    activity = np.random.default_rng(2).random((40, 12))
    config = EvidenceConfig(event_region_blocks=4, event_contrast=0, event_strength=0, event_period_seconds=0.2)
    strength = np.sort(activity, axis=1)[:, -4:].mean(axis=1)
    single, regions = naive_peaks(strength, seconds, 0.1), naive_peaks(strength, seconds, 0.2)
    expected = np.zeros((40, 12), bool)
    for count, peaks in ((1, single), (4, regions)):
        for k in peaks:
            expected[k, np.argsort(-activity[k])[:count]] = True
    forced = force_events(activity, seconds, most=480, config=config)
    assert (forced == expected).all()
    few = force_events(activity, seconds, most=len(single) + 5, config=config)
    assert few.sum() == len(single) + 5
    assert few[regions[0]].sum() == 4
    assert few[regions[1]].sum() == 3
    assert few[single].any(axis=1).all(), "each event has a block near it before any has its region"
    off = replace(config, event_period_seconds=0)
    assert not force_events(activity, seconds, most=480, config=off).any()


def test_weak_events_have_a_block_and_no_region():
    seconds = np.arange(30) / 10
    activity = np.zeros((30, 20))
    activity[3::3, :5] = 10
    activity[15, :5] = 4
    config = EvidenceConfig(event_region_blocks=5, event_strength=0.7)
    forced = force_events(activity, seconds, most=999, config=config)
    assert set(forced[3::3].sum(axis=1)) == {1, 5}
    assert forced[15].sum() == 1


def test_an_event_stands_out_of_its_frame():
    seconds = np.arange(12) / 30
    activity = np.ones((12, 20))
    activity[7, :5] = 10
    forced = force_events(activity, seconds, most=60, config=EvidenceConfig(event_region_blocks=5))
    assert np.argwhere(forced).tolist() == [[7, b] for b in range(5)]


def test_what_swings_is_strongest_between_its_turning_points():
    seconds = np.arange(31) / 30
    activity = np.abs(np.sin(np.arange(31) / 30 * 2 * np.pi))[:, None]  # turns at 0, 15, 30; two peaks: 7.5, 22.5
    activity = np.where(np.isin(np.arange(31), (4, 11, 19, 26))[:, None], 1.2, activity)
    smoothed = smooth(activity, seconds, sigma_seconds=0.12)
    assert np.argmax(smoothed[:16]) in (7, 8)
    naive = np.exp(-0.5 * ((seconds - seconds[9]) / 0.12) ** 2)
    assert smoothed[9, 0] == pytest.approx((naive * activity[:, 0]).sum() / naive.sum(), abs=1e-3)
    assert smooth(activity, seconds, sigma_seconds=0) is activity


def test_what_is_smoothed_does_not_depend_on_the_order_of_sums():
    rng = np.random.default_rng(3)
    seconds, activity, order = np.sort(rng.random(60)) * 8, rng.random((60, 30)) * 90, rng.permutation(60)
    smoothed = smooth(activity, seconds, sigma_seconds=0.12)
    np.testing.assert_array_equal(smooth(activity[order], seconds[order], sigma_seconds=0.12), smoothed[order])


def evidence(feature, activity, *, columns, budget, config):
    """select_evidence of frames that are all candidates, 30 a second."""
    ones = np.ones(len(feature))
    costs = hold_costs(feature, feature, np.square(feature).sum(axis=2), ones)
    return select_evidence(
        costs, feature, activity, np.arange(len(feature)) / 30, columns=columns, budget=budget, config=config
    )


def panned_texture(frames, step):
    """[T, 36, 49] cells of a fine texture that runs by."""
    world = np.random.default_rng(11).uniform(0, 255, (42, 42 + step * frames)).astype(np.float32)
    return np.stack([to_block_cells(np.ascontiguousarray(world[:, step * t : step * t + 42])) for t in range(frames)])


def test_tiles_win_where_all_moves_and_blocks_where_little_does():
    """A texture that runs by is torn by blocks of many moments; one block that flickers on a still frame is not."""
    panned = panned_texture(32, 3)
    still = np.repeat(panned[:1], 32, axis=0)
    still[:, 14] = np.random.default_rng(12).uniform(0, 255, (32, 49))
    quiet = np.ones((32, 36), np.float32)
    for feature, tiles in ((panned, True), (still, False)):
        chosen = evidence(feature, quiet, columns=6, budget=108, config=EvidenceConfig())
        assert len(chosen) == 108
        shown = np.zeros((32, 6, 6), bool)
        shown[chosen[:, 0], chosen[:, 1] // 6, chosen[:, 1] % 6] = True
        alike = (shown[:, :5, :5] == shown[:, :1, :1]).all(axis=(1, 2)).mean()
        assert (alike > 0.8) == tiles


def test_events_leave_more_to_a_picture_that_would_be_torn(monkeypatch):
    monkeypatch.setattr("ov2_core.tokenizer.blocks.SEAM_MARGIN", 99)  # no tiles are good enough
    panned, activity = panned_texture(32, 3), np.ones((32, 36), np.float32)
    activity[2::4, 14:16] = activity[2::4, 20:22] = 20
    regions = {}
    for share in (0.1, 0.6):
        config = EvidenceConfig(
            event_region_blocks=9, event_contrast=1.5, event_smoothing_seconds=0, max_torn_event_share=share
        )
        chosen = evidence(panned, activity, columns=6, budget=108, config=config)
        assert len(chosen) == 108
        regions[share] = sum(
            (np.bincount(chosen[chosen[:, 0] == k, 1], minlength=36)[[14, 15, 20, 21]] > 0).all()
            for k in range(2, 32, 4)
        )
    assert regions[0.1] < regions[0.6]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), st.data())
def test_equal_steps_are_distinct_and_hold_the_middle_of_time(frames, data):
    count = data.draw(st.integers(1, len(frames) - 1))
    (shown,) = np.nonzero(equal_steps(np.array(frames, float), 2, count=count)[0])
    assert len(shown) == count
    assert shown[0] > 0
    if set(frames) == {frames[0]}:
        assert (np.abs(shown - np.arange(1, count + 1) * len(frames) / (count + 1)) <= 1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 999))
def test_structure_is_the_squared_ssim_of_sampled_windows(candidates, rows, columns, seed):
    rng = np.random.default_rng(seed)
    feature = rng.integers(0, 255, (candidates, rows * columns, 49)).astype(np.float32)
    frames = rng.integers(1, 5, candidates).astype(float)
    chosen = rng.random((rows * columns, candidates)) < 0.4
    held, naive = feature[0].copy(), 0.0
    for k in range(candidates):
        held[chosen[:, k]] = feature[k][chosen[:, k]]
        a, b = (
            f.reshape(rows, columns, 7, 7).transpose(0, 2, 1, 3).reshape(rows * 7, columns * 7).astype(float)
            for f in (held, feature[k])
        )
        values = []
        for y in range(0, rows * 7 - 2, 3):
            for x in range(0, columns * 7 - 2, 2):
                p, q = a[y : y + 3, x : x + 3], b[y : y + 3, x : x + 3]
                covariance = ((p - p.mean()) * (q - q.mean())).mean()
                top = (2 * p.mean() * q.mean() + 6.5025) * (2 * covariance + 58.5225)
                values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + 6.5025) * (p.var() + q.var() + 58.5225)))
        naive += frames[k] * (np.maximum(values, 0) ** 2).mean()
    assert held_structure(feature, frames, chosen, columns=columns) == pytest.approx(naive / frames.sum(), rel=1e-3)


def test_region_activity_is_a_capped_mean_of_neighbours():
    activity = np.random.default_rng(5).gamma(1, 3, (2, 24)).astype(np.float32)
    for frame, result in zip(activity, region_activity(activity, columns=6), strict=True):
        capped = np.minimum(frame, np.sort(frame)[-12:].mean() / 2).reshape(4, 6)
        for r in range(4):
            for c in range(6):
                near = [capped[y, x] for y in (r - 1, r, r + 1) for x in (c - 1, c, c + 1) if 0 <= y < 4 and 0 <= x < 6]
                assert result[r * 6 + c] == pytest.approx(sum(near) / 9, rel=1e-5)


def test_a_frame_stands_for_those_that_were_passed_over():
    """Every second frame, counted twice, is the same to hold-DP as a clip whose frames come in equal pairs."""
    rng = np.random.default_rng(6)
    config = TokenizerConfig(policy="evidence", evidence=EvidenceConfig(event_period_seconds=0))
    frames = [signals(rng, 3) for _ in range(10)]
    single = OpenGroup(num_frames=10, rows=1, columns=3, fps=30.0, config=config)
    for i, frame in enumerate(frames):
        single.push(2 * i, frame, partial(str, i), stands_for=3 if i == 9 else 1)
    double = OpenGroup(num_frames=10, rows=1, columns=3, fps=30.0, config=config)
    for i, frame in enumerate(frames):
        double.push(2 * i, frame, partial(str, i), stands_for=6 if i == 9 else 2)
    kept = [[(p.tick, p.blocks.tolist()) for p in group.close()] for group in (single, double)]
    assert kept[0] == kept[1]
    costs = [group._slots[9].frames for group in (single, double)]
    assert costs == [3, 6]


def signals(rng, blocks, scale=1.0):
    return BlockSignals(
        motion_B=(rng.random(blocks) * scale).astype(np.float32),
        residual_B=(rng.random(blocks) * 10 * scale).astype(np.float32),
        intra_B=rng.random(blocks).astype(np.float32),
        feature_BF=(rng.random((blocks, 49)) * 255).astype(np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 60),
    st.integers(1, 6),
    st.integers(4, 12),
    st.sampled_from(["saliency", "evidence"]),
    st.integers(0, 999),
)
def test_open_group_fills_its_canvases_exactly(frames, blocks, max_candidates, policy, seed):
    rng = np.random.default_rng(seed)
    config = TokenizerConfig(policy=policy, max_candidates=max_candidates)
    group = OpenGroup(num_frames=frames, rows=1, columns=blocks, fps=30.0, config=config)
    alive = []
    for i in range(frames):
        group.push(i * 2, signals(rng, blocks), partial("pixels {}".format, i))
        alive.append(len(group._slots))
    picks = group.close()
    assert max(alive) <= max_candidates
    assert picks[0].tick == 0
    assert picks[0].blocks.tolist() == list(range(blocks))
    assert sum(len(p.blocks) for p in picks[1:]) == 3 * blocks
    assert [p.tick for p in picks] == sorted({p.tick for p in picks})
    for pick in picks:
        assert pick.pixels == f"pixels {pick.tick // 2}"
        assert pick.blocks.tolist() == sorted(set(pick.blocks.tolist()))


def test_open_group_keeps_the_most_active_frame_of_a_slot():
    rng = np.random.default_rng(0)
    group = OpenGroup(num_frames=41, rows=1, columns=3, fps=30.0, config=TokenizerConfig(max_candidates=5))
    asked = []
    for i in range(41):
        group.push(i, signals(rng, 3, scale=100.0 if i in (7, 33) else 1.0), partial(asked.append, i))
    ticks = [p.tick for p in group.close()]
    assert 7 in ticks
    assert 33 in ticks
    assert {7, 33} <= set(asked)
    assert len(asked) < 30, "pixels are asked for of frames that become candidates, not of all"


def test_packing_lays_blocks_in_raster_order():
    rng = np.random.default_rng(3)
    frames = {t: rng.integers(0, 255, (56, 84, 3), np.uint8) for t in (4, 9)}
    blocks = {4: np.array([1, 5]), 9: np.array([0, 2, 3, 4])}
    picks = [(t, blocks[t], cut_blocks(frames[t], blocks[t], block_px=28)) for t in (4, 9)]
    canvases, positions = pack_blocks(picks, rows=2, columns=3, patch_px=14, merge=2)
    assert canvases.shape == (1, 56, 84, 3)
    place = 0
    for t in (4, 9):
        for b in blocks[t]:
            r, c = place // 3 * 28, place % 3 * 28
            source = frames[t][b // 3 * 28 : b // 3 * 28 + 28, b % 3 * 28 : b % 3 * 28 + 28]
            assert (canvases[0, r : r + 28, c : c + 28] == source).all()
            for pr in range(2):
                for pc in range(2):
                    patch = (place // 3 * 2 + pr) * 6 + place % 3 * 2 + pc
                    assert positions[0, patch].tolist() == [t, b // 3 * 2 + pr, b % 3 * 2 + pc]
            place += 1


def test_packing_refuses_a_half_filled_canvas():
    tiles = np.zeros((4, 28, 28, 3), np.uint8)
    with pytest.raises(ValueError, match="do not fill"):
        pack_blocks([(0, np.arange(4), tiles)], rows=2, columns=3, patch_px=14, merge=2)


def test_packing_a_whole_frame_gives_the_frame_back():
    frame = np.random.default_rng(4).integers(0, 255, (56, 84, 3), np.uint8)
    every = np.arange(6)
    canvases, positions = pack_blocks(
        [(7, every, cut_blocks(frame, every, block_px=28))], rows=2, columns=3, patch_px=14, merge=2
    )
    assert (canvases[0] == frame).all()
    assert (positions[0] == frame_positions(7, 4, 6)).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_fit_size_stays_on_the_grid_and_in_the_area(width, height):
    w, h = fit_size(width, height, area_px=392 * 392, multiple_px=28)
    assert w % 28 == 0
    assert h % 28 == 0
    assert w * h <= 392 * 392
    assert w <= max(28, width)
    assert h <= max(28, height)


@pytest.mark.parametrize(
    ("source", "expected"),
    [((1280, 720), (504, 280)), ((392, 392), (392, 392)), ((320, 180), (308, 168)), ((16, 16), (28, 28))],
)
def test_fit_size_examples(source, expected):
    assert fit_size(*source, area_px=392 * 392, multiple_px=28) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=200), st.data())
def test_uniform_samples_are_distinct_and_span_the_clip(steps, data):
    seconds = np.cumsum([0, *steps])
    count = data.draw(st.integers(1, len(seconds)))
    chosen = sample_uniform(seconds, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] == 0
    assert chosen[-1] <= len(seconds) - 1
    if count > 1:
        assert chosen[-1] == len(seconds) - 1


def test_uniform_samples_of_a_constant_rate_are_evenly_spaced():
    chosen = sample_uniform(np.arange(100) / 25, 12)
    assert (np.abs(chosen - np.linspace(0, 99, 12)) <= 0.5 + 1e-9).all()


def frames_decoded(samples, keyframe):
    """Of each stretch from a keyframe on, all up to its last sample."""
    stretch = np.cumsum(keyframe)
    return sum(max(k for k in samples if stretch[k] == g) - np.argmax(stretch == g) + 1 for g in set(stretch[samples]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=100), st.floats(0, 0.49), st.data())
def test_samples_move_within_reach_to_what_costs_less(steps, reach, data):
    seconds = np.cumsum([0, *steps])
    keyframe = np.array(data.draw(st.lists(st.booleans(), min_size=len(seconds), max_size=len(seconds))))
    chosen = sample_uniform(seconds, data.draw(st.integers(1, len(seconds))))
    moved = move_to_cheaper(chosen, seconds, keyframe, reach=reach)
    assert (np.diff(moved) > 0).all()
    changed = moved != chosen
    assert (keyframe[moved[changed]] | (moved[changed] < chosen[changed])).all()
    assert frames_decoded(moved, keyframe) <= frames_decoded(chosen, keyframe)
    if changed.any():
        step = (seconds[chosen[-1]] - seconds[chosen[0]]) / (len(chosen) - 1)
        assert (np.abs(seconds[moved] - seconds[chosen]) <= reach * step + 1e-9).all()
    if reach == 0 or not keyframe.any():
        assert not changed.any()


def test_samples_near_keyframes_move_to_them_and_others_ahead():
    seconds, keyframe = np.arange(100) / 10, np.arange(100) % 24 == 0
    chosen = np.array([0, 25, 50, 66, 99])
    assert move_to_cheaper(chosen, seconds, keyframe, reach=0.25).tolist() == [0, 24, 48, 72, 96]
    assert move_to_cheaper(chosen, seconds, keyframe, reach=0.1).tolist() == [0, 24, 48, 64, 97]


def test_uniform_auto_chooses_by_length():
    config = TokenizerConfig(mode="uniform", budget=0, max_frames=64)
    assert [num_uniform_frames(10_000, s, config) for s in (3, 12, 500)] == [8, 16, 64]
    assert num_uniform_frames(5, 500, config) == 5
