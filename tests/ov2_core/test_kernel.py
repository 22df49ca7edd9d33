"""Kernels built ahead of time: the same bits as numba's, no numba in the process, and nothing wrong is ever called."""

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from ov2_core import build_kernels, kernel
from ov2_core.build_kernels import CannotBuildError, ensure_built, existing, failure, kernels, missing
from ov2_core.config import recipe
from ov2_core.evals.clips import write_rope_clip
from ov2_core.kernel import Kernel, exported_name, library_path, load_library
from ov2_core.signals.cells import CellGrid
from ov2_core.tokenize_video import tokenize_video

needs_compiler = pytest.mark.skipif(missing() is not None, reason=f"kernels cannot be built here: {missing()}")
RECIPES = ("codec-16", "evidence-16", "uniform-16")
TOKENIZE = """
import hashlib, json, sys
from ov2_core.config import recipe
from ov2_core.tokenize_video import tokenize_video
digests = {}
for path in sys.argv[2:]:
    for name in sys.argv[1].split(","):
        made = tokenize_video(path, recipe(name).tokenizer)
        content = made.images_NHW3.tobytes() + made.positions_NP3.tobytes()
        digests[f"{path} {name}"] = hashlib.sha256(content).hexdigest()
print(json.dumps({"digests": digests, "numba": "numba" in sys.modules}))
"""


def run(paths: list[Path], **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, ",".join(RECIPES), *map(str, paths)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One with vectors and lines that the decoder pads, one of 10 bits without, one that is not scaled by rows."""
    folder = tmp_path_factory.mktemp("kernels")
    paths = [folder / "h264.mp4", folder / "hevc10.mp4", folder / "small.mp4"]
    for path, codec, pixels, size in zip(
        paths, ("libx264", "libx265", "libx264"), ("yuv420p", "yuv420p10le", "yuv444p"), (854, 854, 112), strict=True
    ):
        write(path, codec, pixels, size, size * 9 // 16 // 2 * 2)
    return paths


def write(path: Path, codec: str, pixels: str, width: int, height: int) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (height // 16 + 1, width // 16 + 4, 3), np.uint8)
    texture = noise.repeat(16, axis=0).repeat(16, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for i in range(40):
            picture = np.ascontiguousarray(texture[:height, i : i + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


@needs_compiler
def test_built_kernels_give_the_same_bits_as_numba_and_leave_it_out(clips: list[Path]) -> None:
    assert ensure_built() is not None
    built, compiled = run(clips), run(clips, OV2_KERNELS="jit")
    assert built["digests"] == compiled["digests"]
    assert len(set(built["digests"].values())) == len(clips) * len(RECIPES)
    assert compiled["numba"]
    assert not built["numba"], "some call met arrays for which no kernel was built"


@needs_compiler
def test_other_arrays_are_compiled_and_none_is_misread() -> None:
    """A built kernel takes its arrays' bytes as they are; what it was not built for must not get there."""
    ensure_built()
    plane = np.random.default_rng(1).integers(0, 256, (60, 90)).astype(np.uint8)
    cells = CellGrid(rows=2, columns=3, turns=0)
    expected = cells(plane)
    wide = np.zeros((60, 200), np.uint8)
    wide[:, ::2][:, :90] = plane
    np.testing.assert_array_equal(cells(wide[:, ::2][:, :90]), expected)
    np.testing.assert_array_equal(cells(np.asfortranarray(plane)), expected)
    for other in (np.int8, np.int16, np.int64, np.float32, np.float64):
        values = (plane // 2).astype(other)
        np.testing.assert_allclose(cells(values), cells(plane // 2), atol=1, err_msg=str(other))


@needs_compiler
def test_every_kernel_with_a_signature_is_in_the_module() -> None:
    ensure_built()
    load_library.cache_clear()
    library = load_library()
    names = [exported_name(k, number) for k in kernels() for number in range(len(k.signatures))]
    assert len(names) == len(set(names)) > 12
    assert all(callable(getattr(library, name)) for name in names)


def test_a_module_of_other_sources_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernel.SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.PACKAGE / name, tmp_path / name)
    before = library_path(tmp_path).name
    monkeypatch.setattr(kernel, "PACKAGE", tmp_path)
    assert library_path(tmp_path).name == before
    source = tmp_path / "tokenizer/hold.py"
    source.write_text(source.read_text().replace("PRICE_PRECISION = 1.002", "PRICE_PRECISION = 1.003"))
    assert library_path(tmp_path).name != before
    monkeypatch.setattr(kernel, "target_cpu", lambda: "other")
    assert library_path(tmp_path).name != before


def twice(values):
    """Not a kernel of the package."""
    total = 0
    for value in values:
        total += 2 * value
    return total


def test_a_module_that_does_not_load_leaves_numba(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(kernel, "library_folders", lambda: [tmp_path])
    monkeypatch.delenv("OV2_KERNELS", raising=False)
    library_path(tmp_path).write_bytes(b"not a library")
    load_library.cache_clear()
    try:
        assert Kernel(twice, ["int64[::1]"], fastmath=False)(np.arange(4)) == 12
    finally:
        load_library.cache_clear()
    assert "does not load" in caplog.text


def test_what_is_missing_is_named_and_nothing_breaks(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(build_kernels, "library_folders", lambda: [tmp_path])
    monkeypatch.setattr(build_kernels.shutil, "which", lambda name: None)
    with pytest.raises(CannotBuildError, match="no C compiler"):
        build_kernels.build(tmp_path)
    assert ensure_built() is None
    assert build_kernels.main() == 0
    assert "install a C compiler" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_tried_once(tmp_path, monkeypatch) -> None:
    """Else every worker of a node would try, one after the other."""
    calls = []
    monkeypatch.setattr(build_kernels, "library_folders", lambda: [tmp_path / "new"])
    monkeypatch.setattr(build_kernels, "missing", lambda: None)
    monkeypatch.delenv("OV2_KERNELS", raising=False)

    def fails(command, **options):
        calls.append(command)
        failure(tmp_path / "new").write_text("no")

    monkeypatch.setattr(build_kernels.subprocess, "run", fails)
    assert ensure_built() is None
    assert ensure_built() is None
    assert len(calls) == 1


@needs_compiler
def test_the_reason_of_a_failure_stands_beside(tmp_path, monkeypatch) -> None:
    def broken():
        raise RuntimeError("no space left")

    monkeypatch.setattr(build_kernels, "kernels", broken)
    with pytest.raises(CannotBuildError, match="no space left"):
        build_kernels.build(tmp_path)
    assert "no space left" in failure(tmp_path).read_text()
    assert existing() != library_path(tmp_path)


def test_decoded_frames_do_not_outlive_their_clip(tmp_path: Path) -> None:
    """A frame whose side data was read is part of a cycle; Python's collector sees small objects and waits."""
    path = tmp_path / "rope.mp4"
    write_rope_clip(path, seed=1, seconds=4.0)
    config = recipe("codec-16").tokenizer
    digests = set()
    for _ in range(3):
        made = tokenize_video(path, config)
        digests.add(hashlib.sha256(made.images_NHW3.tobytes()).hexdigest())
    del made
    gc.disable()
    try:
        tokenize_video(path, config)
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) <= 2
    finally:
        gc.enable()
    assert len(digests) == 1
