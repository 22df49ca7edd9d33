"""Motion and residual kernels against naive references, and the geometry of real vectors on a known pan."""

from itertools import pairwise

import av
import numpy as np
import pytest

from ov2_core.evals.clips import write_clip
from ov2_core.media.decode import DecodeStats, decode_frames, motion_vectors
from ov2_core.media.probe import probe_video
from ov2_core.media.scale import Scaler
from ov2_core.signals.cells import CellGrid, to_block_cells
from ov2_core.signals.frame import SignalExtractor
from ov2_core.signals.motion import TilesToBlocks, match_blocks, rasterise_vectors, subtract_camera, turn_offsets
from ov2_core.signals.residual import compensated_residual

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


def cells_of(luma, rows, columns):
    return CellGrid(rows=rows, columns=columns, turns=0)(np.ascontiguousarray(luma))


def test_residual_equals_the_naive_one(rng):
    cells, previous = rng.uniform(0, 255, (2, 21, 28)).astype(np.float32)
    offset = rng.uniform(-12, 12, (3, 4, 2)).astype(np.float32)
    result = compensated_residual(cells, previous, offset)

    def at(y, x):
        return float(previous[np.clip(y, 0, 20), np.clip(x, 0, 27)])

    for r in range(3):
        for c in range(4):
            dy, dx = offset[r, c].astype(float)
            fy, fx = dy - np.floor(dy), dx - np.floor(dx)
            total = 0.0
            for y in range(r * 7, r * 7 + 7):
                for x in range(c * 7, c * 7 + 7):
                    y0, x0 = y + int(np.floor(dy)), x + int(np.floor(dx))
                    there = (1 - fy) * ((1 - fx) * at(y0, x0) + fx * at(y0, x0 + 1))
                    there += fy * ((1 - fx) * at(y0 + 1, x0) + fx * at(y0 + 1, x0 + 1))
                    total += abs(float(cells[y, x]) - there)
            assert result[r, c] == pytest.approx(total / 49, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("bits", [8, 10])
def test_cells_are_means_of_the_source_whatever_its_size(rng, bits):
    luma = rng.integers(0, 2**bits, (100, 171)).astype(np.uint8 if bits == 8 else np.uint16)
    cells = CellGrid(rows=2, columns=3, turns=0)(luma, bits)
    assert cells.shape == (14, 21)
    for r in range(14):
        for c in range(21):
            part = luma[r * 100 // 14 : (r + 1) * 100 // 14, c * 171 // 21 : (c + 1) * 171 // 21]
            assert cells[r, c] == pytest.approx(part.mean() / 2 ** (bits - 8), rel=1e-5)
    small = cells_of(luma[:3, :5].astype(np.uint8), 2, 3)
    assert small.shape == (14, 21), "a source below the size of a block"


def test_cells_of_a_bright_wide_plane_are_means_too(rng):
    """The running sum over a row of cells exceeds 32 bits."""
    luma = rng.integers(60000, 65535, (14, 40000), dtype=np.uint16).repeat(2, axis=0)
    cells = CellGrid(rows=1, columns=2, turns=0)(luma, 16)
    first = np.arange(15) * 40000 // 14
    naive = [[luma[4 * r : 4 * r + 4, a:b].mean() / 256 for a, b in pairwise(first)] for r in range(7)]
    assert 4 * 40000 * 60000 > 2**32
    assert cells == pytest.approx(np.array(naive), rel=1e-5)


def test_block_cells_are_row_major_and_multiples_of_a_half(rng):
    cells = (rng.random((14, 21)) * 255).astype(np.float32)
    blocks = to_block_cells(cells)
    for b in range(6):
        r, c = b // 3 * 7, b % 3 * 7
        assert (blocks[b].reshape(7, 7) == np.rint(cells[r : r + 7, c : c + 7] * 2) / 2).all()


@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "yuvj422p", "yuv444p10le", "nv12", "gray", "rgb24", "yuyv422", "gbrp"]
)
@pytest.mark.parametrize("size", [(112, 168), (298, 442)])
@pytest.mark.parametrize("rotation", [0, 90])
def test_cells_of_any_pixel_format_agree(rng, pixel_format, rotation, size):
    picture = texture(rng, *size)
    frame = av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, axis=2), format="rgb24")
    width, height = (112, 168) if rotation else (168, 112)
    scaler = Scaler(width_px=width, height_px=height, rotation_degrees=rotation)
    cells = CellGrid(rows=4, columns=6, turns=rotation // 90)
    want = np.rot90(cells_of(picture, 4, 6), rotation // 90)
    got = cells(*scaler.look(frame.reformat(format=pixel_format)).luma())
    assert got.shape == want.shape
    whole_rows = size == (112, 168)  # rows of a larger frame are averaged by their shares first
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > (0.999 if whole_rows else 0.99)


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


def test_tiles_to_blocks_of_a_constant_field_is_that_field():
    tiles = np.zeros((9, 16, 3), np.float32)
    tiles[..., 0], tiles[..., 1], tiles[..., 2] = -3, 5, 1
    to_blocks = TilesToBlocks(coded_height_px=72, coded_width_px=128, rows=4, columns=6)
    offset, intra = to_blocks(tiles)
    assert offset[..., 0] == pytest.approx(-3 * 28 / 72, abs=1e-4)
    assert offset[..., 1] == pytest.approx(5 * 42 / 128, abs=1e-4)
    assert intra == pytest.approx(0, abs=1e-5)
    assert to_blocks(np.zeros_like(tiles))[1] == pytest.approx(1)


def test_tiles_to_blocks_equals_area_weighted_means(rng):
    tiles = rng.normal(size=(6, 9, 3)).astype(np.float32)
    tiles[..., 2] = rng.choice([0, 0.5, 1, 2], (6, 9))
    tiles[..., :2] *= tiles[..., 2:]
    offset, intra = TilesToBlocks(coded_height_px=48, coded_width_px=72, rows=2, columns=3)(tiles)
    for r in range(2):
        for c in range(3):
            part = tiles[r * 3 : r * 3 + 3, c * 3 : c * 3 + 3].reshape(-1, 3)
            covered = np.minimum(part[:, 2], 1)
            mean = part[:, :2] / np.maximum(part[:, 2:], 1e-6)
            assert intra[r, c] == pytest.approx(1 - covered.mean(), abs=1e-5)
            want = (mean * covered[:, None]).sum(axis=0) / max(covered.sum(), 1e-6) * [14 / 48, 21 / 72]
            assert offset[r, c] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turned_offsets_point_where_turned_pixels_went(rng, turns):
    """Residual after compensation does not depend on whether cells and maps are turned before or after."""
    cells, previous = rng.uniform(0, 255, (2, 28, 42)).astype(np.float32)
    offset = rng.uniform(-5, 6, (4, 6, 2)).astype(np.float32)
    straight = compensated_residual(cells, previous, offset)
    turned_offset, _ = turn_offsets(offset, np.zeros((4, 6), np.float32), turns)
    turned = compensated_residual(
        np.ascontiguousarray(np.rot90(cells, turns)), np.ascontiguousarray(np.rot90(previous, turns)), turned_offset
    )
    assert turned == pytest.approx(np.rot90(straight, turns), abs=1e-3)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (4, -8), (-12, 4), (3, 6), (16, 16)])
