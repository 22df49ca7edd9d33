"""`ov2 bench encoder`: patches a second, TFLOP/s and the share of the machine's own matrix product, by length of group.

Enters: options. Leaves: a table, JSON, a section of docs/benchmarks.md between its own markers. Design: every case runs in a
process of its own, so that what it leaves in memory touches no other; the encoder and the matrix product that
it is held against share their minutes (ov2_core/model/measure.py), and medians are told with the least and the most.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.bench_markdown import write_section

BEGIN, END = "<!-- bench encoder: begin -->", "<!-- bench encoder: end -->"
HEADER = (
    "case",
    "groups x patches",
    "attention",
    "patches/s",
    "TFLOP/s",
    "matmul",
    "share",
    "range",
    "share of best",
    "waste",
    "memory MiB",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    options = _parser().parse_args(argv)
    if options.child:
        print(json.dumps(_measure(options)))
        return 0
    load_before = os.getloadavg()[0]
    cases = []
    for canvases, window in _cases(options):
        cases.append(_in_child(options, canvases, window))
        print(_progress(cases[-1]), file=sys.stderr, flush=True)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [load_before, os.getloadavg()[0]],
        "repeats": options.repeats,
        "layers": options.layers,
        "dtype": options.dtype,
        "kind": options.kind,
        "cases": cases,
    }
    print(table_text(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.markdown:
        write_section(table_text(report), options.markdown, begin=BEGIN, end=END, heading="## Encoder")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ov2 bench encoder", description=__doc__.splitlines()[0])
    parser.add_argument("--size-px", type=int, default=392, help="side of a canvas (392)")
    parser.add_argument("--canvases", type=int, default=32, help="canvases of the main case, windows of 4 (32)")
    parser.add_argument("--windows", default="1,2,8", help="other windows, each over --window-canvases ('' for none)")
    parser.add_argument("--window-canvases", type=int, default=8, help="canvases of the other windows (8)")
    parser.add_argument("--layers", type=int, default=24, help="layers of the encoder (24)")
    parser.add_argument("--repeats", type=int, default=3, help="passes (3)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (cpu)")
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"), help="by the device")
    parser.add_argument("--threads", type=int, default=None, help="of torch, on a CPU (all)")
    parser.add_argument(
        "--kind", default="inference", choices=("inference", "training"), help="forward, or with backward"
    )
    parser.add_argument("--peak-sides", default="2048,4096", help="square products that the peak is measured with")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--markdown", type=Path, help="replace the encoder's section of this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, default=4, help=argparse.SUPPRESS)
    return parser


def _cases(options: argparse.Namespace) -> list[tuple[int, int]]:
    """(canvases, window)."""
    if options.size_px % 28 or options.size_px < 28:
        raise ValueError(f"--size-px must be a multiple of 28, got {options.size_px}")
    others = [int(text) for text in options.windows.split(",") if text]
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    return [(options.canvases, 4), *((options.window_canvases, window) for window in others)]


def _in_child(options: argparse.Namespace, canvases: int, window: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.bench_encoder", "--child", f"--canvases={canvases}", f"--window={window}"]
    for name in ("size_px", "layers", "repeats", "device", "dtype", "threads", "kind", "peak_sides"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}={value}"]
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise ValueError(f"the measurement of {canvases} canvases in windows of {window} failed (its message is above)")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """One case, in the child."""
    from ov2_core.model.measure import device_name, make_encoder, measure_encoder

    encoder = make_encoder(
        num_layers=options.layers, device=options.device, dtype=options.dtype, threads=options.threads
    )
    side = options.size_px // encoder.config.patch_size
    if options.kind == "inference":
        encoder.eval().requires_grad_(False)
    timing = measure_encoder(
        encoder,
        [[options.canvases, side, side]],
        window=options.window,
        repeats=options.repeats,
        kind=options.kind,
        peak_sides=[int(text) for text in options.peak_sides.split(",")],
    )
    return {
        "canvases": options.canvases,
        "size_px": options.size_px,
        "window": options.window,
        "group_lengths": list(timing.lengths),
        "num_patches": timing.num_patches,
        "flops": timing.flops,
        "backend": timing.backend,
        "waste": timing.waste,
        "seconds": [turn.seconds for turn in timing.turns],
        "peak_flops": [turn.peak_flops for turn in timing.turns],
        "best_flops": [turn.best_flops for turn in timing.turns],
        "memory_bytes": max((turn.memory_bytes or 0 for turn in timing.turns), default=0),
        "activation_bytes": timing.activation_bytes,
        "device": device_name(options.device),
    }


def table_text(report: dict[str, Any]) -> str:
    """Provenance and a Markdown table."""
    first, load = report["cases"][0], report["load_average"]
    lines = [
        f"Measured {report['date']} on {report['cpu']}, {report['usable_cpus']} usable CPUs ({first['device']}), "
        f"{report['dtype']}, {report['kind']}; load average {load[0]:.1f} before and {load[1]:.1f} after. The released encoder's "
        f"width with {report['layers']} layers and its connector, random weights. Matmul is the rate of matrix products of the "
        "same minutes, in TFLOP/s (timed before every layer, their seconds taken off; on a GPU the best before and after); the "
        f"share is of that, the median, least and most of {report['repeats']} passes. Best is the best product seen in any moment, "
        "which on a busy machine the encoder had no chance to reach. Memory is the peak above weights and start, input and output "
        "included" + (" (times what a backward pass must keep)." if report["kind"] == "training" else "."),
        "",
        _line(HEADER),
        _line(["---"] + ["---:"] * (len(HEADER) - 1)),
        *(_line(_row(case, report["kind"])) for case in report["cases"]),
    ]
    return "\n".join(lines)


def shares(case: dict[str, Any]) -> list[float]:
    """Share of the matrix product's rate, pass by pass."""
    return [case["flops"] / s / p for s, p in zip(case["seconds"], case["peak_flops"], strict=True)]


def _row(case: dict[str, Any], kind: str) -> list[str]:
    seconds, found = statistics.median(case["seconds"]), shares(case)
    lengths = case["group_lengths"]
    return [
        f"{case['canvases']} canvases of {case['size_px']}x{case['size_px']}, windows of {case['window']}",
        f"{len(lengths)} x {max(lengths)}",
        case["backend"],
        f"{case['num_patches'] / seconds:,.0f}",
        f"{case['flops'] / seconds / 1e12:.3f}",
        f"{statistics.median(case['peak_flops']) / 1e12:.3f}",
        f"{statistics.median(found):.0%}",
        f"{min(found):.0%} .. {max(found):.0%}",
        f"{statistics.median(case['flops'] / s / p for s, p in zip(case['seconds'], case['best_flops'], strict=True)):.0%}",
        f"{case['waste']:.1%}",
        f"{case['memory_bytes'] / 2**20:,.0f}"
        + (f" ({case['memory_bytes'] / case['activation_bytes']:.2f})" if kind == "training" else ""),
    ]


def _progress(case: dict[str, Any]) -> str:
    found = ", ".join(f"{share:.0%}" for share in shares(case))
    return f"{case['canvases']} canvases in windows of {case['window']}: {found} of the matrix product"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
