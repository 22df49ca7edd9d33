"""The headline in miniature: does a model time jumps better from codec tokens than from uniform frames, at equal visual tokens?

Enters: budgets, seeds, how many clips and steps. Leaves: mAP of JumpScore on held-out clips for each form of input, budget and
seed: `codec` (policy saliency, the published method), `evidence`, `uniform`. All three have the same number of images of the same
area, so of visual tokens. For each of them `tiny` with random weights is trained by the real trainer on the same clips for the same
number of steps, and answers greedily. Two numbers need no model: that of jumps at the training clips' mean rate, whatever is shown,
and the share of true jumps within 0.1 s of a time that the tokens show at all, the most that a perfect reader could find.

Each result is written as soon as it stands, and the same command goes on where it was stopped.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jobs.bench_learn import SETTINGS, build_stage, trained_model
from ov2_core.config import recipe, with_overrides, with_settings
from ov2_core.evals.jump_clips import write_jump_clips
from ov2_core.evals.jumpscore import parse_times, parse_truth, score_times
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos

log = logging.getLogger(__name__)

RECIPES = {"uniform": "uniform", "codec": "codec", "evidence": "evidence"}
BEGIN, END = "<!-- bench headline: begin -->", "<!-- bench headline: end -->"
MAX_NEW_TOKENS = 160
"""Bytes of an answer."""


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench headline`."""
    parser = argparse.ArgumentParser(prog="ov2 bench headline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of clips, runs and results; what is there is used"
    )
    parser.add_argument("--forms", default="uniform,codec,evidence")
    parser.add_argument("--budgets", default="8,16,32", help="images of a clip")
    parser.add_argument("--seeds", default="0,1,2", help="of weights and order; clips are the same for all")
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a clip")
    parser.add_argument("--turns", default="0.6,1.4", help="least and most jumps a second")
    parser.add_argument("--side", type=int, default=84, help="of an image, in px")
    parser.add_argument("--hard", action="store_true", help="moving cameras, occlusion, misses, distraction")
    parser.add_argument("--set", action="append", default=[], help="override a field of the training recipe")
    parser.add_argument("--workers", type=int, default=0, help="of tokenization; 0: in this process")
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = headline(args)
    print(table_text(report))
    if args.markdown is not None:
        from jobs.bench_markdown import write_section

        write_section(table_text(report), args.markdown, begin=BEGIN, end=END)
    return 0


