"""Answers to an evaluation: every item of the truth is scored, means and intervals are taken, oddities are named.

Enters: a suite, its truth, answers. Leaves: an Evaluation, whose `to_json` is what `ov2 eval --json` prints.
"""

import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ov2_core.evals.answers import Predictions
from ov2_core.evals.bootstrap import mean_interval
from ov2_core.evals.item import ItemScore, TruthItem

SHOWN_IDS = 20
"""Ids of one kind that a report names; all are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One kind of question: how truth is read, how a model is asked, how its answer is scored."""

    name: str
    main_metric: str
    prompt: Callable[[Mapping[str, Any]], str]
    """What a model is asked where the row has no `question`; raises ValueError where it must have one."""
    parse_truth: Callable[[Mapping[str, Any]], Any]
    score: Callable[[TruthItem, str | None], ItemScore]
    """Truth and answer (None: there is none) to metrics."""
    timestamp_decimal: int = 1
    """Decimals of the times that a model of our own is shown."""

    def question(self, item: TruthItem) -> str:
        """The row's own question, or the suite's; `choices` that it does not name itself stand below it.

        Raises:
            ValueError: the row has no question and the suite needs one.
        """
        given = item.row.get("question")
        if isinstance(given, str) and given.strip():
            text = given.replace("<video>", "").replace("<image>", "").strip()
            choices = item.row.get("choices")
            if isinstance(choices, list | tuple) and not all(str(choice) in text for choice in choices):
                letters = (
                    f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
                )
                text = "\n".join([text, *letters, "Answer with the letter."])
            return text
        return self.prompt(item.row)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Mean over items, and its interval."""

    value: float
    low: float
    high: float
    num_items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What came out."""

    suite: str
    main_metric: str
    metrics: dict[str, Metric]
    groups: dict[str, dict[str, Metric]]
    """The same by type of item."""
    items: dict[str, ItemScore]
    """By id, in the order of the truth."""
    answers: dict[str, str]
    """By id, those that are used."""
    missing_ids: list[str]
    unreadable_ids: list[str]
    unknown_ids: list[str]
    duplicate_ids: list[str]
    bad_lines: list[str]
    seed: int
    notes: dict[str, Any] = field(default_factory=dict)
    """About the run that answered: model, input, tokens, seconds."""

    def to_json(self, *, with_items: bool = True) -> dict[str, Any]:
        """Plain JSON. Metrics are numbers in [0, 1]; intervals are of 95 %."""
        result: dict[str, Any] = {
            "suite": self.suite,
            "main_metric": self.main_metric,
            "metrics": {name: metric.value for name, metric in self.metrics.items()},
            "intervals_95": {name: [metric.low, metric.high] for name, metric in self.metrics.items()},
            "num_items_of_metric": {name: metric.num_items for name, metric in self.metrics.items()},
            "groups": {
                group: {name: metric.value for name, metric in metrics.items()} | {"num_items": _largest(metrics)}
                for group, metrics in self.groups.items()
            },
            "num_items": len(self.items),
            "num_answered": len(self.items) - len(self.missing_ids),
            "bootstrap_seed": self.seed,
        }
        for name in ("missing_ids", "unreadable_ids", "unknown_ids", "duplicate_ids", "bad_lines"):
            found = getattr(self, name)
            result[f"num_{name.removesuffix('_ids')}"] = len(found)
            result[name] = found[:SHOWN_IDS]
        if self.notes:
            result["run"] = self.notes
        if with_items:
            result["items"] = [
                {"id": id_, "status": item.status, **item.metrics, **item.detail, "prediction": self.answers.get(id_)}
                for id_, item in self.items.items()
            ]
        return result


def evaluate(
    suite: Suite,
    truth: Sequence[TruthItem],
    predictions: Predictions,
    *,
    seed: int = 0,
    notes: Mapping[str, Any] | None = None,
    left_out: Collection[str] = (),
) -> Evaluation:
    """Scores all items. One without an answer counts as wrong; answers to unknown ids count for nothing and are named.

    Args:
        left_out: ids that are known and not scored here (--limit); their answers are nothing odd.

    Raises:
        ValueError: what an item's truth points to (a mask, a video) cannot be read; the item is named.
    """
    items = {item.id: _scored(suite, item, predictions.answers.get(item.id)) for item in truth}
    groups: dict[str, list[ItemScore]] = {}
    for item in items.values():
        for group in item.groups:
            groups.setdefault(group, []).append(item)
    return Evaluation(
        suite=suite.name,
        main_metric=suite.main_metric,
        metrics=_means(list(items.values()), seed),
        groups={name: _means(members, seed) for name, members in sorted(groups.items())},
        items=items,
        answers={id_: text for id_, text in predictions.answers.items() if id_ in items},
        missing_ids=[id_ for id_, item in items.items() if item.status == "missing"],
        unreadable_ids=[id_ for id_, item in items.items() if item.status == "unreadable"],
        unknown_ids=[id_ for id_ in predictions.answers if id_ not in items and id_ not in left_out],
        duplicate_ids=[f"{id_} ({n + 1} times)" for id_, n in Counter(predictions.duplicate_ids).items()],
        bad_lines=list(predictions.bad_lines),
        seed=seed,
        notes=dict(notes or {}),
    )


def _scored(suite: Suite, item: TruthItem, answer: str | None) -> ItemScore:
    try:
        return suite.score(item, answer)
    except ValueError as error:
        raise ValueError(f"item {item.id}: {error}") from None


def _means(items: Sequence[ItemScore], seed: int) -> dict[str, Metric]:
    """Of each metric over the items that have it, in order of first appearance."""
    names = dict.fromkeys(name for item in items for name in item.metrics)
    result = {}
    for name in names:
        values = [item.metrics[name] for item in items if name in item.metrics]
        low, high = mean_interval(values, seed=seed)
        result[name] = Metric(value=sum(values) / len(values), low=low, high=high, num_items=len(values))
    return result


def _largest(metrics: Mapping[str, Metric]) -> int:
    return max((metric.num_items for metric in metrics.values()), default=0)
