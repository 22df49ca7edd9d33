"""`ov2 eval` and `ov2 eval-data`: arguments to calls, results to text. torch is imported only where a model answers."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import typer

from ov2_core.evals.evaluate import Evaluation

SuiteName = Literal["jumpscore"]


def add_eval_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""

    @app.command("eval")
    def eval_(
        suite: Annotated[SuiteName, typer.Option(help="What is asked.")],
        truth: Annotated[Path, typer.Option(help="JSON lines {id, answer}; CSV and Parquet too.")],
        predictions: Annotated[Path | None, typer.Option(help="JSON lines {id, prediction}, of any model.")] = None,
        seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    ) -> None:
        """Score answers: means over items with 95 % intervals. A missing answer counts as wrong."""
        with errors():
            from ov2_core.evals.answers import read_predictions, read_truth
            from ov2_core.evals.evaluate import evaluate
            from ov2_core.evals.suites import suite_named

            chosen = suite_named(suite)
            items = read_truth(truth, chosen.parse_truth)
            if predictions is None:
                raise ValueError("give --predictions")
            found = evaluate(chosen, items, read_predictions(predictions), seed=seed)
            print(json.dumps(found.to_json(), indent=2) if as_json else evaluation_text(found))

    data_app = typer.Typer(help="Data for evaluations, with truth known because it is made.", no_args_is_help=True)
    app.add_typer(data_app, name="eval-data")

    @data_app.command("jumpscore")
    def jumpscore_data(
        out: Annotated[Path, typer.Option(help="Folder for the clips, manifest.jsonl and truth.jsonl.")],
        clips: Annotated[int, typer.Option(help="How many.", min=1)],
        split: Annotated[
            Literal["train", "heldout"], typer.Option(help="They share no seed, clothes, sizes, rates or grain.")
        ] = "train",
        seed: Annotated[int, typer.Option(help="Of the first clip, in millions.", min=0)] = 0,
        seconds: Annotated[float, typer.Option(help="Of a clip.", min=0.1)] = 8.0,
        width: Annotated[int, typer.Option(help="Pixels.", min=48)] = 640,
        height: Annotated[int, typer.Option(help="Pixels.", min=48)] = 360,
        fps: Annotated[str | None, typer.Option(help="30 or 30000/1001; by default one of the split's rates.")] = None,
        tempo: Annotated[tuple[float, float], typer.Option(help="Least and most turns a second.")] = (1.4, 3.2),
        plain: Annotated[
            bool, typer.Option("--plain", help="A standing camera, one figure, no miss, nothing in the way.")
        ] = False,
    ) -> None:
        """Make JumpScore-like clips: rope jumpers with event times exact to a frame."""
        with errors():
            from ov2_core.evals.jump_clips import write_jump_clips

            try:
                rate = Fraction(fps) if fps is not None else None
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"--fps must be a number or a fraction such as 30000/1001, got {fps!r}") from None

            def show(number: int) -> None:
                if number % 20 == 0:
                    print(f"{number} of {clips} clips", file=sys.stderr)

            manifest, truth = write_jump_clips(
                out, num_clips=clips, split=split, seed=seed, on_clip=show, seconds=seconds, width_px=width,
                height_px=height, fps=rate, turns_per_second=tempo, plain=plain,
            )  # fmt: skip
            print(f"{clips} clips\nmanifest: {manifest}\ntruth:    {truth}")


def evaluation_text(found: Evaluation) -> str:
    """Metrics as lines, then what was odd."""
    width = max(len(name) for name in found.metrics)
    lines = [
        f"{found.suite}: {len(found.items)} items, {len(found.items) - len(found.missing_ids)} answered",
        *(
            f"  {name:<{width}}  {metric.value:.4f}  [{metric.low:.4f}, {metric.high:.4f}]"
            + (f"  {metric.num_items} items" if metric.num_items != len(found.items) else "")
            for name, metric in found.metrics.items()
        ),
    ]
    for name, metrics in found.groups.items():
        shown = ", ".join(f"{key} {metric.value:.4f}" for key, metric in list(metrics.items())[:3])
        lines.append(f"  {name}: {shown} ({max(metric.num_items for metric in metrics.values())} items)")
    for title, named in (
        ("missing, counted as wrong", found.missing_ids),
        ("unreadable, counted as wrong", found.unreadable_ids),
        ("answers to unknown ids, not counted", found.unknown_ids),
        ("ids answered more than once, the first counts", found.duplicate_ids),
        ("lines that are no prediction", found.bad_lines),
    ):
        if named:
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            lines.append(f"{title}: {len(named)} ({', '.join(named[:5])}{more})")
    return "\n".join(lines)
