"""What a run costs beside its videos at corpus scale: planning, resuming, looking at it, memory and time of the driver.

Enters: sizes. Leaves: a table (and JSON), in docs/reliability.md between markers; the exit code is 1 where a limit is broken.
Each part runs in a process of its own (jobs/scale_parts.py, and jobs/scale_efficiency.py for real clips on all cores), whose whole
tree, Ray's processes among them, is watched: CPU seconds, and the largest sum of proportional memory. Limits in CPU seconds
hold on a busy machine too; those in wall seconds need a quiet one, so the load is noted beside them.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.bench_markdown import write_section
from jobs.process_tree import note_cpu_seconds, proportional_mib, tree
from jobs.scale_parts import write_manifest

BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"
PARTS = ("plan", "restore", "memory", "overhead", "efficiency", "small-clips", "short-clips")
_CLIPS = {"efficiency": (10.0, 720, 1), "small-clips": (10.0, 360, 1), "short-clips": (2.0, 360, 2)}
"""Seconds and height of the clips, and how many for one of --clips: such as corpora are made of, and such as cost less and less
beside what they are handled with."""
_SAMPLE_SECONDS = 1.0
_RUN = "import sys; from jobs.scale_parts import main; sys.exit(main(sys.argv[1:]))"
"""Not `-m`: what Ray's workers are sent must lie in a module that they can import."""
_LIMITS = {
    "plan": [("rows", ">=", 10_000_000), ("wall_seconds", "<=", 900), ("tree_peak_mib", "<=", 4096)],
    "restore": [("shards", ">=", 99_999), ("restore_seconds", "<=", 60)],
    "memory": [("growth", "<=", 1.25)],
    "overhead": [("driver_ms_per_video", "<=", 2.0)],
    "efficiency": [("efficiency", ">=", 0.92), ("busy", ">=", 0.95)],
    "small-clips": [("efficiency", ">=", 0.92), ("busy", ">=", 0.95)],
    "short-clips": [("efficiency", ">=", 0.92), ("busy", ">=", 0.95)],
}


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench scale`."""
    parser = argparse.ArgumentParser(prog="ov2 bench scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all; repeatable")
    parser.add_argument("--table", action="store_true", help="run nothing: only the table of what --json holds")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the manifest that is planned")
    parser.add_argument("--shards", type=int, default=100_000, help="of the run that is resumed")
    parser.add_argument("--samples-per-shard", type=int, default=8, help="of that run; its commits grow with it")
    parser.add_argument("--memory-rows", type=int, nargs=2, default=(10_000, 1_000_000), metavar=("FEW", "MANY"))
    parser.add_argument("--videos", type=int, default=20_000, help="given out without work, for the driver's overhead")
    parser.add_argument(
        "--clips", type=int, default=200, help="tokenized, for the parallel efficiency; twice as many short ones"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="of the parallel efficiency")
    parser.add_argument("--folder", type=Path, help="work here, and leave the runs there; some 10 GB by default sizes")
    parser.add_argument(
        "--json", type=Path, help="keep the numbers of all parts here; parts that are not run stay in it"
    )
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    found: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        found = json.loads(args.json.read_text())
    with tempfile.TemporaryDirectory(prefix="ov2-scale-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for part in () if args.table else args.part or PARTS:
            found[part] = {**_run_part(part, folder, args), **machine()}
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=2) + "\n")
    print(table_text(found))
    if args.markdown is not None:
        write_section(table_text(found), args.markdown, begin=BEGIN, end=END, heading="## Scale")
    return 1 if any(broken(part, found[part]) for part in found) else 0


def machine() -> dict[str, Any]:
    """Where and when a part was run, and what else the machine did."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[1], 1),
        "versions": f"Python {platform.python_version()}, ray {metadata.version('ray')}, pyarrow {metadata.version('pyarrow')}",
    }


def _run_part(part: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    if part == "plan":
        return plan_manifest(folder / "plan", num_rows=args.rows, workers=args.workers)
    if part == "restore":
        run = folder / "restore"
        spec = {"manifest": str(folder / "restore.jsonl"), "run": str(run), "shards": args.shards}
        made = _measure("make_run", {**spec, "samples_per_shard": args.samples_per_shard}, fresh=run)
        restored = _measure("restore", spec)
        return {**restored, "first_look_seconds": made["first_look_seconds"]}
    if part == "memory":
        few, many = (_no_videos(folder / f"memory-{rows}", rows, part="memory", workers=0) for rows in args.memory_rows)
        growth = max(many["peak_rss_mib"], many["plan_peak_rss_mib"]) / max(
            few["peak_rss_mib"], few["plan_peak_rss_mib"]
        )
        return {"few": few, "many": many, "growth": growth}
    if part == "overhead":
        return _no_videos(folder / "overhead", args.videos, part="overhead", workers=args.workers)
    from jobs.scale_efficiency import measure_efficiency

    seconds, height_px, times = _CLIPS[part]
    return measure_efficiency(
        folder / part,
        num_clips=times * args.clips,
        clip_seconds=seconds,
        height_px=height_px,
        workers=args.workers,
        repeats=args.repeats,
    )


def plan_manifest(folder: Path, *, num_rows: int, workers: int) -> dict[str, Any]:
    """Writes a manifest, and plans it."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"manifest-{num_rows}.jsonl"
    if not manifest.exists():
        write_manifest(manifest, num_rows)
    spec = {"manifest": str(manifest), "run": str(folder / "run"), "workers": workers}
    return _measure("plan", spec, fresh=folder / "run")


def _no_videos(folder: Path, num_rows: int, *, part: str, workers: int) -> dict[str, Any]:
    planned = plan_manifest(folder, num_rows=num_rows, workers=0) if part == "overhead" else None
    manifest = folder / f"manifest-{num_rows}.jsonl"
    if planned is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, num_rows)
    spec = {"manifest": str(manifest), "run": str(folder / "run"), "workers": workers}
    return _measure(part, spec, fresh=None if planned else folder / "run")


def _measure(part: str, spec: dict[str, Any], *, fresh: Path | None = None) -> dict[str, Any]:
    """Runs a part as a process, and adds CPU seconds and peak memory of its tree. fresh: a folder that is removed before."""
    if fresh is not None:
        shutil.rmtree(fresh, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="ov2-scale-") as folder:
        asked, answer = Path(folder, "spec.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(spec))
        process = subprocess.Popen([sys.executable, "-c", _RUN, part, str(asked), str(answer)])
        tree = watch(process)
        if process.returncode:
            raise RuntimeError(f"bench scale: part {part} ended with {process.returncode}; its words stand above")
        return {**json.loads(answer.read_text()), **tree}


def watch(process: "subprocess.Popen[bytes]") -> dict[str, float]:
    """CPU seconds and the largest memory (proportional: pages shared by n processes count 1/n) of a process and all below it."""
    cpu: dict[int, float] = {}
    peak_mib = 0.0
    while process.poll() is None:
        pids = tree(process.pid)
        for pid in pids:
            note_cpu_seconds(pid, cpu)
        peak_mib = max(peak_mib, sum(map(proportional_mib, pids)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SAMPLE_SECONDS)
    return {"tree_cpu_seconds": sum(cpu.values()), "tree_peak_mib": peak_mib}


def broken(part: str, found: dict[str, Any]) -> list[str]:
    """The limits of a part that its numbers break."""
    holds = {"<=": lambda value, limit: value <= limit, ">=": lambda value, limit: value >= limit}
    return [
        f"{name} {found[name]:.3g}, not {sign} {limit:g}"
        for name, sign, limit in _LIMITS[part]
        if not holds[sign](found[name], limit)
    ]


def table_text(found: dict[str, Any]) -> str:
    """Markdown: one line a part that was run."""
    lines = ["| what | measured | limit | held | when, load |", "| --- " * 5 + "|"]
    for part in (part for part in PARTS if part in found):
        one = found[part]
        limits = ", ".join(f"{name} {sign} {limit:g}" for name, sign, limit in _LIMITS[part])
        verdict = "; ".join(broken(part, one)) or "yes"
        lines.append(f"| {part} | {_told(part, one)} | {limits} | {verdict} | {one['date']}, {one['load_average']} |")
    versions: Sequence[str] = sorted({f"{one['cpus']} CPUs, {one['versions']}" for one in found.values()})
    return "\n".join(
        [*lines, "", f"{'; '.join(versions)}. Load: mean over five minutes at the part's end, its own included."]
    )


def _told(part: str, one: dict[str, Any]) -> str:
    if part == "plan":
        return (
            f"{one['rows']:,} rows into {one['shards']:,} shards: {one['wall_seconds']:.0f} s; CPU {one['cpu_seconds']:.0f} s of "
            f"the driver, {one['tree_cpu_seconds']:.0f} s in all; peak {one['peak_rss_mib']:.0f} MiB of the driver, "
            f"{one['tree_peak_mib']:.0f} MiB in all"
        )
    if part == "restore":
        commits, summaries = one["commit_bytes"] / 1e9, one["summary_bytes"] / 1e6
        return (
            f"{one['shards']:,} committed shards ({commits:.1f} GB of commits, {summaries:.0f} MB of summaries): resumed in "
            f"{one['restore_seconds']:.1f} s, `ov2 status` in {one['status_seconds']:.1f} s; all summaries made anew in "
            f"{one['first_look_seconds']:.0f} s"
        )
    if part == "memory":
        few, many = one["few"], one["many"]
        plans = f"{few['plan_peak_rss_mib']:.0f} and {many['plan_peak_rss_mib']:.0f}"
        runs = f"{few['peak_rss_mib']:.0f} and {many['peak_rss_mib']:.0f}"
        return (
            f"{few['rows']:,} and {many['rows']:,} rows: peak {plans} MiB while planning, {runs} MiB while scheduling"
        )
    if part == "overhead":
        return f"{one['rows']:,} videos without work: {one['driver_ms_per_video']:.2f} ms CPU of the driver a video"
    return (
        f"{one['clips']} clips of {one['clip_seconds']:g} s at {one['clip_height_px']}p, {one['workers']} workers: "
        f"{one['wall_seconds']:.1f} s against {one['bare_seconds']:.1f} s by bare processes (medians of {one['repeats']}), "
        f"efficiency {one['efficiency']:.3f} ({one['least_efficiency']:.2f} to {one['most_efficiency']:.2f}); "
        f"{one['workers']} cores busy {one['busy']:.3f} of the time (bare {one['bare_busy']:.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
