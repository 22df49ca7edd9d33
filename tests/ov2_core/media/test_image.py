"""Stills: upright, RGB, and clear words for what is no image."""

import io

import numpy as np
import pytest
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.media.image import load_image, probe_image


def load(path):
    return load_image(str(path), max_source_px=10**8)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_image_modes_become_rgb(tmp_path, mode):
    gray = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    image = Image.fromarray(gray)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    pixels = load(path).resized(56, 28)
    assert pixels.shape == (28, 56, 3)
    if mode != "1":
        assert pixels[:, -1].mean() > 180 > 60 > pixels[:, 0].mean()


def test_image_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert probe_image(str(tmp_path / "a.jpg")).width_px == 40


def test_image_transparent_ground_is_white(tmp_path):
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").resized(28, 28).min() == 255


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [("a.png", b"hello", "not_media"), ("b.jpg", b"", "not_media"), ("c.png", None, "source_missing")],
)
def test_image_errors_say_why(tmp_path, name, payload, reason):
    if payload is not None:
        (tmp_path / name).write_bytes(payload)
    with pytest.raises(BadItemError) as caught:
        load(tmp_path / name)
    assert caught.value.reason == reason


def test_image_errors_are_the_same_each_time(tmp_path):
    texts = set()
    for _ in range(2):
        with pytest.raises(BadItemError) as caught:
            load_image(io.BytesIO(b"no image"), max_source_px=10**6)
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert "0x" not in texts.pop(), "the address of an object"


def test_image_cut_off_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadItemError, match="damaged"):
        load(tmp_path / "a.jpg")


def test_image_too_large_is_refused_before_decoding(tmp_path):
    Image.new("1", (3000, 3000)).save(tmp_path / "a.png")
    with pytest.raises(BadItemError, match="max_source_px"):
        load_image(str(tmp_path / "a.png"), max_source_px=10**6)
