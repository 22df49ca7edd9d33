"""Motion and residual kernels against naive references, and the geometry of real vectors on a known pan."""

import numpy as np
import pytest

from ov2_core.evals.clips import write_clip
from ov2_core.media.decode import DecodeStats, Scaler, decode_frames, motion_vectors
from ov2_core.media.probe import probe_video
from ov2_core.signals.frame import SignalExtractor, to_blocks
from ov2_core.signals.motion import CellsToPatches, match_blocks, rasterise_vectors, subtract_camera, turn_offsets
from ov2_core.signals.residual import block_features, compensated_residual, halve

FIELDS = {"source": "<i4", "w": "u1", "h": "u1", "dst_x": "<i2", "dst_y": "<i2", "motion_x": "<i4", "motion_y": "<i4"}
VECTOR = np.dtype([*FIELDS.items(), ("motion_scale", "<u2")])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def texture(rng, height, width):
    """Smooth random picture: block matching has a slope to follow."""
    coarse = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2)).astype(float)
    y, x = np.mgrid[:height, :width] / 8
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = y - y0, x - x0
    top = coarse[y0, x0] * (1 - fx) + coarse[y0, x0 + 1] * fx
    bottom = coarse[y0 + 1, x0] * (1 - fx) + coarse[y0 + 1, x0 + 1] * fx
    return (top * (1 - fy) + bottom * fy).astype(np.uint8)


def test_residual_equals_the_naive_one(rng):
    luma, previous = rng.integers(0, 255, (2, 42, 56), np.uint8)
    offset = rng.uniform(-30, 30, (3, 4, 2)).astype(np.float32)
    result = compensated_residual(luma, previous, offset, patch_px=14)
    for r in range(3):
        for c in range(4):
            dy, dx = np.rint(offset[r, c]).astype(int)
            total = 0
            for y in range(r * 14, r * 14 + 14):
                for x in range(c * 14, c * 14 + 14):
                    total += abs(int(luma[y, x]) - int(previous[np.clip(y + dy, 0, 41), np.clip(x + dx, 0, 55)]))
            assert result[r, c] == pytest.approx(total / 196, abs=1e-4)


def test_halve_and_features_equal_naive_means(rng):
    luma = rng.integers(0, 255, (56, 84), np.uint8)
    assert (halve(luma) == np.floor(luma.reshape(28, 2, 42, 2).mean(axis=(1, 3)) + 0.5)).all()
    feature = block_features(luma, block_px=28)
    naive = luma.reshape(2, 7, 4, 3, 7, 4).astype(float).mean(axis=(2, 5)).transpose(0, 2, 1, 3).reshape(6, 49)
    assert feature == pytest.approx(naive, abs=1e-4)


def test_to_blocks_is_the_mean_of_the_square(rng):
    values = rng.random((4, 6)).astype(np.float32)
    assert to_blocks(values, 2) == pytest.approx(values.reshape(2, 2, 3, 2).mean(axis=(1, 3)).reshape(-1), abs=1e-6)


def test_rasterised_vectors_equal_a_naive_painting(rng):
    vectors = np.zeros(12, VECTOR)
    vectors["source"] = rng.choice([-1, 1], 12)
    vectors["w"], vectors["h"] = rng.choice([4, 8, 16], (2, 12))
    vectors["dst_x"], vectors["dst_y"] = rng.integers(-8, 60, (2, 12))
    vectors["motion_x"], vectors["motion_y"] = rng.integers(-40, 40, (2, 12))
    vectors["motion_scale"] = 4
    cells = rasterise_vectors(vectors, coded_height_px=44, coded_width_px=60, frames_back=2, frames_ahead=3)
    paint = np.zeros((48, 64, 3))
    for v in vectors:
        factor = 1 / 2 if v["source"] < 0 else -1 / 3
        top, left = v["dst_y"] - v["h"] // 2, v["dst_x"] - v["w"] // 2
        for y in range(max(0, top), min(48, top + v["h"])):
            for x in range(max(0, left), min(64, left + v["w"])):
                paint[y, x] += [v["motion_y"] / 4 * factor, v["motion_x"] / 4 * factor, 1]
    assert cells == pytest.approx(paint.reshape(6, 8, 8, 8, 3).mean(axis=(1, 3)), abs=1e-4)


