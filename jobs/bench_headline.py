"""The headline in miniature: does a model time jumps better from codec tokens than from uniform frames, at equal visual tokens?

Enters: budgets, seeds, how many clips and steps. Leaves: mAP of JumpScore on held-out clips for each form of input, budget and
seed: `codec` (policy saliency, the published method), `evidence`, `uniform`; a table and figures. At one budget all three have the
same number of images of the same area, so of visual tokens. As in the published system one model reads them all, and learns from
pictures and few frames before many: for each seed a model with random weights (ov2_core/model/miniature.py) is trained by the real
trainer on stills of the rope and the clips in every form at the first budgets, then on stills and the same clips in every form at
every budget, and answers greedily. Three numbers say what an answer is worth: the score of jumps at the training clips' mean rate,
whatever is shown; that of the answers given to another clip; and the share of true jumps within 0.1 s of a time that the tokens
show at all.

Each result is written as soon as it stands, and the same command goes on where it was stopped. Seeds may be trained side by side by
several commands on one folder whose data stand: `--seeds none` makes them.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from jobs.bench_learn import SETTINGS, build_stage, trained_model
from jobs.bench_markdown import write_section
from ov2_core.config import recipe, with_overrides, with_settings
from ov2_core.evals.bootstrap import mean_interval
from ov2_core.evals.curves import CurvePoint, draw_curves
from ov2_core.evals.jump_dataset import write_jump_clips
from ov2_core.evals.jump_stills import QUESTION, write_jump_stills
from ov2_core.evals.jumpscore import PROMPT, parse_times, score_times
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos

log = logging.getLogger(__name__)

FORMS = ("uniform", "codec", "evidence")
"""Recipes are named after them."""
BEGIN, END = "<!-- bench headline: begin -->", "<!-- bench headline: end -->"
DECIMALS = 1
"""Of all times that the model reads and writes; truth that it is scored by is exact."""
MAX_NEW_TOKENS = 40
CLIPS_A_PART = 100
Truth = Mapping[str, Sequence[float]]


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench headline`."""
    parser = argparse.ArgumentParser(prog="ov2 bench headline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of clips, runs and results; what is there is used"
    )
    parser.add_argument("--forms", default="uniform,codec,evidence")
    parser.add_argument("--budgets", default="4,8,16", help="images of a clip")
    parser.add_argument("--seeds", default="0,1,2", help="of weights and order; none: only make the data")
    parser.add_argument("--clips", type=int, default=1400)
    parser.add_argument("--stills", type=int, default=12000)
    parser.add_argument("--held-out", type=int, default=150)
    parser.add_argument("--first-budgets", default="4,8", help="images of a clip in the first stage")
    parser.add_argument("--first-steps", type=int, default=800, help="on stills and the first budgets")
    parser.add_argument("--steps", type=int, default=800, help="on stills and all budgets, after these")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a clip")
    parser.add_argument("--turns", default="0.7,1.4", help="least and most jumps a second")
    parser.add_argument("--side", type=int, default=84, help="of an image, in px")
    parser.add_argument("--hard", action="store_true", help="moving cameras, occlusion, misses, distraction")
    parser.add_argument("--set", action="append", default=[], help="override a field of the training recipe")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw and tokenize; 0: this one")
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    parser.add_argument("--figures", type=Path, help="folder for figures of the result (SVG)")
    args = parser.parse_args(None if argv is None else list(argv))
    if unknown := set(args.forms.split(",")) - set(FORMS):
        raise ValueError(f"--forms must be of {', '.join(FORMS)}, got {', '.join(sorted(unknown))}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = headline(args)
    if not report["results"]:
        return 0
    print(table_text(report))
    if args.markdown is not None:
        write_section(table_text(report), args.markdown, begin=BEGIN, end=END)
    if args.figures is not None:
        write_figures(report, args.figures)
    return 0


def headline(args: argparse.Namespace) -> dict[str, Any]:
    """Makes, trains and scores what is not in the work folder yet; the report of all."""
    budgets = sorted(int(text) for text in args.budgets.split(","))
    places = [(form, budget) for budget in budgets for form in args.forms.split(",")]
    first = {int(text) for text in args.first_budgets.split(",")}
    stages, processor = (args.work / "stage-first", args.work / "stage"), args.work / "model-0"
    clips = {split: drawn(split, number, args) for split, number in (("train", args.clips), ("heldout", args.held_out))}
    runs = {
        split: {place: tokenized(folder, *place, args) for place in places}
        for split, folder in clips.items()
        if args.seeds == "none" or split == "heldout" or not all((s / "stage.json").exists() for s in stages)
    }
    stills = stills_run(args)
    seeds = [] if args.seeds == "none" else [int(text) for text in args.seeds.split(",")]
    for seed in {0, *seeds}:
        write_model(args.work / f"model-{seed}", seed, args)
    for stage in stages:
        if not (stage / "stage.json").exists():
            shown = places if stage == stages[1] else [place for place in places if place[1] in first]
            build_stage(stage, [stills, *(runs["train"][place] for place in shown)], processor=processor)
    truth = read_truth(clips["heldout"])
    results = []
    for seed in seeds:
        path = args.work / f"result-{seed}-{args.first_steps}-{args.steps}.json"
        if not path.exists():
            path.write_text(json.dumps(train_and_ask(stages, runs["heldout"], path.with_suffix(""), seed, args)))
        found = json.loads(path.read_text())
        for form, budget in places:
            scored = {
                "seed": seed,
                "form": form,
                "budget": budget,
                **scores(found["answers"][f"{form}-{budget}"], truth),
            }
            results.append({**scored, "train_seconds": found["train_seconds"], "last_loss": found["last_loss"]})
            log.info("%s, %d images, seed %d: mAP %.3f", form, budget, seed, scored["mAP"])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} usable CPUs",
        "clips": args.clips,
        "stills": args.stills,
        "held_out": args.held_out,
        "first_budgets": sorted(first),
        "steps": [args.first_steps, args.steps],
        "seconds": args.seconds,
        "turns": [float(text) for text in args.turns.split(",")],
        "side": args.side,
        "hard": args.hard,
        "settings": [*SETTINGS, *_settings(args)],
        "jumps": statistics.mean(map(len, truth.values())),
        "regular": regular_score(read_truth(clips["train"]), truth, seconds=args.seconds),
        "shown": {f"{f}-{b}": shown_share(run, truth) for (f, b), run in runs["heldout"].items()},
        "tokens": {f"{f}-{b}": mean_tokens(run) for (f, b), run in runs["heldout"].items()},
        "results": results,
    }


