"""`ov2 eval` and `ov2 eval-data`: arguments to calls, results to text. torch is imported only where a model answers."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
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