def test_cells_to_patches_of_a_constant_field_is_that_field():
    cells = np.zeros((9, 16, 3), np.float32)
    cells[..., 0], cells[..., 1], cells[..., 2] = -3, 5, 1
    to_patches = CellsToPatches(coded_height_px=72, coded_width_px=128, rows=4, columns=6, patch_px=14)
    offset, intra = to_patches(cells)
    assert offset[..., 0] == pytest.approx(-3 * 56 / 72, abs=1e-4)
    assert offset[..., 1] == pytest.approx(5 * 84 / 128, abs=1e-4)
    assert intra == pytest.approx(0, abs=1e-5)
    assert to_patches(np.zeros_like(cells))[1] == pytest.approx(1)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turned_offsets_point_where_turned_pixels_went(rng, turns):
    """Residual after compensation does not depend on whether pixels and maps are turned before or after."""
    luma, previous = rng.integers(0, 255, (2, 56, 84), np.uint8)
    offset = rng.integers(-5, 6, (4, 6, 2)).astype(np.float32)
    straight = compensated_residual(luma, previous, offset, patch_px=14)
    turned_offset, _ = turn_offsets(offset, np.zeros((4, 6), np.float32), turns)
    turned = compensated_residual(
        np.ascontiguousarray(np.rot90(luma, turns)),
        np.ascontiguousarray(np.rot90(previous, turns)),
        turned_offset,
        patch_px=14,
    )
    assert turned == pytest.approx(np.rot90(straight, turns), abs=1e-4)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (2, -4), (-6, 2), (8, 8)])
def test_block_matching_finds_a_shift(rng, dy, dx):
    big = texture(rng, 200, 240)
    previous, luma = big[30:170, 30:198], big[30 + dy : 170 + dy, 30 + dx : 198 + dx]
    half, half_before = halve(np.ascontiguousarray(luma)), halve(np.ascontiguousarray(previous))
    offset = match_blocks(half, half_before, np.zeros((10, 12, 2), np.float32), half_patch_px=7)
    inner = offset[2:-2, 2:-2].reshape(-1, 2)
    assert (inner == [dy, dx]).all(axis=1).mean() > 0.9


def test_block_matching_never_does_worse_than_standing_still(rng):
    luma, previous = rng.integers(0, 255, (2, 56, 84), np.uint8)
    half, before = halve(luma), halve(previous)
    offset = match_blocks(half, before, rng.uniform(-9, 9, (4, 6, 2)).astype(np.float32), half_patch_px=7)
    still = compensated_residual(half, before, np.zeros_like(offset), patch_px=7)
    moved = compensated_residual(half, before, offset / 2, patch_px=7)
    assert (moved <= still + 1e-5).all()


def test_camera_motion_is_subtracted():
    offset = np.full((4, 6, 2), 7.0, np.float32)
    offset[1, 2] = [7, 10]
    magnitude = subtract_camera(offset, np.zeros((4, 6), np.float32))
    assert magnitude[1, 2] == pytest.approx(3)
    assert magnitude.sum() == pytest.approx(3)
    assert (subtract_camera(offset, np.ones((4, 6), np.float32)) == 0).all()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libx265"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_real_vectors_follow_a_pan(tmp_path, rng, codec, rotation):
    """A pan of 4 px a frame: compensation explains most of what a plain difference does not, turned or not."""
    big = texture(rng, 240, 600)
    frames = (
        np.repeat(np.rot90(big[20:188, 4 * i : 4 * i + 224], -(rotation // 90))[..., None], 3, axis=2)
        for i in range(20)
    )
    path = str(tmp_path / "pan.mp4")
    write_clip(path, frames, fps=25, codec=codec, rotation_degrees=rotation)
    probe = probe_video(path)
    assert probe.rotation_degrees == rotation
    scaler = Scaler(width_px=224, height_px=168, rotation_degrees=rotation)
    sizes = {"coded_height_px": probe.coded_height_px, "coded_width_px": probe.coded_width_px}
    extractor = SignalExtractor(
        height_px=168, width_px=224, **sizes, patch_px=14, merge=2, turns=rotation // 90, features=False
    )
    previous, ratios = None, []
    for index, frame in decode_frames(path, probe, stats=DecodeStats(), export_vectors=True):
        luma = scaler.luma(scaler.scaled(frame)).copy()
        vectors = motion_vectors(frame)
        assert codec != "libx265" or vectors is None
        back, ahead = probe.anchor_distance_T2[index].tolist()
        signals = extractor.extract(luma, vectors=vectors, frames_back=back, frames_ahead=ahead)
        if previous is not None:
            plain = compensated_residual(luma, previous, np.zeros((12, 16, 2), np.float32), patch_px=14)
            ratios.append(signals.residual_B.mean() / plain.mean())
            assert np.median(signals.motion_B) < 1
        previous = luma
    assert np.median(ratios) < 0.5
