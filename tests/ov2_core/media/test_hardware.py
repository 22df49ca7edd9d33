"""Decoding on a device: refused in words where there is none; where there is one, the pictures of the software decoder."""

import numpy as np
import pytest
from av.codec.hwaccel import hwdevices_available

from ov2_core.config import TokenizerConfig, recipe, with_overrides
from ov2_core.evals.clips import write_rope_clip
from ov2_core.media import hardware
from ov2_core.media.hardware import accelerator, require_decoder
from ov2_core.tokenize_video import tokenize_video


def has_device():
    try:
        require_decoder("cuda")
    except ValueError:
        return False
    return True


def on_device(name):
    return with_overrides(recipe(name), {"tokenizer.decoder": "cuda"}).tokenizer


def test_software_needs_nothing():
    require_decoder("software")
    assert accelerator("software") is None


def test_unknown_decoders_are_refused():
    with pytest.raises(ValueError, match="decoder"):
        TokenizerConfig(decoder="vdpau")


@pytest.mark.skipif(has_device(), reason="there is one")
def test_without_a_device_nothing_is_opened(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.decoder=software"):
        tokenize_video(str(tmp_path / "not there.mp4"), on_device("codec-8"))


def test_a_pyav_without_the_device_type_says_so(monkeypatch):
    monkeypatch.setattr(
        hardware, "hwdevices_available", lambda: [name for name in hwdevices_available() if name != "cuda"]
    )
    with pytest.raises(ValueError, match="built without it"):
        require_decoder.__wrapped__("cuda")


@pytest.mark.skipif(not has_device(), reason="no NVIDIA device with a video decoder")
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "mpeg4"])
def test_pictures_are_those_of_the_software_decoder(tmp_path, codec):
    path = str(tmp_path / "clip.mkv")
    write_rope_clip(path, seed=1, seconds=2.0, codec=codec)
    for name in ("uniform-8", "evidence-8"):
        soft, hard = tokenize_video(path, recipe(name).tokenizer), tokenize_video(path, on_device(name))
        assert np.array_equal(soft.positions_NP3, hard.positions_NP3)
        assert np.abs(soft.images_NHW3.astype(int) - hard.images_NHW3).max() <= 2
