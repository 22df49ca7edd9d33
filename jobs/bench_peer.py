"""Driving codec-video-prep, the published tool that the benchmark compares with, in a Python environment of its own.

Enters: a Python that has it (or none: an environment is made once in the user's cache), a video, a number of canvases.
Leaves: its output folder and the measurement of the call, or the reason why there is none. Design: it needs numpy < 2 and an
`ffprobe` on the PATH, so it is never imported here; a child runs a short script in its Python, warmed up and measured in
the same way as ours (jobs/bench_measure.py).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PEER_PACKAGE = "codec-video-prep"
PEER_VERSION = "0.2.5"
IMAGES_PER_GROUP = 4
GROUP_FRAMES = 32
"""Frames sampled for a group: the tool's default."""
TIMEOUT_SECONDS = 600

_CHILD = """
import gc, io, json, os, resource, sys, time, contextlib
from codec_video_prep import run_preinfer

def cpu_seconds():
    parts = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(p.ru_utime + p.ru_stime for p in parts)

def status_bytes(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

spec = json.load(open(sys.argv[1]))
with contextlib.redirect_stdout(io.StringIO()):
    for path in spec["warmups"]:
        run_preinfer(video=path, out_dir=spec["out"] + "-warmup", **spec["warmup_settings"])
    gc.collect()
    try:
        open("/proc/self/clear_refs", "w").write("5")
        reset = True
    except OSError:
        reset = False
    before = status_bytes("VmRSS")
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = run_preinfer(video=spec["video"], out_dir=spec["out"], **spec["settings"])
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
json.dump({
    "cpu_seconds": cpu, "wall_seconds": wall, "peak_rss_bytes": status_bytes("VmHWM"), "rss_before_bytes": before,
    "peak_is_of_the_call": reset, "images": len(result.canvas_files),
    "jpeg_bytes": sum(os.path.getsize(os.path.join(spec["out"], os.path.basename(f))) for f in result.canvas_files),
}, open(sys.argv[2], "w"))
"""


def find_peer(peer_python: str | None) -> tuple[str | None, str]:
    """(Python that has the tool, None where it cannot run; its version or the reason why not).

    Args:
        peer_python: a Python to use; None: one in the user's cache, made and filled by pip where it is missing.
    """
    if shutil.which("ffprobe") is None:
        return None, f"{PEER_PACKAGE} probes with a system ffprobe and none is on the PATH (Debian: apt install ffmpeg)"
    try:
        python = peer_python or str(_own_environment())
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"could not install {PEER_PACKAGE}=={PEER_VERSION}: {error}; give --peer-python, or --no-peer"
    ask = f"import importlib.metadata as m; import codec_video_prep; print(m.version('{PEER_PACKAGE}'))"
    try:
        asked = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except OSError as error:
        return None, f"--peer-python {python} does not run: {error}"
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        return None, f"--peer-python {python} cannot import {PEER_PACKAGE}: {last}"
    return python, asked.stdout.strip()


def _own_environment() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ov2" / f"{PEER_PACKAGE}-{PEER_VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "--quiet", f"{PEER_PACKAGE}=={PEER_VERSION}"]
        subprocess.run(install, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
        (folder / "complete").touch()
    return python


def peer_settings(*, images: int, num_frames: int) -> dict[str, Any]:
    """Settings that yield this many canvases: fixed groups of 4, 32 sampled frames a group or what the clip has.

    Raises:
        ValueError: not a multiple of 4 images, or too few frames for its groups of at least 4.
    """
    groups, rest = divmod(images, IMAGES_PER_GROUP)
    if rest or groups < 1:
        raise ValueError(f"it makes groups of {IMAGES_PER_GROUP} canvases, {images} cannot be met")
    group_frames = min(GROUP_FRAMES, num_frames // groups)
    if group_frames < IMAGES_PER_GROUP:
        raise ValueError(f"{num_frames} frames are too few for {groups} groups")
    return {
        "num_sampled_frames": group_frames * groups,
        "group_size": group_frames,
        "images_per_group": IMAGES_PER_GROUP,
        "grouping_mode": "fixed",
        "decode_backend": "cv_reader_pixels",
        "max_pixels": 392 * 392,
        "patch": 14,
    }


def run_peer(
    python: str,
    *,
    video: Path,
    images: int,
    num_frames: int,
    coded_size_px: tuple[int, int],
    warmups: Sequence[Path],
    warmup_frames: int,
    out: Path,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One measured call in a fresh process. Its output stands in `out`.

    Args:
        coded_size_px: (width, height) of the stream that we read; it always takes the first, which may be another.
        settings: what `run_preinfer` is called with; None: `peer_settings`.

    Returns:
        The measurement, or {"error": why there is none}.
    """
    try:
        settings = settings or peer_settings(images=images, num_frames=num_frames)
    except ValueError as error:
        return {"error": str(error)}
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    spec = {
        "video": str(video),
        "warmups": [str(path) for path in warmups],
        "out": str(out),
        "settings": settings,
        "warmup_settings": peer_settings(images=IMAGES_PER_GROUP, num_frames=warmup_frames),
    }
    spec_path, result_path = out.with_suffix(".spec.json"), out.with_suffix(".result.json")
    spec_path.write_text(json.dumps(spec))
    result_path.unlink(missing_ok=True)
    command = [python, "-c", _CHILD, str(spec_path), str(result_path)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {TIMEOUT_SECONDS} s"}
    if run.returncode or not result_path.exists():
        last = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        return {"error": last.replace(str(video), video.name).replace(str(out), "OUT")[:300]}
    height, width = json.loads((out / "meta.json").read_text())["orig_hw"]
    if (width, height) != coded_size_px:
        ours = "x".join(map(str, coded_size_px))
        return {"error": f"it reads another video stream ({width}x{height}, ours is {ours}): not comparable"}
    result: dict[str, Any] = json.loads(result_path.read_text())
    return {**result, "settings": settings}
