"""`ov2 bench train`: tokens a second, MFU, memory and waits of training steps, against transformers' Trainer.

Enters: options. Leaves: a table, JSON, a section of docs/benchmarks.md between its own markers. Design: the stage is synthetic
(bench_train_stage.py); each side of each round runs in a process of its own, one after the other in turn, so that memory is its own
and both sides share their minutes. What is measured and how both sides are kept equal stands in ov2_core/train/measure.py. On a
CPU that others use too, CPU seconds are what can be compared, so both are told.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.bench_encoder import cpu_name
from jobs.bench_markdown import write_section

BEGIN, END = "<!-- bench train: begin -->", "<!-- bench train: end -->"
SIDES = {
    "ours": "ours, packs in memory",
    "loader": "ours, from the loader",
    "trainer": "transformers' Trainer, packs in memory",
}
VERSIONS = ("torch", "transformers", "accelerate")
HEADER = ("", "tokens/s", "least .. most", "tokens/CPU s", "least .. most", "MFU", "data wait", "memory MiB", "x floor")
LOSSES_AGREE = 0.02
"""Relative: the Trainer weighs micro-batches alike, we weigh targets."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0."""
    options = _parser().parse_args(argv)
    if options.child:
        print(json.dumps(_measure(options)))
        return 0
    report = _run(options)
    print(table_text(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.markdown:
        write_section(table_text(report), options.markdown, begin=BEGIN, end=END, heading="## Training")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ov2 bench train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--init", default="tiny", help="tiny, 2b, 4b, 8b, or the folder of a model (tiny)")
    parser.add_argument("--recipe", default="stage1", help="training recipe (stage1)")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="of the recipe"
    )
    parser.add_argument("--pack-tokens", type=int, default=4096, help="tokens of a pack (4096)")
    parser.add_argument("--side-px", type=int, default=392, help="side of a picture (392)")
    parser.add_argument("--packs", type=int, default=8, help="different packs (8)")
    parser.add_argument("--global-batch", type=int, default=2, help="packs of a step (2)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a round (5)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them (2)")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn (3)")
    parser.add_argument("--no-trainer", action="store_true", help="leave transformers' Trainer out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=None, help="of torch, on a CPU (all)")
    parser.add_argument("--loader-workers", type=int, default=2, help="threads that read packs (2)")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--markdown", type=Path, help="replace the training's section of this file")
    parser.add_argument("--child", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from jobs.bench_train_stage import describe, make_stage

    config = _config(options)  # a wrong setting is told before a stage is made
    sides = [side for side in SIDES if side != "trainer" or not options.no_trainer]
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ov2-bench-train-") as folder:
        num_packs = max(options.packs, options.global_batch * (options.steps + options.warm_up))
        stage, _ = make_stage(
            Path(folder), num_packs=num_packs, pack_tokens=options.pack_tokens, side_px=options.side_px
        )
        mix = describe(stage)
        for number in range(options.rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                rounds[side].append(_in_child(options, side, folder))
                print(_progress(side, rounds[side][-1]), file=sys.stderr, flush=True)
    _check_losses(rounds)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [load_before, os.getloadavg()[0]],
        "versions": {name: metadata.version(name) for name in VERSIONS if _is_installed(name)},
        "options": {name: value for name, value in vars(options).items() if isinstance(value, str | int | list)},
        "checkpointing": config.activation_checkpointing,
        "mix": mix,
        "rounds": rounds,
    }


def _config(options: argparse.Namespace) -> Any:
    """The recipe at the bench's batch; activation checkpointing is off unless asked for."""
    from jobs.train_recipes import training
    from ov2_core.config import with_settings

    own = [f"global_batch={options.global_batch}", "activation_checkpointing=false"]
    return with_settings(training(options.recipe), [*own, *options.settings])


def _in_child(options: argparse.Namespace, side: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.bench_train", f"--child={side}", f"--folder={folder}"]
    for name in ("init", "recipe", "packs", "global_batch", "steps", "warm_up", "device", "threads", "loader_workers"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}={value}"]
    command += [f"--set={setting}" for setting in options.settings]
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        raise ValueError(f"the measurement of {side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side, in the child."""
    from ov2_core.model.measure import device_name
    from ov2_core.train.measure import Workload, measure_training

    work = Workload(
        stage=str(options.folder / "STAGE"),
        init=options.init,
        processor=str(options.folder / "processor"),
        steps=options.steps,
        warm_up=options.warm_up,
        packs=options.packs,
        device=options.device,
        num_workers=options.loader_workers,
        threads=options.threads,
    )
    timing = measure_training(options.child, work, _config(options))
    return {
        **dataclasses.asdict(timing),
        "floor_bytes": timing.floor.total,
        "device": device_name(options.device),
    }


def _check_losses(rounds: dict[str, list[dict[str, Any]]]) -> None:
    """Both sides must have trained the same: their first losses are of the same weights and packs.

    Raises:
        ValueError: they differ.
    """
    firsts = {side: found[0]["losses"][0] for side, found in rounds.items()}
    if any(abs(loss / firsts["ours"] - 1) > LOSSES_AGREE for loss in firsts.values()):
        raise ValueError(f"the sides do not train the same: losses of the first step are {firsts}")


def table_text(report: dict[str, Any]) -> str:
    """Provenance, a Markdown table, ratios, and what the memory's floor is made of."""
    options, load, first = report["options"], report["load_average"], report["rounds"]["ours"][0]
    mix = report["mix"]["tokens"]
    total = sum(mix.values())
    kinds = ", ".join(f"{kind} {num / total:.0%}" for kind, num in mix.items())
    lines = [
        f"Measured {report['date']} on {report['cpu']}, {report['usable_cpus']} usable CPUs ({first['device']}); load average "
        f"{load[0]:.1f} before and {load[1]:.1f} after; {', '.join(f'{k} {v}' for k, v in report['versions'].items())}. "
        f"`{options['init']}`, recipe {options['recipe']}{_settings(options)}, {options['global_batch']} packs of "
        f"{options['pack_tokens']:,} tokens a step ({kinds}; pictures of "
        f"{options['side_px']} px; {statistics.mean(first['patches']) / statistics.mean(first['tokens']):.2f} patches and "
        f"{statistics.mean(first['targets']) / statistics.mean(first['tokens']):.2f} targets a token), activation checkpointing "
        f"{'on' if report['checkpointing'] else 'off'}. {options['rounds']} rounds of {options['steps']} steps after "
        f"{options['warm_up']} to warm up, each in a process of its own, sides in turn; medians over all steps.",
        "",
        _line(HEADER),
        _line(["---"] + ["---:"] * (len(HEADER) - 1)),
        *(_line(_row(side, found)) for side, found in report["rounds"].items()),
    ]
    if "trainer" in report["rounds"]:
        wall, cpu = ratios(report, "seconds"), ratios(report, "cpu_seconds")
        lines += [
            "",
            f"Ours against the Trainer, round by round: {_spread(wall)} tokens/s, {_spread(cpu)} tokens/CPU s.",
        ]
    floor = first["floor"]
    lines += ["", f"Floor, {sum(floor.values()) / 2**20:,.0f} MiB: " + _floor(floor) + "."]
    return "\n".join(lines)


def ratios(report: dict[str, Any], clock: str) -> list[float]:
    """The Trainer's median step over ours, of each round."""
    return [
        statistics.median(theirs[clock]) / statistics.median(ours[clock])
        for ours, theirs in zip(report["rounds"]["ours"], report["rounds"]["trainer"], strict=True)
    ]


def _row(side: str, found: list[dict[str, Any]]) -> list[str]:
    steps = [
        (tokens / wall, tokens / cpu, flops / wall / one["peak_flops"], wait / wall)
        for one in found
        for tokens, wall, cpu, flops, wait in zip(
            one["tokens"], one["seconds"], one["cpu_seconds"], one["flops"], one["wait_seconds"], strict=True
        )
    ]
    walls, cpus, mfus, _ = zip(*steps, strict=True)
    waited = sum(sum(one["wait_seconds"]) for one in found) / sum(sum(one["seconds"]) for one in found)
    most = max((one["memory_bytes"] or 0 for one in found), default=0)
    return [
        SIDES[side],
        f"{statistics.median(walls):,.0f}",
        f"{min(walls):,.0f} .. {max(walls):,.0f}",
        f"{statistics.median(cpus):,.0f}",
        f"{min(cpus):,.0f} .. {max(cpus):,.0f}",
        f"{statistics.median(mfus):.1%}",
        f"{waited:.2%}" if side == "loader" else "",
        f"{most / 2**20:,.0f}",
        f"{most / found[0]['floor_bytes']:.2f}",
    ]


def _spread(found: list[float]) -> str:
    return f"{statistics.median(found):.2f} x ({min(found):.2f} .. {max(found):.2f})"


def _floor(floor: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in floor.items())


def _settings(options: dict[str, Any]) -> str:
    return f" with {', '.join(options['settings'])}" if options["settings"] else ""


def _progress(side: str, one: dict[str, Any]) -> str:
    seconds = ", ".join(f"{a:.2f} ({b:.2f} CPU)" for a, b in zip(one["seconds"], one["cpu_seconds"], strict=True))
    return f"{SIDES[side]}: steps of {seconds} s"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
