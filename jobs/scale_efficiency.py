"""Short clips by `ov2 tokenize`'s workers against as many plain processes: what Ray, the scheduler and the store cost.

Enters: how many clips, how long, and workers. Leaves: wall and CPU seconds of both, their quotients, and how busy the
cores were. The plain processes make the same samples and write and commit the same shards, each half of them (or an n-th),
one video after the other: nobody schedules, nothing is handed on. Seconds count from the first video's begin to the last
commit, so that neither imports nor the start of Ray are in them. Both are run in turn, each first every other time, and
what counts is the median of the quotients of neighbours: a machine that is slow for a minute slows both.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jobs.process_tree import CpuWatch
from ov2_core import config as configs
from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.evals.clips import write_rope_clip
from ov2_core.make_sample import SampleOutcome, make_sample
from ov2_core.plan import iter_plan_shards
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.plan_videos import plan_videos
from pipelines.run_identity import code_version
from pipelines.shard_feed import MadeSample, WriteTask
from pipelines.tokenize_videos import TokenizeJob, tokenize_videos
from schemas.shard import PlannedRow

CONFIG = with_overrides(recipe("codec-8"), {"shards.max_samples": "20"})
"""Shards of some MB: small ones, but not of four clips, which would be written as often as nobody does."""
NUM_FILES = 12


def measure_efficiency(
    folder: Path, *, num_clips: int, clip_seconds: float, height_px: int, workers: int, repeats: int = 5
) -> dict[str, Any]:
    """Makes the clips and the plan, then runs both kinds in turn, `repeats` times each."""
    manifest = write_clips(folder, num_clips, seconds=clip_seconds, height_px=height_px)
    plan_videos(str(manifest), Store(folder / "plan"), CONFIG, RunOptions(workers=0, progress="off"))
    ours, bare = [], []
    for number in range(repeats):
        if number % 2:
            ours.append(_by_workers(folder, manifest, workers))
        bare.append(_by_processes(folder, workers))  # the very first of all may have kernels to compile
        if number % 2 == 0:
            ours.append(_by_workers(folder, manifest, workers))
        if digests(Store(folder / "ours")) != digests(Store(folder / "bare")):
            raise RuntimeError("bench scale: the plain processes wrote other tars than the pipeline")
    quotients = sorted(plain["wall_seconds"] / one["wall_seconds"] for plain, one in zip(bare, ours, strict=True))
    return {
        "clips": num_clips,
        "clip_seconds": clip_seconds,
        "clip_height_px": height_px,
        "workers": workers,
        "repeats": repeats,
        "wall_seconds": median(one["wall_seconds"] for one in ours),
        "bare_seconds": median(one["wall_seconds"] for one in bare),
        "efficiency": median(quotients),
        "least_efficiency": quotients[0],
        "most_efficiency": quotients[-1],
        "busy": median(_busy(one, workers) for one in ours),
        "bare_busy": median(_busy(one, workers) for one in bare),
        "ours": ours,
        "bare": bare,
    }


def _busy(run: dict[str, float], workers: int) -> float:
    return run["tree_cpu_seconds"] / (workers * run["wall_seconds"])


def write_clips(folder: Path, num_clips: int, *, seconds: float, height_px: int = 360) -> Path:
    """NUM_FILES clips of 16:9, and a manifest that names each several times."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(NUM_FILES):
        path = folder / f"clip-{seed}.mp4"
        if not path.exists():
            write_rope_clip(path, seed=seed, seconds=seconds, width_px=height_px * 16 // 9, height_px=height_px)
    rows = [{"video": f"clip-{number % NUM_FILES}.mp4", "id": f"v{number}"} for number in range(num_clips)]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def digests(store: Store) -> list[str | None]:
    """sha256 of every tar."""
    return [record.tar_digest for record in iter_commits(store)]


@dataclass(frozen=True)
class TimedMake:
    """make_sample, its begin and end (of time.monotonic, which processes of a machine share) and CPU seconds written down."""

    path: str

    def __call__(self, planned: PlannedRow, config: RunConfig) -> SampleOutcome:
        began = time.monotonic()
        outcome = make_sample(planned, config)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{began} {time.monotonic()} {outcome.cpu_seconds}\n")
        return outcome


def _by_workers(folder: Path, manifest: Path, workers: int) -> dict[str, float]:
    run, times = folder / "ours", folder / "seconds.txt"
    shutil.rmtree(run, ignore_errors=True)
    times.unlink(missing_ok=True)
    shutil.copytree(folder / "plan", run)
    options = RunOptions(workers=workers, progress="off")
    with CpuWatch() as watch:
        tokenize_videos(str(manifest), Store(run), CONFIG, options, make=TimedMake(str(times)))
    return _spent([times], [run], watch)


def _by_processes(folder: Path, workers: int) -> dict[str, float]:
    run = folder / "bare"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "plan", run)
    times = [folder / f"seconds-{number}.txt" for number in range(workers)]
    for path in times:
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "jobs.scale_efficiency", str(run)]
    with CpuWatch() as watch:
        processes = [
            subprocess.Popen([*command, str(number), str(workers), str(path)]) for number, path in enumerate(times)
        ]
        if any([process.wait() for process in processes]):
            raise RuntimeError("bench scale: a plain process failed; its words stand above")
    return _spent(times, [run], watch)


def _spent(times: list[Path], runs: list[Path], watch: CpuWatch) -> dict[str, float]:
    """Wall from the first begin to the last commit and CPU seconds of all processes meanwhile; of making videos: both."""
    made = [[float(field) for field in line.split()] for path in times for line in path.read_text().splitlines()]
    unix = time.time() - time.monotonic()
    ended = max(record.finished_unix_seconds for run in runs for record in iter_commits(Store(run))) - unix
    first = min(began for began, _, _ in made)
    return {
        "wall_seconds": ended - first,
        "tree_cpu_seconds": watch.between(first, ended),
        "made_seconds": sum(end - began for began, end, _ in made),
        "cpu_seconds": sum(cpu for _, _, cpu in made),
    }


def make_share(run: str, number: int, workers: int, times: str) -> None:
    """What one plain process does: every `workers`-th shard of the plan."""
    store = Store(run)
    job = TokenizeJob(
        config=CONFIG,
        store=store,
        config_digest=configs.digest(CONFIG),
        code_version=code_version(),
        make=TimedMake(times),
    )
    for shard, rows in iter_plan_shards(store):
        if shard % workers == number:
            began = round(time.time(), 3)
            made = []
            for row in rows:
                outcomes, members = job.run((row,))
                assert isinstance(outcomes, list)
                made.append(MadeSample(row.key, outcomes[0], members))
            job.run(WriteTask(shard=shard, made=made, filtered=[], quarantined=[], started_unix_seconds=began))


if __name__ == "__main__":
    make_share(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
