"""Fits the plan's cost constants: CPU seconds of samples of varied clips, and how far the fit is off.

Enters: folders of videos, beside which generated clips of several codecs, sizes and rates are made. Leaves: the constants (for
COST_SECONDS in ov2_core/plan.py), and a table of predicted against measured; with --check only the table, by the constants
that stand there. A sample is what a worker makes of a row (probe not included), least of --repeats in this process after one to
warm up; OMP_NUM_THREADS=1 makes it as a worker does. The terms are those of the prediction itself (`cost_terms`). The fit makes
the logarithms of predicted / measured small, so that a clip counts the same however long it is, and too much the same as too
little; far ones (loss soft_l1) pull less than others. Tokens and bytes are told beside it.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import least_squares

from jobs.bench_markdown import write_section
from ov2_core.config import RunConfig, recipe
from ov2_core.evals.clips import write_rope_clip
from ov2_core.make_sample import ProbeTask, make_probe, make_sample
from ov2_core.prediction import COST_SECONDS, cost_terms
from schemas.video import ManifestRow

BEGIN, END = "<!-- cost: begin -->", "<!-- cost: end -->"
RECIPES = ("codec-16", "codec-32", "evidence-16", "evidence-32", "uniform-8", "uniform-32", "stills")
_GENERATED = tuple(
    (codec, suffix, width_px, height_px, fps, seconds)
    for codec, suffix, width_px, height_px, fps, seconds in (
        ("libx264", ".mp4", 320, 180, 24, 12.0),
        ("libx264", ".mp4", 640, 360, 60, 4.0),
        ("libx264", ".mp4", 1280, 720, 30, 4.0),
        ("libx264", ".mp4", 1920, 1080, 30, 2.0),
        ("libx265", ".mp4", 640, 360, 30, 4.0),
        ("libx265", ".mp4", 1280, 720, 30, 3.0),
        ("libvpx-vp9", ".webm", 640, 360, 30, 4.0),
        ("libvpx-vp9", ".webm", 1280, 720, 30, 2.0),
        ("libsvtav1", ".mkv", 640, 360, 30, 4.0),
        ("libsvtav1", ".mkv", 1280, 720, 30, 2.0),
        ("mpeg4", ".avi", 640, 360, 30, 4.0),
        ("mpeg4", ".avi", 1280, 720, 30, 3.0),
    )
)
_STILLS = ((640, 480), (1920, 1080), (4000, 3000))
_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov"}


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench cost`."""
    parser = argparse.ArgumentParser(prog="ov2 bench cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=Path, action="append", default=[], help="a folder; repeatable")
    parser.add_argument("--recipe", action="append", help=f"default: {', '.join(RECIPES)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("bench-cost"), help="generated clips are kept here")
    parser.add_argument(
        "--json", type=Path, help="keep the measurements here; those that stand there are not made again"
    )
    parser.add_argument(
        "--check", action="store_true", help="do not fit: hold the constants in use against what is measured"
    )
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    found = json.loads(args.json.read_text()) if args.json is not None and args.json.exists() else []
    known = {(one["clip"], one["recipe"]) for one in found}
    paths = generate(args.folder)
    paths += [path for folder in args.videos for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES]
    for path, name in itertools.product(paths, args.recipe or RECIPES):
        if (path.suffix == ".jpg") != (name == "stills"):
            continue
        if (path.name, name) not in known:
            found.append(measure(path, recipe(name), args.repeats))
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    constants = COST_SECONDS if args.check else fit(found)
    if not args.check:
        print(json.dumps(constants, indent=4))
    print(table_text(found, constants))
    if args.markdown is not None:
        write_section(table_text(found, constants), args.markdown, begin=BEGIN, end=END, heading="## Cost")
    return 0


def generate(folder: Path) -> list[Path]:
    """The generated clips, made where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, (codec, suffix, width_px, height_px, fps, seconds) in enumerate(_GENERATED):
        path = folder / f"{codec}-{width_px}x{height_px}{suffix}"
        if not path.exists():
            write_rope_clip(
                path,
                seed=seed,
                seconds=seconds,
                fps=fps,
                width_px=width_px,
                height_px=height_px,
                camera=("static", "panning", "shaking")[seed % 3],
                codec=codec,
            )
        paths.append(path)
    for width_px, height_px in _STILLS:
        path = folder / f"still-{width_px}x{height_px}.jpg"
        if not path.exists():
            small = np.random.default_rng(width_px).integers(0, 256, (height_px // 16, width_px // 16, 3), np.uint8)
            Image.fromarray(small).resize((width_px, height_px), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def measure(path: Path, config: RunConfig, repeats: int) -> dict[str, Any]:
    """What one clip costs and gives by one recipe, and what was predicted of it.

    Raises:
        ValueError: it becomes no sample.
    """
    uri = str(path.resolve())
    row = ManifestRow(image=uri) if path.suffix == ".jpg" else ManifestRow(video=uri)
    planned = make_probe(ProbeTask(line=1, id="x", key="x", uri=uri, row=row), config).planned
    if planned is None:
        raise ValueError(f"{path} cannot be probed; take it away from --videos")
    first = make_sample(planned, config)
    if first.members is None:
        raise ValueError(f"{path} becomes no sample by {config.recipe}; take it away from --videos")
    seconds = [make_sample(planned, config).cpu_seconds for _ in range(repeats)]
    return {
        "clip": path.name,
        "recipe": config.recipe,
        "terms": cost_terms(planned.probe, config.tokenizer),
        "cpu_seconds": min(seconds),
        "tokens": [planned.predicted_tokens, first.num_tokens],
        "bytes": [planned.predicted_bytes, sum(512 * (1 - -len(data) // 512) for _, data in first.members)],
    }


def fit(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by term, to three digits; terms that no sample has are left out."""
    names = sorted({name for one in found for name in one["terms"]})
    measured = np.array([one["cpu_seconds"] for one in found])
    matrix = np.array([[one["terms"].get(name, 0.0) for name in names] for one in found])
    largest = (matrix / measured[:, None]).max(0)  # of each constant, were there no other

    def log_ratios(shares: np.ndarray) -> np.ndarray:
        return np.log(matrix @ (shares / largest) / measured)

    shares = least_squares(log_ratios, np.full(len(names), 0.3), bounds=(1e-9, np.inf), loss="soft_l1", f_scale=0.2).x
    kept = np.where(shares < 1e-3, 0.0, shares / largest)
    return {name: float(f"{value:.3g}") for name, value in zip(names, kept, strict=True)}


def predicted(terms: dict[str, float], constants: dict[str, float]) -> float:
    """CPU seconds."""
    return sum(constants[name] * term for name, term in terms.items())


def table_text(found: Sequence[dict[str, Any]], constants: dict[str, float]) -> str:
    """Markdown: of each recipe, actual / predicted over all clips and of single ones."""
    lines = [
        "| recipe | clips | CPU, sum | 10 % .. 90 % of clips | farthest | bytes, sum | tokens, sum |",
        "| --- " * 7 + "|",
    ]
    for name in sorted({one["recipe"] for one in found}):
        rows = [one for one in found if one["recipe"] == name]
        actual = np.array([one["cpu_seconds"] for one in rows])
        said = np.array([predicted(one["terms"], constants) for one in rows])
        low, high = np.quantile(actual / said, [0.1, 0.9])
        worst = max(rows, key=lambda one: abs(math.log(one["cpu_seconds"] / predicted(one["terms"], constants))))
        farthest = worst["cpu_seconds"] / predicted(worst["terms"], constants)
        sums = {what: np.array([one[what] for one in rows]).sum(0) for what in ("bytes", "tokens")}
        lines.append(
            f"| {name} | {len(rows)} | {actual.sum() / said.sum():.2f} | {low:.2f} .. {high:.2f} | {worst['clip']} {farthest:.2f} "
            f"| {sums['bytes'][1] / sums['bytes'][0]:.2f} | {sums['tokens'][1] / sums['tokens'][0]:.2f} |"
        )
    return "\n".join([*lines, "", "Each number is actual / predicted."])


if __name__ == "__main__":
    sys.exit(main())
