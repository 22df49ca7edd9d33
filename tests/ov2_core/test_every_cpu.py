"""Tokens and drawn scenes do not depend on the CPU: a clip and some rooms in processes that are told that this machine is another.

OpenBLAS has kernels for each kind of CPU, which add in orders of their own; NumPy sorts and takes exponentials by AVX-512 where it
finds it; numba compiles for the host; FFmpeg decodes and scales by what it finds. Before cells were rounded and sums exact, this
clip had other blocks with SkylakeX's and Prescott's matrix products than with Zen's, and half of all scenes other poses.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import av
import pytest
from numpy._core import _multiarray_umath as numpy_cpu

from ov2_core.evals.clips import write_rope_clip

MAKE = """
import ctypes, hashlib, json, os, sys
import av
if "FFMPEG_FLAGS" in os.environ:
    ctypes.CDLL(os.environ["LIBAVUTIL"]).av_force_cpu_flags(int(os.environ["FFMPEG_FLAGS"], 0))
from ov2_core.config import recipe
from ov2_core.tokenize_video import tokenize_video
digests = {}
for name in sys.argv[2:]:
    made = tokenize_video(sys.argv[1], recipe(name).tokenizer)
    digests[name] = hashlib.sha256(made.positions_NP3.tobytes() + made.images_NHW3.tobytes()).hexdigest()
from ov2_core.spatial.procedural import make_scene
for number in range(12):
    scene = make_scene(3, number, num_frames=4, width_px=64, height_px=48)
    content = scene.record.model_dump_json().encode() + scene.depth_FHW.tobytes() + scene.rgb_FHW3.tobytes()
    digests[f"scene {number}"] = hashlib.sha256(content).hexdigest()
print(json.dumps(digests))
"""
FLAGS = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
BLAS_NEEDS = {"Prescott": "pni", "Haswell": "avx2", "SkylakeX": "avx512bw"}
"""A flag of the CPUs that can run it."""
FFMPEG_FLAGS = {"SSE4.2": 0x13DB, "AVX2": 0xFD3DB}
"""Those up to this set, AV_CPU_FLAG_* in libavutil/cpu.h."""

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="kinds of x86 are compared")


def digests(clip: Path, **environment: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(clip), "evidence-16", "evidence-32", "codec-16"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpu") / "rope.mp4"
    write_rope_clip(path, seconds=4, width_px=426, height_px=240)
    return path


@pytest.fixture(scope="module")
def here(clip: Path) -> dict[str, str]:
    return digests(clip)


@pytest.mark.parametrize("kind", [kind for kind, flag in BLAS_NEEDS.items() if flag in FLAGS])
def test_any_matrix_product_gives_the_same(clip: Path, here: dict[str, str], kind: str) -> None:
    assert digests(clip, OPENBLAS_CORETYPE=kind) == here


@pytest.mark.parametrize("kind", FFMPEG_FLAGS)
def test_any_instruction_set_of_the_decoder_gives_the_same(clip: Path, here: dict[str, str], kind: str) -> None:
    found = list(Path(av.__file__).parents[1].glob("av.libs/libavutil*"))
    if not found:
        pytest.skip("PyAV's own libavutil is not where wheels have it")
    flags = ctypes.CDLL(str(found[0])).av_get_cpu_flags() & FFMPEG_FLAGS[kind]
    assert digests(clip, LIBAVUTIL=str(found[0]), FFMPEG_FLAGS=str(flags)) == here


def test_numpy_at_its_baseline_gives_the_same(clip: Path, here: dict[str, str]) -> None:
    known = numpy_cpu.__cpu_features__
    there = " ".join(name for name in numpy_cpu.__cpu_dispatch__ if known[name])
    assert digests(clip, NPY_DISABLE_CPU_FEATURES=there) == here


def test_kernels_compiled_for_any_x86_give_the_same(clip: Path, here: dict[str, str], tmp_path: Path) -> None:
    generic = {
        "OV2_KERNELS": "jit",
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    assert digests(clip, **generic) == here
