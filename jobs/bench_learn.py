"""Does it learn? Clips of moving shapes as codec canvases and as uniform frames; `tiny` is trained on each from random weights.

Enters: how many clips and steps. Leaves: for each form of input and each question the share of held-out clips that the model
answers word for word (greedy), with a 95 % interval, beside chance. Everything goes the way of a real run: video files,
`ov2 tokenize`, `ov2 curriculum`, the trainer, a checkpoint, the processor and the full model. The clips are those of
ov2_core/evals/moving_shapes.py.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.bench_markdown import write_section
from ov2_core.config import recipe, with_settings
from ov2_core.data.stage_config import Slot, StageConfig
from ov2_core.evals.moving_shapes import QUESTIONS, write_shape_clips
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from pipelines.build_curriculum import CurriculumOptions, build_curriculum
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos

BEGIN, END = "<!-- bench learn: begin -->", "<!-- bench learn: end -->"
RECIPES = {"codec": "codec", "evidence": "evidence", "frames": "uniform"}
"""Forms of input. At one budget of images all have the same number of visual tokens, 4 an image."""
SEQUENCE_LENGTH = 2048
SETTINGS = (
    "global_batch=5",
    "visual.learning_rate=1.5e-3",
    "connector.learning_rate=1.5e-3",
    "language.learning_rate=1.5e-3",
    "warmup_share=0.05",
    "beta2=0.98",
    "epsilon=1e-8",
    "activation_checkpointing=false",
    "save_every=1000000",
    "epochs=1000",
)
"""Over the recipe's: random weights want larger steps than a trained model."""


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench learn`."""
    parser = argparse.ArgumentParser(prog="ov2 bench learn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", default="codec,frames", help=f"forms of input: {', '.join(RECIPES)}")
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="what is asked of each clip")
    parser.add_argument("--words", action="store_true", help="answers in full; by default their first letters")
    parser.add_argument("--clips", type=int, default=2000, help="to train on")
    parser.add_argument("--joint", action="store_true", help="one model of all forms of input, as the published one")
    parser.add_argument("--budget", type=int, default=8, help="canvases or frames of a clip")
    parser.add_argument("--held-out", type=int, default=200, help="to be judged by")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of clips, weights and order")
    parser.add_argument("--set", action="append", default=[], help="override a field of the training recipe")
    parser.add_argument("--workers", type=int, default=0, help="of tokenization; 0: in this process")
    parser.add_argument("--work", type=Path, help="keep clips, runs and checkpoints here; what is there is used again")
    parser.add_argument(
        "--from-json", type=Path, action="append", help="show reports written before, of one seed, together"
    )
    parser.add_argument("--json", type=Path, help="write the numbers as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    forms = args.input.split(",")
    if unknown := set(forms) - set(RECIPES):
        raise ValueError(f"--input must be of {', '.join(RECIPES)}, got {', '.join(sorted(unknown))}")
    if args.from_json:
        return _show(merged([json.loads(path.read_text()) for path in args.from_json]), args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with _folder(args.work) as folder:
        report = learn(
            folder,
            forms=forms,
            questions=args.questions.split(","),
            num_clips=args.clips,
            num_held_out=args.held_out,
            num_steps=args.steps,
            budget=args.budget,
            seed=args.seed,
            settings=args.set,
            workers=args.workers,
            initials=not args.words,
            joint=args.joint,
        )
    return _show(report, args)


def _show(report: dict[str, Any], args: argparse.Namespace) -> int:
    print(table_text(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.markdown is not None:
        write_section(table_text(report), args.markdown, begin=BEGIN, end=END)
    return 0


def learn(
    folder: Path,
    *,
    forms: Sequence[str],
    questions: Sequence[str],
    num_clips: int,
    num_held_out: int,
    num_steps: int,
    budget: int = 8,
    seed: int = 0,
    settings: Sequence[str] = (),
    workers: int = 0,
    initials: bool = True,
    joint: bool = False,
) -> dict[str, Any]:
    """Trains and judges a model for each form of input, or one for all; the report. `initials`: see write_shape_clips.

    Raises:
        ValueError: an unknown form, question or setting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifests = {}
    for split, number in (("train", num_clips), ("held_out", num_held_out)):
        clips = folder / f"{split}-{number}-{seed}-{'-'.join(questions)}-{'initials' if initials else 'words'}"
        manifests[split] = clips / "manifest.jsonl"
        if not manifests[split].exists():
            write_shape_clips(clips, num_clips=number, split=split, seed=seed, questions=questions, initials=initials)
    found = {}
    for together in [list(forms)] if joint else [[form] for form in forms]:
        began = time.perf_counter()
        names = {form: f"{RECIPES[form]}-{budget}" for form in together}
        runs = {
            (form, split): tokenized(manifest, name, workers=workers)
            for form, name in names.items()
            for split, manifest in manifests.items()
        }
        stage = folder / f"{manifests['train'].parent.name}-{'-'.join(names.values())}-stage"
        build_stage(stage, [runs[form, "train"] for form in together])
        prepared = time.perf_counter()
        checkpoint = folder / f"trained-{'-'.join(together)}-{seed}"
        shutil.rmtree(checkpoint, ignore_errors=True)
        losses = train_tiny(stage, checkpoint, num_steps=num_steps, seed=seed, settings=settings)
        trained = time.perf_counter()
        for form in together:
            answers = judge(checkpoint, runs[form, "held_out"])
            again = judge(checkpoint, runs[form, "train"], limit=num_held_out)
            found[form] = {
                "recipe": names[form],
                "accuracy": {question: accuracy(answers[question], question) for question in questions},
                "accuracy_on_training_clips": {
                    question: accuracy(given, question) for question, given in again.items()
                },
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "prepare_seconds": round(prepared - began, 1),
                "train_seconds": round(trained - prepared, 1),
            }
    return {
        "clips": num_clips,
        "held_out": num_held_out,
        "steps": num_steps,
        "seed": seed,
        "joint": joint,
        "answers": "initials" if initials else "words",
        "settings": [*SETTINGS, *settings],
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} usable CPUs",
        "load_average": round(os.getloadavg()[0], 1),
        "forms": found,
    }


def tokenized(manifest: Path, name: str, *, workers: int = 0) -> Path:
    """RUN of a manifest, beside it."""
    run = manifest.parent.parent / f"{manifest.parent.name}-{name}"
    tokenize_videos(str(manifest), Store(run), recipe(name), RunOptions(workers=workers, progress="off"))
    return run


def build_stage(stage: Path, runs: Sequence[Path], *, texts: Path | None = None, processor: Path | None = None) -> None:
    """STAGE of all samples of token runs.

    Args:
        texts: a file of TrainingRecords beside them.
        processor: folder of the model whose tokenizer counts; by default that of bytes.
    """
    from ov2_core.model.create import open_processor

    model = processor or stage.parent / "processor"
    if processor is None:
        open_processor("tiny").save_pretrained(model)
    sources: list[dict[str, Any]] = []
    for run in runs:
        with ShardReader(run) as samples:
            sources.append({"importer": "token-shards", "path": str(run.resolve()), "count": len(samples)})
    if texts is not None:
        count = len(texts.read_text().splitlines())
        sources.append({"importer": "records", "path": str(texts.resolve()), "count": count})
    slots = []
    for number, source in enumerate(sources):
        source["name"] = f"part-{number}"
        slots.append(
            Slot(
                name=source["name"],
                importers=(source["importer"],),
                published_count=None,
                video_modes=("uniform", "codec"),
            )
        )
    config = StageConfig(
        name="learn", version=1, sequence_length=SEQUENCE_LENGTH, slots=tuple(slots), packs_per_block=4
    )
    listed = stage.parent / f"{stage.name}-sources.yaml"
    listed.write_text(json.dumps({"sources": sources}))  # JSON is YAML
    options = CurriculumOptions(sources=str(listed), model=str(model))
    build_curriculum(Store(stage), config, options, RunOptions(workers=0, progress="off"))


def train_tiny(
    stage: Path, checkpoint: Path, *, num_steps: int, seed: int = 0, settings: Sequence[str] = ()
) -> list[float]:
    """`tiny` from random weights on a stage; the loss of each step."""
    from jobs.train_recipes import training
    from ov2_core.train.metrics import METRICS, read_lines
    from ov2_core.train.train import TrainOptions, train

    config = with_settings(training("stage1"), [*SETTINGS, f"schedule_steps={num_steps}", *settings])
    options = TrainOptions(stage=str(stage), init="tiny", out=str(checkpoint), max_steps=num_steps, seed=seed)
    train(config, options)
    return [line["loss"] for line in read_lines(checkpoint / METRICS)]


def judge(checkpoint: Path, run: Path, *, limit: int | None = None) -> dict[str, list[bool]]:
    """For each question, whether the trained model answers it right, clip by clip of a token run (the first `limit`)."""
    from ov2_core.model.answers import greedy_answers

    model, processor = trained_model(checkpoint)
    answers: dict[str, list[bool]] = {}
    with ShardReader(run) as samples:
        for number, sample in enumerate(samples):
            if number == limit:
                break
            (given,) = greedy_answers(model, processor, [processor.encode(sample)])
            for name, right in zip(sample.record.provenance.tags, given, strict=True):
                answers.setdefault(name, []).append(right)
    return answers


def accuracy(given: Sequence[bool], question: str) -> dict[str, float]:
    """Share of right answers with its 95 % interval (Wilson), and chance: the best that one answer for all clips can expect."""
    low, high = wilson_interval(sum(given), len(given))
    return {"right": sum(given) / len(given), "low": low, "high": high, "chance": 1 / len(QUESTIONS[question][1])}


def wilson_interval(num_right: int, num_all: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share = num_right / num_all
    middle = share + z * z / (2 * num_all)
    spread = z * math.sqrt(share * (1 - share) / num_all + z * z / (4 * num_all * num_all))
    scale = 1 + z * z / num_all
    return (middle - spread) / scale, (middle + spread) / scale


def table_text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    names = list(next(iter(report["forms"].values()))["accuracy"])
    lines = [
        f"Measured {report['date']} on {report['machine']}, load {report['load_average']}: {report['clips']} clips, "
        f"{report['steps']} steps, {'one model of all inputs' if report['joint'] else 'a model each'}, seed {report['seed']}, "
        f"judged on {report['held_out']} held-out clips. Answers are {report['answers']}; "
        "share that greedy decoding gives exactly, with the 95 % interval.",
        "",
        "| input | " + " | ".join(names) + " | loss | train minutes |",
        "| --- |" + " ---: |" * (len(names) + 2),
    ]
    first = next(iter(report["forms"].values()))["accuracy"]
    lines.append("| chance | " + " | ".join(f"{first[name]['chance']:.0%}" for name in names) + " | | |")
    for form, found in report["forms"].items():
        cells = [f"{a['right']:.1%} ({a['low']:.0%} .. {a['high']:.0%})" for a in (found["accuracy"][n] for n in names)]
        losses = f"{found['first_loss']:.2f} -> {found['last_loss']:.3f}"
        lines.append(
            f"| {form} ({found['recipe']}) | {' | '.join(cells)} | {losses} | {found['train_seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reports of several forms of input as one.

    Raises:
        ValueError: they were not trained and judged alike.
    """
    for name in ("clips", "held_out", "steps", "seed", "joint", "answers", "settings"):
        if any(report[name] != reports[0][name] for report in reports):
            raise ValueError(f"reports differ in {name}: {', '.join(str(report[name]) for report in reports)}")
    load = max(report["load_average"] for report in reports)
    return {
        **reports[0],
        "load_average": load,
        "forms": {k: v for report in reports for k, v in report["forms"].items()},
    }


def trained_model(checkpoint: Path) -> tuple[Any, Any]:
    """Model and processor of a run's last checkpoint, by way of its export in float32."""
    from ov2_core.generate import DTYPES, load
    from ov2_core.train.export import export_checkpoint

    folder = checkpoint / "export"
    if not folder.exists():
        export_checkpoint(checkpoint, folder, dtype=DTYPES["float32"])
    chat = load(folder, device="cpu")
    return chat.model, chat.processor


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="ov2-learn-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    raise SystemExit(main())
