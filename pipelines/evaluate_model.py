"""Questions to answers to an evaluation: what `ov2 eval` and `ov2 eval-curves` do, without Ray.

Enters: a suite, its truth, and a model folder, a server or a file of predictions. Leaves: answers, evaluations, curves, pages.
torch is imported when a model of our own answers, and not before. Answers stand on disk as they come; the same call goes on with
them.
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ov2_core.config import TokenizerConfig, recipe, with_overrides
from ov2_core.evals.answers import read_predictions, read_truth
from ov2_core.evals.asking import Answerer, ask_all, questions_of
from ov2_core.evals.curves import CurvePoint, curves_json, draw_curves
from ov2_core.evals.evaluate import Evaluation, Suite, evaluate
from ov2_core.evals.item import TruthItem
from ov2_core.evals.suites import suite_named
from ov2_core.evals.token_times import duration_of, evaluate_tokens, token_bins, tokens_of_recipe, tokens_of_run
from ov2_core.report.eval_page import evaluation_page

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """A model folder and how it is asked."""

    folder: str
    device: str | None = None
    dtype: str = "auto"
    max_new_tokens: int = 1024
    overrides: Mapping[str, str] = field(default_factory=dict)


class LoadedModel:
    """A model folder, loaded once, asked in many modes."""

    def __init__(self, options: ModelOptions) -> None:
        from ov2_core.generate import DTYPES, load

        self._options = options
        self._chat = load(options.folder, device=options.device, dtype=DTYPES.get(options.dtype))

    def answerer(self, mode: str, budget: int) -> Answerer:
        """The model in an input mode with a budget."""
        from ov2_core.ask_model import ModelAnswerer

        return ModelAnswerer(
            chat=self._chat,
            name=str(Path(self._options.folder).absolute()),
            mode=mode,  # type: ignore[arg-type]
            budget=budget,
            overrides=self._options.overrides,
            max_new_tokens=self._options.max_new_tokens,
        )


def evaluate_file(
    suite: Suite,
    truth: Sequence[TruthItem],
    predictions: str,
    *,
    seed: int,
    notes: Mapping[str, Any],
    left_out: Collection[str] = (),
) -> Evaluation:
    """Scores a prediction file; lines {id, error} of our own runs are missing answers, not bad lines."""
    found = read_predictions(predictions)
    return evaluate(suite, truth, found, seed=seed, notes=notes, left_out=left_out)


def ask_and_evaluate(
    suite: Suite,
    truth: Sequence[TruthItem],
    answerer: Answerer,
    out: str,
    *,
    seed: int,
    on_answer: Callable[[int, int], None],
    left_out: Collection[str] = (),
) -> Evaluation:
    """Asks what is not answered yet, then scores."""
    summary = ask_all(questions_of(suite, truth), answerer, out, on_answer=on_answer)
    notes = {**answerer.settings(), **summary.to_json()}
    return evaluate_file(suite, truth, out, seed=seed, notes=notes, left_out=left_out)


def tokenizer_of(mode: str, budget: int, overrides: Mapping[str, str]) -> TokenizerConfig:
    """The recipe behind an input mode."""
    name = {"codec": "codec", "evidence": "evidence", "frames": "uniform", "stills": "uniform"}.get(mode)
    if name is None:
        raise ValueError(f"mode must be one of codec, evidence, frames, stills, got {mode!r}")
    return with_overrides(recipe(f"{name}-{budget}"), overrides).tokenizer


def run_curves(
    suite_name: str,
    truth_path: str,
    out: str,
    *,
    answerer_of: Callable[[str, int], Answerer],
    modes: Sequence[str],
    budgets: Sequence[int],
    overrides: Mapping[str, str],
    seed: int = 0,
    limit: int | None = None,
    on_point: Callable[[CurvePoint], None] = lambda point: None,
) -> list[CurvePoint]:
    """The same questions in every mode at every budget; writes OUT/curves.json, curves.svg, report.html and all answers.

    Where the truth knows its clips' events, each point also has the event recall of its tokens.

    Raises:
        ValueError: no modes or budgets, or as the suite, the truth and the answerers say.
    """
    if not modes or not budgets:
        raise ValueError("give at least one mode and one budget")
    suite = suite_named(suite_name)
    whole = read_truth(truth_path, suite.parse_truth)
    truth, left_out = whole[:limit], {item.id for item in whole[limit:]} if limit is not None else set()
    has_events = all("event_boxes_xyxy_px" in item.row for item in truth) and any(
        item.row.get("event_seconds") for item in truth
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    points: list[CurvePoint] = []
    last: Evaluation | None = None
    for mode in modes:
        for budget in budgets:
            answers = folder / f"{mode}-{budget}.jsonl"
            last = ask_and_evaluate(
                suite,
                truth,
                answerer_of(mode, budget),
                str(answers),
                seed=seed,
                on_answer=lambda done, total: None,
                left_out=left_out,
            )
            recalls: dict[str, float] = {}
            tokens = last.notes.get("mean_visual_tokens")
            if has_events and mode != "stills":
                config = tokenizer_of(mode, budget, overrides)
                shown, _ = evaluate_tokens(truth, tokens_of_recipe(config, truth), seed=seed)
                recalls = {name: metric.value for name, metric in shown.metrics.items()}
                tokens = tokens if tokens is not None else shown.notes["mean_tokens"]
            main = last.metrics[suite.main_metric]
            point = CurvePoint(
                mode=mode,
                budget=budget,
                metric=suite.main_metric,
                value=main.value,
                low=main.low,
                high=main.high,
                mean_tokens=float(tokens or 0.0),
                mean_seconds=last.notes.get("mean_seconds"),
                num_items=len(truth),
                num_missing=len(last.missing_ids),
                event_recall=recalls.get("event_recall"),
                strict_event_recall=recalls.get("strict_event_recall"),
                metrics={name: metric.value for name, metric in last.metrics.items()},
            )
            points.append(point)
            on_point(point)
            write_text(folder / "curves.json", json.dumps(curves_json(suite_name, points), indent=2))
    assert last is not None
    title = f"{suite_name}: {suite.main_metric} against visual tokens"
    write_text(folder / "curves.svg", draw_curves(points, title=title))
    write_page(str(folder / "report.html"), last, truth, curves=points)
    return points


def write_page(
    path: str,
    found: Evaluation,
    truth: Sequence[TruthItem],
    *,
    bins: Mapping[str, Sequence[int]] | None = None,
    curves: Sequence[CurvePoint] = (),
) -> None:
    """The report as one HTML file."""
    durations = {item.id: duration_of(item.row) for item in truth if "duration_seconds" in item.row}
    write_text(Path(path), evaluation_page(found, durations=durations, token_bins=bins, curves=curves))


def bins_of_run(run: str, truth: Sequence[TruthItem]) -> dict[str, list[int]]:
    """Tokens over time of a token run's samples, by id."""
    return token_bins(truth, tokens_of_run(run, truth))


def write_text(path: Path, text: str) -> None:
    """At once and whole."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    partial = path.with_name(path.name + ".part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
