"""One measurement of the tokenizer benchmark, alone in a fresh process: `python -m jobs.bench_measure SPEC.json RESULT.json`.

Enters: what to run (decode, or a kind of RECIPES), a video, a budget, warm-up videos. Leaves: CPU and wall seconds
and peak memory of the call alone: the clock starts after imports and after a call on the warm-up video, so interpreter
start, imports and numba's compilation are out; the peak is that of the process from that moment on (Linux).
"""

import gc
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.config import TokenizerConfig, recipe, with_overrides

RECIPES = {
    "saliency": "codec-{}",
    "evidence": "evidence-{}",
    "saliency fast": "codec-{}-fast",
    "evidence fast": "evidence-{}-fast",
    "uniform": "uniform-{}",
}
"""Kinds that tokenize, and their recipes at a budget."""


def config_of(kind: str, budget: int, overrides: Mapping[str, str] | None = None) -> TokenizerConfig:
    """The tokenizer config of a kind at a budget, `overrides` as after --set."""
    return with_overrides(recipe(RECIPES[kind].format(budget)), dict(overrides or {})).tokenizer


def encode_jpegs(images_NHW3: npt.NDArray[np.uint8], *, quality: int = 95, subsampling: str = "4:2:0") -> list[bytes]:
    """The images as JPEG files."""
    encoded = []
    for image in images_NHW3:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        encoded.append(buffer.getvalue())
    return encoded


def workload(kind: str, budget: int, overrides: Mapping[str, str] | None = None) -> Callable[[str], dict[str, Any]]:
    """What is measured, as a function of the path."""
    if kind == "decode":
        return _decode_plainly

    from ov2_core.tokenize_video import tokenize_video

    config = config_of(kind, budget, overrides)

    def tokenize(path: str) -> dict[str, Any]:
        video = tokenize_video(path, config, as_jpeg=True)
        return {
            "images": video.num_images,
            "tokens": video.num_tokens,
            "jpeg_bytes": sum(map(len, video.jpegs_N or ())),
            "steps_cpu_seconds": video.timings_seconds,
        }

    return tokenize


def _decode_plainly(path: str) -> dict[str, Any]:
    """PyAV's own decoder on one thread; frames are dropped as they come, nothing is converted."""
    import av

    from ov2_core.media.container import choose_stream

    with av.open(path) as container:
        stream = choose_stream(container, stage="tokenize")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        return {"frames": sum(1 for _ in container.decode(stream))}


def measure(call: Callable[[str], dict[str, Any]], path: str) -> dict[str, Any]:
    """CPU (children included), wall and peak memory of call(path)."""
    gc.collect()
    reset = _reset_peak()
    before_bytes = _status_bytes("VmRSS")
    cpu, wall = _cpu_seconds(), time.perf_counter()
    facts = call(path)
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "peak_rss_bytes": _status_bytes("VmHWM"),
        "rss_before_bytes": before_bytes,
        "peak_is_of_the_call": reset,
        **facts,
    }


def _cpu_seconds() -> float:
    parts = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(p.ru_utime + p.ru_stime for p in parts)


def _reset_peak() -> bool:
    """Linux: the peak counts from now on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def main(argv: list[str]) -> int:
    """SPEC: {"kind", "budget", "video", "warmups"} and maybe {"set": {key: value}}."""
    spec = json.loads(Path(argv[0]).read_text())
    call = workload(spec["kind"], spec["budget"], spec.get("set"))
    for path in spec["warmups"]:
        call(path)
    Path(argv[1]).write_text(json.dumps(measure(call, spec["video"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
