"""`ov2 bench tokenizer`: what tokenization costs and what its tokens tell, against plain decoding, uniform frames and a peer.

Enters: a folder of videos (optional) beside generated clips with known events. Leaves: JSON, a table, a section of
docs/benchmarks.md. Design: every cost is measured in a fresh process after a warm-up (jobs/bench_measure.py), repeats are
interleaved over the kinds so that a noisy minute falls on all of them; quality is deterministic and computed once
(jobs/bench_quality.py). A clip or a peer that fails is a row with its reason, never left out silently.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from jobs.bench_measure import RECIPES
from jobs.bench_peer import PEER_VERSION, find_peer, run_peer
from jobs.bench_report import print_tables, write_markdown
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import Camera, ClipTruth, rope_clip, write_clip, write_rope_clip
from ov2_core.evals.varied_clips import Scene, varied_clip
from ov2_core.media.probe import probe_video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".mpg", ".flv")
WARMUP_SECONDS = 2.0
CHILD_TIMEOUT_SECONDS = 900
SPARSE_BEGIN, SPARSE_END = "<!-- bench sparse: begin -->", "<!-- bench sparse: end -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedClip:
    """A clip that the benchmark draws: its content ("rope" with a camera, or a scene of varied_clips), codec and format."""

    name: str
    content: Camera | Scene
    codec: str = "libx264"
    suffix: str = ".mp4"
    fps: float = 30
    size_px: tuple[int, int] = (960, 540)


_GENERATED = (
    GeneratedClip(name="rope-static", content="static"),
    GeneratedClip(name="rope-panning", content="panning"),
    GeneratedClip(name="rope-shaking", content="shaking"),
    GeneratedClip(name="rope-60fps", content="static", fps=60),
    GeneratedClip(name="rope-hevc", content="static", codec="libx265"),
    GeneratedClip(name="shots-hevc", content="shots", codec="libx265", fps=24, size_px=(1024, 576)),
    GeneratedClip(name="screen-1080p", content="screen", size_px=(1920, 1080)),
    GeneratedClip(
        name="low-light-vp9", content="low-light", codec="libvpx-vp9", suffix=".webm", fps=24, size_px=(640, 360)
    ),
    GeneratedClip(name="sport-av1", content="sport", codec="libsvtav1", suffix=".mkv", fps=60, size_px=(1280, 720)),
    GeneratedClip(name="orbit-mpeg4", content="orbit", codec="mpeg4", suffix=".avi", fps=25, size_px=(1280, 720)),
)


def run_benchmark(
    *,
    videos: Path | None,
    budgets: list[int],
    repeats: int,
    peer_python: str | None,
    use_peer: bool,
    generated_seconds: float,
    costs: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Everything that the command reports, as plain JSON types. Paths are reported by their last part only.

    costs: False measures the quality of ours alone, in this process; the peer is left out.

    Raises:
        ValueError: no videos in the folder, or a budget or a number of repeats that makes no sense.
    """
    if repeats < 1 or not budgets or min(budgets) < 4:
        raise ValueError(f"expected repeats >= 1 and budgets >= 4, got {repeats} and {budgets}")
    real = [] if videos is None else _videos_in(videos)
    left_out = "left out by --no-peer" if costs else "left out by --no-cost"
    peer, peer_note = find_peer(peer_python) if use_peer and costs else (None, left_out)
    say(f"peer codec-video-prep: {peer_note}")
    report: dict[str, Any] = {
        "schema_version": 1,
        "machine": machine_facts(),
        "versions": version_facts() | {"codec-video-prep": peer_note if peer else None},
        "settings": {
            "budgets": budgets,
            "repeats": repeats if costs else 0,
            "generated_seconds": generated_seconds,
            "costs": costs,
        },
        "peer": {"ran": peer is not None, "note": peer_note, "expected_version": PEER_VERSION},
        "load_average_before": load_average(),
        "clips": [],
    }
    with tempfile.TemporaryDirectory(prefix="ov2-bench-") as work:
        folder = Path(work)
        warmups = [folder / f"warmup-{codec}.mp4" for codec in ("libx264", "libx265")]
        for path, codec in zip(warmups, ("libx264", "libx265"), strict=True):  # with and without motion vectors
            warmup_truth = write_rope_clip(path, seed=1000, seconds=WARMUP_SECONDS, codec=codec)
        clips: list[tuple[Path, ClipTruth | None]] = [*_generated(folder, generated_seconds)]
        clips += [(path, None) for path in real]
        for path, known in clips:
            started = time.perf_counter()
            report["clips"].append(
                _bench_clip(
                    path,
                    known,
                    budgets=budgets,
                    repeats=repeats if costs else 0,
                    peer=peer,
                    warmups=warmups,
                    warmup_frames=len(warmup_truth.pts_seconds),
                    folder=folder,
                )
            )
            say(f"{path.name}: {time.perf_counter() - started:.0f} s")
    report["load_average_after"] = load_average()
    return report


