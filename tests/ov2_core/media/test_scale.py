"""Scaling: area means of what was decoded, rows first or not."""

import av
import numpy as np
import pytest

from ov2_core.media.scale import ONE, Scaler, row_weights


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def area_weights(length, parts):
    """[parts, length]: share of each part of [0, length) that each row covers."""
    low, high = (np.arange(parts) + np.array([[0], [1]])) * length / parts
    rows = np.arange(length)
    covered = np.clip(np.minimum(rows + 1, high[:, None]) - np.maximum(rows, low[:, None]), 0, None)
    return covered / covered.sum(axis=1, keepdims=True)


def area_mean(plane_HW, height, width):
    return area_weights(len(plane_HW), height) @ plane_HW.astype(float) @ area_weights(plane_HW.shape[1], width).T


def planes_of(frame):
    return [np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in frame.planes]


def noise_frame(rng, width, height, pixel_format):
    frame = av.VideoFrame(width, height, pixel_format)
    for plane in planes_of(frame):
        coarse = rng.integers(16, 236, (plane.shape[0] // 8 + 1, plane.shape[1] // 8 + 1))
        plane[:] = np.kron(coarse, np.ones((8, 8)))[: plane.shape[0], : plane.shape[1]]
    return frame


@pytest.mark.parametrize(("length", "parts"), [(720, 280), (1080, 280), (540, 280), (113, 56), (57, 56), (4320, 28)])
def test_row_weights_are_shares_of_area(length, parts):
    first, count, weights = row_weights(length, parts)
    got = np.zeros((parts, length))
    for r in range(parts):
        assert not weights[r, count[r] :].any()
        got[r, first[r] : first[r] + count[r]] = weights[r, : count[r]]
    assert (weights.sum(axis=1) == ONE).all()
    assert np.abs(got / ONE - area_weights(length, parts)).max() < 1 / ONE


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize("size", [(1280, 720), (854, 481), (168, 400), (1920, 1080)])
def test_scaled_planes_are_area_means(rng, pixel_format, size):
    frame = noise_frame(rng, *size, pixel_format)
    full = pixel_format == "yuv444p"
    scaler = Scaler(width_px=168, height_px=112, rotation_degrees=0, full_chroma=full)
    look = scaler.look(frame)
    luma, bits = look.luma()
    assert bits == 8
    difference = np.abs(luma - area_mean(planes_of(frame)[0], 112, size[0]))
    assert difference.mean() < 0.5
    assert difference.max() < 3  # ten rows of weights to within 1 / ONE, between black and white
    if pixel_format == "yuvj420p":  # full range becomes limited
        return
    scaled = planes_of(look.scaled())
    for place, (source, got) in enumerate(zip(planes_of(frame), scaled, strict=True)):
        difference = np.abs(got - area_mean(source, *got.shape))
        shifted_chroma = place > 0 and pixel_format == "yuv422p"  # swscale's own business
        assert difference.mean() < (4 if shifted_chroma else 0.6)
        assert shifted_chroma or difference.max() < 3


def test_frames_that_are_not_shrunk_or_not_planar_go_through_swscale(rng):
    scaler = Scaler(width_px=168, height_px=112, rotation_degrees=0)
    small = noise_frame(rng, 168, 112, "yuv420p")
    assert (planes_of(scaler.scaled(small))[0] == planes_of(small)[0]).all()
    deep = noise_frame(rng, 640, 360, "yuv420p").reformat(format="yuv420p10le")
    luma, bits = scaler.look(deep).luma()
    assert (luma.shape, bits) == ((360, 640), 10)
    assert scaler.scaled(deep).format.name == "yuv420p"


def test_results_do_not_share_memory(rng):
    """Also where the averaged rows are already as wide as the canvas."""
    for width in (168, 336):
        scaler = Scaler(width_px=168, height_px=112, rotation_degrees=0)
        first = scaler.scaled(noise_frame(rng, width, 224, "yuv420p"))
        before = [plane.copy() for plane in planes_of(first)]
        scaler.scaled(noise_frame(rng, width, 224, "yuv420p"))
        assert all((a == b).all() for a, b in zip(planes_of(first), before, strict=True))


def test_a_look_is_good_until_the_next(rng):
    scaler = Scaler(width_px=168, height_px=112, rotation_degrees=0)
    look = scaler.look(noise_frame(rng, 336, 224, "yuv420p"))
    scaler.look(noise_frame(rng, 336, 224, "yuv420p"))
    with pytest.raises(AssertionError, match="another frame"):
        look.scaled()


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_frames(rng, rotation):
    frame = noise_frame(rng, 640, 360, "yuv420p")
    width, height = (112, 168) if rotation % 180 else (168, 112)
    turned = Scaler(width_px=width, height_px=height, rotation_degrees=rotation)
    upright = Scaler(width_px=168, height_px=112, rotation_degrees=0)
    want = np.rot90(upright.rgb(upright.scaled(frame)), rotation // 90)
    assert (turned.rgb(turned.scaled(frame)) == want).all()


def test_nv12_gives_what_planar_frames_give(rng):
    planar = noise_frame(rng, 640, 360, "yuv420p")
    together = planar.reformat(format="nv12")
    scaler = Scaler(width_px=168, height_px=112, rotation_degrees=0)
    assert scaler.look(together).luma()[0].shape == (112, 640)
    got, want = (planes_of(scaler.scaled(frame)) for frame in (together, planar))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(got, want, strict=True))