# -------------------------------------------------------------------------------- data


def drawn(split: str, number: int, args: argparse.Namespace) -> Path:
    """Folder of clips with manifest.jsonl and truth.jsonl, drawn in parts side by side."""
    folder: Path = args.work / f"{split}-{number}"
    if (folder / "truth.jsonl").exists():
        return folder
    least, most = (float(text) for text in args.turns.split(","))
    options = {
        "split": split, "seconds": args.seconds, "width_px": args.side * 2, "height_px": args.side * 2,
        "turns_per_second": (least, most), "plain": not args.hard, "timestamp_decimal": DECIMALS,
    }  # fmt: skip
    sizes = [min(CLIPS_A_PART, number - first) for first in range(0, number, CLIPS_A_PART)]
    parts = [(folder / f"part-{part}", {**options, "seed": part, "num_clips": size}) for part, size in enumerate(sizes)]
    if args.workers:
        with ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_draw_part, parts))
    else:
        list(map(_draw_part, parts))
    for name in ("manifest.jsonl", "truth.jsonl"):
        lines = []
        for part, _ in parts:
            rows = map(json.loads, (part / name).read_text().splitlines())
            lines += [json.dumps({**row, "video": f"{part.name}/{row['video']}"}) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def _draw_part(part: tuple[Path, dict[str, Any]]) -> None:
    write_jump_clips(part[0], **part[1])


def stills_run(args: argparse.Namespace) -> Path:
    """RUN of the stills."""
    folder = args.work / f"stills-{args.stills}"
    if not (folder / "manifest.jsonl").exists():
        least, most = (float(text) for text in args.turns.split(","))
        write_jump_stills(
            folder, num_stills=args.stills, split="train", seconds=args.seconds, width_px=args.side * 2,
            height_px=args.side * 2, turns_per_second=(least, most), plain=not args.hard,
        )  # fmt: skip
    return _tokens(folder, args.work / f"{folder.name}-tokens", "stills", args)


def tokenized(clips: Path, form: str, budget: int, args: argparse.Namespace) -> Path:
    """RUN of the clips, beside them."""
    return _tokens(clips, clips.parent / f"{clips.name}-{form}-{budget}", f"{form}-{budget}", args)


def _tokens(folder: Path, run: Path, name: str, args: argparse.Namespace) -> Path:
    settings = {"area_px": str(args.side**2), "timestamp_decimal": str(DECIMALS)}
    done = run / "headline-done"
    if not done.exists():
        options = RunOptions(workers=args.workers, progress="off")
        tokenize_videos(str(folder / "manifest.jsonl"), Store(run), with_overrides(recipe(name), settings), options)
        done.touch()
    return run


def read_truth(clips: Path) -> dict[str, list[float]]:
    """Exact times of the jumps by clip."""
    lines = map(json.loads, (clips / "truth.jsonl").read_text().splitlines())
    return {line["id"]: line["event_seconds"] for line in lines}


def write_model(folder: Path, seed: int, args: argparse.Namespace) -> None:
    """A model with random weights whose tokenizer knows the questions and every time of a clip."""
    from ov2_core.model.miniature import write_miniature

    if (folder / "tokenizer.json").exists():
        return
    step = 10**-DECIMALS
    times = [f"{index * step:.{DECIMALS}f}" for index in range(round((args.seconds + 0.5) / step))]
    texts = ["system\nYou are a helpful assistant.", f"user\n{PROMPT}", f"user\n{QUESTION}", "assistant\n[0.0, 0.1]"]
    write_miniature(folder, [*texts, *times, *(f"<{time} seconds>" for time in times)], seed=seed)


# -------------------------------------------------------------------------------- training and answers


def _settings(args: argparse.Namespace) -> list[str]:
    """Of training, over those of `ov2 bench learn`."""
    rates = [f"{part}.learning_rate=1e-3" for part in ("visual", "connector", "language")]
    return [*rates, "global_batch=4", "micro_batch=4", *args.set]


def train_and_ask(
    stages: Sequence[Path], held_out: Mapping[tuple[str, int], Path], folder: Path, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """A model from random weights on one stage after the other; its answers to the held-out clips in every form."""
    from jobs.train_recipes import training
    from ov2_core.train.metrics import METRICS, read_lines
    from ov2_core.train.train import TrainOptions, train

    init, losses = args.work / f"model-{seed}", {}
    began = time.perf_counter()
    for stage, steps in zip(stages, (args.first_steps, args.steps), strict=True):
        # The rate shall not fall while nothing is learned: of the first stage's cosine only the first half is walked.
        schedule = f"schedule_steps={2 * steps if stage == stages[0] else steps}"
        settings = [*SETTINGS, "save_every=100", "keep_last=1", schedule, *_settings(args)]
        checkpoint = folder / stage.name
        options = TrainOptions(
            stage=str(stage), init=str(init), out=str(checkpoint), max_steps=steps, seed=seed, resume=True
        )
        train(with_settings(training("stage1"), settings), options)
        trained_model(checkpoint)
        init = checkpoint / "export"
        losses[stage.name] = statistics.mean([line["loss"] for line in read_lines(checkpoint / METRICS)][-50:])
    return {
        "train_seconds": round(time.perf_counter() - began, 1),
        "last_loss": losses,
        "answers": {f"{form}-{budget}": ask(checkpoint, run) for (form, budget), run in held_out.items()},
    }


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


# -------------------------------------------------------------------------------- scores


def scores(answers: Mapping[str, str], truth: Truth) -> dict[str, Any]:
    """Means over clips, the interval of mAP, and mAP of each answer held against the next clip."""
    names = list(truth)
    told = {name: parse_times(answers.get(name, "")) or [] for name in names}
    items = [score_times(told[name], truth[name]) for name in names]
    other = [score_times(told[name], truth[names[i - 1]])["mAP"] for i, name in enumerate(names)]
    means = {metric: statistics.mean(item[metric] for item in items) for metric in items[0]}
    values = [item["mAP"] for item in items]
    return {**means, "interval": mean_interval(values), "values": values, "other_clip": statistics.mean(other)}


def regular_score(train: Truth, truth: Truth, *, seconds: float) -> float:
    """mAP of jumps at the training clips' mean rate, evenly over the clip."""
    number = max(1, round(statistics.mean(len(times) for times in train.values())))
    guess = [(i + 0.5) * seconds / number for i in range(number)]
    return statistics.mean(score_times(guess, times)["mAP"] for times in truth.values())


def shown_share(run: Path, truth: Truth, *, tolerance_seconds: float = 0.1) -> float:
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


def mean_tokens(run: Path) -> float:
    """Visual tokens of a clip; blocks of 2 x 2 patches."""
    with ShardReader(run) as samples:
        return statistics.mean(sample.positions_NP3.shape[0] * sample.positions_NP3.shape[1] / 4 for sample in samples)


# -------------------------------------------------------------------------------- table and figures


def table_text(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    seeds = sorted({result["seed"] for result in report["results"]})
    lines = [
        f"Measured {report['date']} on {report['machine']}: {report['clips']} clips of {report['seconds']:g} s at "
        f"{report['side']} x {report['side']} px, {report['turns'][0]:g} to {report['turns'][1]:g} jumps a second, "
        f"{'hard' if report['hard'] else 'plain'}, and {report['stills']} stills; "
        f"{report['steps'][0]} steps on stills and {' and '.join(map(str, report['first_budgets']))} images, "
        f"then {report['steps'][1]} on all; "
        f"{report['held_out']} held-out clips with {report['jumps']:.2f} jumps each; seeds {', '.join(map(str, seeds))}. "
        f"mAP over 0.1, 0.2 and 0.3 s. Jumps at the mean rate, unseen: {report['regular']:.3f}.",
        "",
        "| images | tokens | input | mAP | each seed | AP@0.1 | answers to another clip | jumps near a token |",
        "| ---: | ---: | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for (budget, form), results in by_place(report).items():
        each = ", ".join(f"{result['mAP']:.3f}" for result in results)
        place = f"{form}-{budget}"
        lines.append(
            f"| {budget} | {report['tokens'][place]:.0f} | {form} | {_mean(results, 'mAP'):.3f} | {each} | "
            f"{_mean(results, 'AP@0.1'):.3f} | {_mean(results, 'other_clip'):.3f} | {report['shown'][place]:.0%} |"
        )
    differences = _differences(report)
    if differences:
        lines += [
            "",
            "Against uniform frames of the same budget, clip by clip, over all seeds (95 % interval over clips):",
            "",
        ]
        lines += [f"- {text}" for text in differences]
    return "\n".join(lines)


def by_place(report: Mapping[str, Any]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Results of all seeds by (budget, form)."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for result in sorted(report["results"], key=lambda result: (result["budget"], result["seed"])):
        found.setdefault((result["budget"], result["form"]), []).append(result)
    return found


def _differences(report: Mapping[str, Any]) -> list[str]:
    places, texts = by_place(report), []
    for (budget, form), results in places.items():
        if form == "uniform" or (budget, "uniform") not in places:
            continue
        pairs = zip(_values(results), _values(places[budget, "uniform"]), strict=True)
        values = [own - uniform for own, uniform in pairs]
        low, high = mean_interval(values)
        texts.append(f"{form}, {budget} images: {statistics.mean(values):+.3f} ({low:+.3f} .. {high:+.3f})")
    return texts


def _values(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """mAP of each clip, the mean over seeds."""
    return [statistics.mean(of_clip) for of_clip in zip(*(result["values"] for result in results), strict=True)]


def _mean(results: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.mean(result[name] for result in results)


def write_figures(report: Mapping[str, Any], folder: Path) -> None:
    """headline.svg (mAP against visual tokens) and shown.svg (share of jumps near a token), bars over clips."""
    folder.mkdir(parents=True, exist_ok=True)
    points = []
    for (budget, form), results in by_place(report).items():
        low, high = mean_interval(_values(results))
        points.append(
            CurvePoint(
                mode="frames" if form == "uniform" else form,
                budget=budget,
                metric="mAP",
                value=_mean(results, "mAP"),
                low=low,
                high=high,
                mean_tokens=report["tokens"][f"{form}-{budget}"],
                mean_seconds=None,
                num_items=report["held_out"],
                num_missing=0,
                event_recall=report["shown"][f"{form}-{budget}"],
            )
        )
    title = f"Jump times of held-out clips, {len({result['seed'] for result in report['results']})} seeds"
    (folder / "headline.svg").write_text(draw_curves(points, title=title))
    shown = draw_curves(points, title="Jumps within 0.1 s of a token", field="event_recall", y_label="share of jumps")
    (folder / "shown.svg").write_text(shown)


if __name__ == "__main__":
    raise SystemExit(main())