def run_stream_benchmark(
    *, videos: Path | None, budgets: list[int], generated_seconds: float, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Streaming against offline on the same clips: quality alone, in this process, as plain JSON types.

    Raises:
        ValueError: no videos in the folder, or a budget that makes no sense.
    """
    from jobs.bench_stream import bench_stream_clip, share_kept

    if not budgets or min(budgets) < 4:
        raise ValueError(f"expected budgets >= 4, got {budgets}")
    real = [] if videos is None else _videos_in(videos)
    report: dict[str, Any] = {
        "schema_version": 1,
        "machine": machine_facts(),
        "versions": version_facts(),
        "settings": {"budgets": budgets, "generated_seconds": generated_seconds},
        "clips": [],
    }
    with tempfile.TemporaryDirectory(prefix="ov2-bench-") as work:
        clips: list[tuple[Path, ClipTruth | None]] = [
            *_generated(Path(work), generated_seconds),
            *((path, None) for path in real),
        ]
        for path, truth in clips:
            clip: dict[str, Any] = {"name": path.name, "generated": truth is not None, "stream": []}
            try:
                clip["stream"] = bench_stream_clip(path, truth=truth, budgets=budgets)
            except BadItemError as error:
                clip["error"] = f"{error.reason}: {error}".replace(str(path), path.name)
            report["clips"].append(clip)
            kept = {p: share_kept(c for c in clip["stream"] if c["policy"] == p) for p in ("saliency", "evidence")}
            say(f"{path.name}: " + (clip.get("error") or ", ".join(f"{p} {_percent(k)}" for p, k in kept.items())))
    return report


def _percent(share: float | None) -> str:
    return "gains nothing offline" if share is None else f"keeps {share:.0%}"


def _generated(folder: Path, seconds: float) -> list[tuple[Path, ClipTruth | None]]:
    """The generated clips and their truth, written into the folder."""
    return [
        (folder / f"{clip.name}{clip.suffix}", _write_generated(clip, folder, seed=seed, seconds=seconds))
        for seed, clip in enumerate(_GENERATED)
    ]


def _write_generated(clip: GeneratedClip, folder: Path, *, seed: int, seconds: float) -> ClipTruth:
    width_px, height_px = clip.size_px
    form = {"seed": seed, "seconds": seconds, "fps": clip.fps, "width_px": width_px, "height_px": height_px}
    if clip.content in get_args(Camera):
        truth, frames = rope_clip(camera=cast(Camera, clip.content), **form)
    else:
        truth, frames = varied_clip(cast(Scene, clip.content), **form)
    write_clip(folder / f"{clip.name}{clip.suffix}", frames, fps=clip.fps, codec=clip.codec)
    return truth


def _bench_clip(
    path: Path,
    truth: ClipTruth | None,
    *,
    budgets: list[int],
    repeats: int,
    peer: str | None,
    warmups: Sequence[Path],
    warmup_frames: int,
    folder: Path,
) -> dict[str, Any]:
    clip: dict[str, Any] = {"name": path.name, "generated": truth is not None, "cases": [], "jpeg": [], "cost": []}
    try:
        probe = probe_video(str(path))
    except BadItemError as error:
        return clip | {"error": f"{error.reason}: {error}".replace(str(path), path.name)}
    clip |= {
        "codec": probe.codec,
        "pixel_format": probe.pixel_format,
        "width_px": probe.width_px,
        "height_px": probe.height_px,
        "num_frames": probe.num_frames,
        "seconds": probe.duration_seconds,
        "fps": probe.fps,
    }
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    images: dict[int, int] = {}
    for _ in range(repeats):
        runs.setdefault((0, "decode"), []).append(run_child("decode", 0, path, warmups, folder))
        for budget in budgets:
            for kind in RECIPES:
                result = run_child(
                    kind, images.get(budget, budget) if kind == "uniform" else budget, path, warmups, folder
                )
                runs.setdefault((budget, kind), []).append(result)
                if kind == "saliency" and "images" in result:
                    images[budget] = result["images"]
            if peer is not None:
                result = run_peer(
                    peer,
                    video=path,
                    images=images.get(budget, budget),
                    num_frames=probe.num_frames,
                    coded_size_px=(probe.coded_width_px, probe.coded_height_px),
                    warmups=warmups,
                    warmup_frames=warmup_frames,
                    out=_peer_folder(folder, path, budget),
                )
                runs.setdefault((budget, "peer"), []).append(result)
    clip["cost"] = [_cost(key, results) for key, results in sorted(runs.items())]
    peer_folders = {
        budget: _peer_folder(folder, path, budget)
        for budget, kind in runs
        if kind == "peer" and "error" not in runs[budget, kind][-1]
    }
    from jobs.bench_quality import score_clip

    try:
        clip["cases"], clip["jpeg"] = score_clip(path, truth=truth, budgets=budgets, peer_folders=peer_folders)
    except BadItemError as error:
        clip["error"] = f"{error.reason}: {error}".replace(str(path), path.name)
    return clip


def _peer_folder(folder: Path, path: Path, budget: int) -> Path:
    return folder / "peer" / f"{path.name.replace('.', '_')}-{budget}"


def run_child(
    kind: str,
    budget: int,
    path: Path,
    warmups: Sequence[Path],
    folder: Path,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One measurement of ours in a fresh process (jobs/bench_measure.py), or {"error": ...}."""
    spec, result = folder / "spec.json", folder / "result.json"
    result.unlink(missing_ok=True)
    asked = {"kind": kind, "budget": budget, "video": str(path), "warmups": [str(p) for p in warmups]}
    spec.write_text(json.dumps(asked | {"set": dict(overrides or {})}))
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jobs.bench_measure", str(spec), str(result)]
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CHILD_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {CHILD_TIMEOUT_SECONDS} s"}
    if run.returncode or not result.exists():
        last = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        return {"error": last.replace(str(path), path.name)[:300]}
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def _cost(key: tuple[int, str], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and extremes over the repeats."""
    row: dict[str, Any] = {"budget": key[0] or None, "kind": key[1], "runs": results}
    good = [r for r in results if "error" not in r]
    if len(good) < len(results):
        row["error"] = next(r["error"] for r in results if "error" in r)
    for field in ("cpu_seconds", "wall_seconds", "peak_rss_bytes", "rss_before_bytes"):
        values = [r[field] for r in good]
        if values:
            row[field] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return row


def _videos_in(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES) if folder.is_dir() else []
    if not found:
        raise ValueError(f"--videos {folder}: no file ends in {', '.join(VIDEO_SUFFIXES)}")
    return found


def machine_facts() -> dict[str, Any]:
    """CPU, how many may be used, system and date."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "usable_cpus": usable, "system": platform.system(), "date": time.strftime("%Y-%m-%d")}


def version_facts() -> dict[str, str]:
    """What a number depends on: libraries and commit."""
    import av

    from ov2_core.kernel import load_library

    names = ("ov2-pipeline", "av", "numpy", "numba", "pillow")
    found = {name: importlib.metadata.version(name) for name in names}
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    kernels = "by numba" if load_library() is None else "built ahead"
    facts = {"python": platform.python_version(), **found, "libavcodec": libavcodec, "kernels": kernels}
    return {**facts, "commit": _commit()}


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    asked = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def load_average() -> list[float]:
    """Over 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def _budgets(text: str) -> list[int]:
    return sorted({int(part) for part in text.split(",")})


def main(argv: Iterable[str] | None = None) -> int:
    """The command line. Returns 0 when every clip was measured, 1 when one was not, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="ov2 bench tokenizer", description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="folder of real videos, beside the generated clips")
    parser.add_argument("--budgets", type=_budgets, default=[16, 32], help="canvases, comma-separated (default 16,32)")
    parser.add_argument("--json", type=Path, help="write the full report here")
    parser.add_argument("--markdown", type=Path, help="fill the marked section of this file, e.g. docs/benchmarks.md")
    parser.add_argument("--from-json", type=Path, help="measure nothing: show a report written before")
    parser.add_argument("--peer-python", help="a Python that has codec-video-prep (default: one is made in the cache)")
    parser.add_argument("--no-peer", action="store_true", help="leave codec-video-prep out")
    parser.add_argument("--no-cost", action="store_true", help="the quality of ours alone: many budgets in little time")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a measurement (default 3)")
    parser.add_argument("--generated-seconds", type=float, default=12.0, help="length of the generated clips")
    parser.add_argument(
        "--stream", action="store_true", help="what streaming keeps of the offline quality; no costs, no peer"
    )
    parser.add_argument("--sparse", action="store_true", help="a long video instead: cost against a decode, and memory")
    parser.add_argument("--sparse-minutes", type=float, default=60.0, help="its length (default 60)")
    parser.add_argument("--sparse-images", type=int, default=768, help="frames and canvases of it (default 768)")
    options = parser.parse_args(None if argv is None else list(argv))
    try:
        if options.stream:
            return _main_stream(options)
        if options.sparse:
            return _main_sparse(options)
        if options.from_json:
            report = json.loads(options.from_json.read_text())
        else:
            report = run_benchmark(
                videos=options.videos,
                budgets=options.budgets,
                repeats=options.repeats,
                peer_python=options.peer_python,
                use_peer=not options.no_peer,
                generated_seconds=options.generated_seconds,
                costs=not options.no_cost,
            )
        if options.json:
            options.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        print_tables(report)
        if options.markdown:
            write_markdown(report, options.markdown)
    except (ValueError, OSError) as error:
        print(f"ov2 bench tokenizer: {error}", file=sys.stderr)
        return 2
    return 1 if any("error" in clip for clip in report["clips"]) else 0


def _main_stream(options: argparse.Namespace) -> int:
    from jobs.bench_stream import stream_lines

    if options.markdown:
        raise ValueError(
            "--markdown fills the section of costs and quality; with --stream take the table from the output"
        )
    if options.from_json:
        report = json.loads(options.from_json.read_text())
    else:
        report = run_stream_benchmark(
            videos=options.videos, budgets=options.budgets, generated_seconds=options.generated_seconds
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    print("\n".join(stream_lines(report["clips"])))
    return 1 if any("error" in clip for clip in report["clips"]) else 0


def _main_sparse(options: argparse.Namespace) -> int:
    from jobs.bench_markdown import write_section
    from jobs.bench_sparse import run_sparse_benchmark, sparse_lines

    if options.from_json:
        report = json.loads(options.from_json.read_text())
    else:
        report = run_sparse_benchmark(minutes=options.sparse_minutes, images=options.sparse_images)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    text = "\n".join(sparse_lines(report))
    print(text)
    if options.markdown:
        write_section(text, options.markdown, begin=SPARSE_BEGIN, end=SPARSE_END, heading="## Tokenizer: a long video")
    return 1 if any("error" in way for way in report["ways"]) else 0


if __name__ == "__main__":
    sys.exit(main())