def test_block_matching_finds_a_shift(rng, dy, dx):
    """In cells of 4 px, fractions of one included."""
    big = texture(rng, 340, 460)
    previous, luma = big[30:310, 30:422], big[30 + dy : 310 + dy, 30 + dx : 422 + dx]
    cells, before = cells_of(luma, 10, 14), cells_of(previous, 10, 14)
    offset = match_blocks(cells, before, np.zeros((10, 14, 2), np.float32))
    inner = offset[2:-2, 2:-2].reshape(-1, 2) * 4
    assert (np.abs(inner - [dy, dx]).max(axis=1) < 0.8).mean() > 0.9


def test_block_matching_never_does_worse_than_standing_still(rng):
    cells, before = rng.uniform(0, 255, (2, 28, 42)).astype(np.float32)
    offset = match_blocks(cells, before, rng.uniform(-9, 9, (4, 6, 2)).astype(np.float32))
    still = compensated_residual(cells, before, np.zeros_like(offset))
    moved = compensated_residual(cells, before, offset)
    assert (moved <= still + 1e-4).all()


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
    sizes = {"coded_height_px": probe.coded_height_px, "coded_width_px": probe.coded_width_px}
    turns = rotation // 90
    cells_of_luma = CellGrid(rows=(6, 8)[turns], columns=(8, 6)[turns], turns=turns)
    scaler = Scaler(width_px=224, height_px=168, rotation_degrees=rotation)
    extractor = SignalExtractor(rows=6, columns=8, block_px=28, **sizes, turns=turns, features=False)
    previous, ratios = None, []
    for index, frame in decode_frames(path, probe, stats=DecodeStats(), export_vectors=True):
        cells = cells_of_luma(*scaler.look(frame).luma())
        vectors = motion_vectors(frame)
        assert codec != "libx265" or vectors is None
        back, ahead = probe.anchor_distance_T2[index].tolist()
        signals = extractor.extract(cells, vectors=vectors, frames_back=back, frames_ahead=ahead)
        if previous is not None:
            plain = compensated_residual(cells, previous, np.zeros((6, 8, 2), np.float32))
            ratios.append(signals.residual_B.mean() / plain.mean())
            assert np.median(signals.motion_B) < 1
        previous = cells
    assert np.median(ratios) < 0.5
