"""Memory of a tokenization does not grow with the length of a clip."""

import subprocess
import sys

from ov2_core.evals.clips import write_rope_clip

MEASURE = """
import resource, sys
from ov2_core.config import recipe
from ov2_core.tokenize_video import tokenize_video

def peak_mib(path):
    tokenize_video(path, recipe(sys.argv[1]).tokenizer)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

short, long = peak_mib(sys.argv[2]), peak_mib(sys.argv[3])
print(long - short)
"""


def test_a_clip_six_times_as_long_takes_hardly_more_memory(tmp_path):
    """The short clip already fills all candidates. Measured: 36 MiB more, and 131 MiB where decoded frames pile up."""
    for name, seconds in (("short", 5.0), ("long", 30.0)):
        write_rope_clip(tmp_path / f"{name}.mp4", seed=1, seconds=seconds, width_px=1280, height_px=720)
    paths = [str(tmp_path / "short.mp4"), str(tmp_path / "long.mp4")]
    command = [sys.executable, "-c", MEASURE, "codec-4", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 70