def headline(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores what is not in the work folder yet; the report of all."""
    turns = tuple(float(text) for text in args.turns.split(","))
    clips = {}
    for split, number in (("train", args.clips), ("heldout", args.held_out)):
        folder = args.work / f"{split}-{number}"
        if not (folder / "truth.jsonl").exists():
            write_jump_clips(
                folder,
                num_clips=number,
                split=split,
                seconds=args.seconds,
                width_px=args.side * 2,
                height_px=args.side * 2,
                turns_per_second=turns,
                plain=not args.hard,
            )
        clips[split] = folder
    truth = read_truth(clips["heldout"])
    results = []
    for budget in (int(text) for text in args.budgets.split(",")):
        for form in args.forms.split(","):
            runs = {split: tokenized(folder, form, budget, args) for split, folder in clips.items()}
            stage = args.work / f"stage-{form}-{budget}"
            if not (stage / "stage.json").exists():
                build_stage(stage, [runs["train"]])
            shown = shown_share(runs["heldout"], truth)
            for seed in (int(text) for text in args.seeds.split(",")):
                path = args.work / f"result-{form}-{budget}-{seed}-{args.steps}.json"
                if not path.exists():
                    found = train_and_score(stage, runs["heldout"], truth, path.with_suffix(""), seed=seed, args=args)
                    path.write_text(json.dumps({"form": form, "budget": budget, "seed": seed, "shown": shown, **found}))
                results.append(json.loads(path.read_text()))
                log.info("%s, %d images, seed %d: mAP %.3f", form, budget, seed, results[-1]["mAP"])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} usable CPUs",
        "clips": args.clips,
        "held_out": args.held_out,
        "steps": args.steps,
        "seconds": args.seconds,
        "turns": turns,
        "side": args.side,
        "hard": args.hard,
        "settings": [*SETTINGS, *args.set],
        "regular": regular_score(read_truth(clips["train"]), truth, seconds=args.seconds),
        "results": results,
    }


def tokenized(clips: Path, form: str, budget: int, args: argparse.Namespace) -> Path:
    """RUN of the clips, beside them."""
    run = clips.parent / f"{clips.name}-{form}-{budget}"
    config = with_overrides(
        recipe(f"{RECIPES[form]}-{budget}"), {"area_px": str(args.side**2), "timestamp_decimal": "2"}
    )
    tokenize_videos(str(clips / "manifest.jsonl"), Store(run), config, RunOptions(workers=args.workers, progress="off"))
    return run


def read_truth(clips: Path) -> dict[str, list[float]]:
    """Times of the jumps by clip."""
    lines = map(json.loads, (clips / "truth.jsonl").read_text().splitlines())
    return {line["id"]: parse_truth(line["answer"]) for line in lines}


def train_and_score(
    stage: Path, held_out: Path, truth: dict[str, list[float]], checkpoint: Path, *, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """A model from random weights on a stage, and its mAP on held-out clips."""
    from jobs.train_recipes import training
    from ov2_core.train.metrics import METRICS, read_lines
    from ov2_core.train.train import TrainOptions, train

    began = time.perf_counter()
    settings = [*SETTINGS, f"schedule_steps={args.steps}", "save_every=100", "keep_last=1", *args.set]
    options = TrainOptions(
        stage=str(stage), init="tiny", out=str(checkpoint), max_steps=args.steps, seed=seed, resume=True
    )
    train(with_settings(training("stage1"), settings), options)
    seconds = time.perf_counter() - began
    losses = [line["loss"] for line in read_lines(checkpoint / METRICS)]
    answers = ask(checkpoint, held_out)
    scores = [score_times(parse_times(answers[name]) or [], times) for name, times in truth.items() if name in answers]
    means = {name: statistics.mean(score[name] for score in scores) for name in scores[0]}
    return {**means, "last_loss": statistics.mean(losses[-20:]), "train_seconds": round(seconds, 1), "answers": answers}


def ask(checkpoint: Path, run: Path) -> dict[str, str]:
    """Greedy answers of a trained model to the questions of a token run."""
    from ov2_core.model.answers import greedy_answer

    model, processor = trained_model(checkpoint)
    answers = {}
    with ShardReader(run) as samples:
        for sample in samples:
            encoded = processor.encode(sample, for_generation=True)
            answers[sample.record.provenance.id] = greedy_answer(
                model, processor, encoded, max_new_tokens=MAX_NEW_TOKENS
            )
    return answers


def shown_share(run: Path, truth: dict[str, list[float]], *, tolerance_seconds: float = 0.1) -> float:
    """Share of jumps that some token's time is near."""
    near = total = 0
    with ShardReader(run) as samples:
        for sample in samples:
            assert sample.record.fps is not None
            times = {int(t) / sample.record.fps for t in sample.positions_NP3[..., 0].reshape(-1)}
            for jump in truth[sample.record.provenance.id]:
                total += 1
                near += any(abs(time - jump) <= tolerance_seconds for time in times)
    return near / max(total, 1)


def regular_score(train: dict[str, list[float]], truth: dict[str, list[float]], *, seconds: float) -> float:
    """mAP of jumps at the training clips' mean rate, evenly over the clip."""
    number = max(1, round(statistics.mean(len(times) for times in train.values())))
    guess = [(i + 0.5) * seconds / number for i in range(number)]
    return statistics.mean(score_times(guess, times)["mAP"] for times in truth.values())


def table_text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    by_place: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for result in report["results"]:
        by_place.setdefault((result["budget"], result["form"]), []).append(result)
    seeds = sorted({result["seed"] for result in report["results"]})
    lines = [
        f"Measured {report['date']} on {report['machine']}: {report['clips']} clips of {report['seconds']:g} s at "
        f"{report['side']} x {report['side']} px, {report['turns'][0]:g} to {report['turns'][1]:g} jumps a second, "
        f"{'hard' if report['hard'] else 'plain'}; {report['steps']} steps; {report['held_out']} held-out clips; seeds "
        f"{', '.join(map(str, seeds))}. mAP over 0.1, 0.2 and 0.3 s. Jumps at the mean rate, unseen: {report['regular']:.3f}.",
        "",
        "| images | input | mAP, mean of seeds | each seed | AP@0.1 | tokens near a jump | loss |",
        "| ---: | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for (budget, form), results in by_place.items():
        each = ", ".join(f"{result['mAP']:.3f}" for result in results)
        lines.append(
            f"| {budget} | {form} | {_mean(results, 'mAP'):.3f} | {each} | {_mean(results, 'AP@0.1'):.3f} | "
            f"{_mean(results, 'shown'):.0%} | {_mean(results, 'last_loss'):.3f} |"
        )
    return "\n".join(lines)


def _mean(results: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(result[name] for result in results)


if __name__ == "__main__":
    raise SystemExit(main())
