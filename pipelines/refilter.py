"""Other thresholds for what was measured once: a plan rewritten, or rows that a filter left out of a run taken into it.

Enters: a plan that no run uses yet, or a finished run, and new thresholds. Leaves: the plan as it would have been with them; or the
run with a round more (ov2_core/rounds.py), of rows that the old thresholds left out and the new ones do not. No source is
probed: the plan holds what was measured. What a run has published stays, whatever the new thresholds say of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from ov2_core import config as configs
from ov2_core.config import RunConfig, with_settings
from ov2_core.filters.config import FilterConfig
from ov2_core.filters.corpus import CorpusRules, corpus_rules
from ov2_core.filters.rules import judge
from ov2_core.make_sample import make_sample, without_cost
from ov2_core.plan import PlanWriter, iter_plan_quarantine, iter_plan_rows_by_line, load_plan, planned_text, remove_plan
from ov2_core.plan_totals import PlanTotals
from ov2_core.prediction import predict
from ov2_core.rounds import RoundWriter
from ov2_core.storage.commit import committed_shards
from ov2_core.storage.files import Store
from pipelines.options import RunOptions, session
from pipelines.run_identity import load_run_record
from pipelines.run_rounds import RoundSummary, create_round, open_run, planning_config
from pipelines.tokenize_videos import Make, complete_run
from schemas.shard import PlannedRow, PlanRecord


@dataclass(kw_only=True, slots=True)
class FilterCounts:
    """What thresholds say of rows: of a plan all, of a run those that were filtered."""

    config: FilterConfig
    kept: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    """By rule."""
    published_against: Counter[str] = field(default_factory=Counter)
    """By rule, rows of a run that were kept and would not be now. They stay. Lists and near-duplicates are not asked of them."""


def refilter_plan(store: Store, settings: list[str]) -> PlanRecord:
    """Writes a plan anew with other thresholds. Shards are cut anew, nothing is probed.

    settings: "max_fps=60" or "filter.max_fps=60", on top of the plan's own.

    Raises:
        ValueError: no plan; a run was made from it; or the thresholds ask for what was not measured.
    """
    plan, config = _open_plan(store, settings)
    if load_run_record(store) is not None:
        raise ValueError(f"{store.root} holds a run already; its filtered rows can only be taken into it")
    counts = FilterCounts(config=config.filter)
    with PlanWriter(store) as writer, corpus_rules(config.filter) as rules:
        totals = PlanTotals(writer, config.shards)
        for fallen in iter_plan_quarantine(store):
            writer.quarantine(fallen)
        for row in _judged(iter_plan_rows_by_line(store), config, rules, counts):
            totals.add(planned_text(row))
        identity = {"config": configs.to_dict(config), "config_digest": configs.digest(config)}
        record = plan.model_copy(update={**identity, **totals.finish()})
        remove_plan(store)
        return writer.finish(record)


def refilter_run(
    store: Store, settings: list[str], options: RunOptions, *, make: Make = make_sample
) -> tuple[RoundSummary, FilterCounts]:
    """Takes into a finished run the rows that its filter left out and other thresholds do not: a round of new shards.

    A round that was cut off is finished, and no new one begun. The new thresholds hold for later rounds, too.

    Raises:
        ValueError: see run_rounds.open_run; or the thresholds ask for what was not measured.
        RunStoppedError: see tokenize_videos.
    """
    rounds, here, config = open_run(store)
    planning = _changed(planning_config(config, rounds), settings)
    counts = FilterCounts(config=planning.filter)
    num_missing = rounds.num_shards - len(committed_shards(store))
    record = None
    with session(options):
        if not num_missing:
            with RoundWriter(rounds) as writer, corpus_rules(planning.filter, rounds.iter_kept()) as rules:
                totals = PlanTotals(writer.plan, config.shards, first_shard=rounds.num_shards)
                for row in _judged(rounds.iter_filtered(), planning, rules, counts):
                    if row.filtered is None:
                        totals.add(planned_text(row))
                planned = rounds.plan.model_copy(
                    update={
                        "manifest_digest": "",
                        "manifest_rows": counts.kept,
                        "num_quarantined": 0,
                        **totals.finish(),
                    }
                )
                if counts.kept:
                    record = create_round(writer, planned, rounds, kind="refilter", filter=planning.filter)
        tokenized = complete_run(store, here, config, options, make=make)
    return (
        RoundSummary(record=record, num_finished_before=num_missing, num_not_replayable=0, tokenized=tokenized),
        counts,
    )


def count_refiltered(store: Store, settings: list[str]) -> FilterCounts:
    """What other thresholds would say; nothing is written.

    Raises:
        ValueError: see refilter_plan and refilter_run.
    """
    if load_run_record(store) is None:
        _, config = _open_plan(store, settings)
        counts = FilterCounts(config=config.filter)
        with corpus_rules(config.filter) as rules:
            for _ in _judged(iter_plan_rows_by_line(store), config, rules, counts):
                pass
        return counts
    rounds, _, config = open_run(store)
    config = _changed(planning_config(config, rounds), settings)
    counts = FilterCounts(config=config.filter)
    with corpus_rules(config.filter, rounds.iter_kept()) as rules:
        for _ in _judged(rounds.iter_filtered(), config, rules, counts):
            pass
    against = (judge(row, config.filter) for row in rounds.iter_kept())
    counts.published_against.update(found.rule for found in against if found is not None)
    return counts


def _judged(
    rows: Iterable[PlannedRow], config: RunConfig, rules: CorpusRules | None, counts: FilterCounts
) -> Iterator[PlannedRow]:
    """The rows as the thresholds leave them, what they would cost included."""
    for row in rows:
        cost = predict(row.probe, config.tokenizer)
        fresh = row.model_copy(
            update={
                "shard": 0,
                "filtered": None,
                "predicted_tokens": cost.tokens,
                "predicted_bytes": cost.bytes,
                "predicted_cpu_seconds": cost.cpu_seconds,
            }
        )
        found = judge(fresh, config.filter)
        judged = fresh if found is None else without_cost(fresh, found)
        if rules is not None:
            judged = rules.judge(judged)
        if judged.filtered is None:
            counts.kept += 1
        else:
            counts.filtered[judged.filtered.rule] += 1
        yield judged


def _open_plan(store: Store, settings: list[str]) -> tuple[PlanRecord, RunConfig]:
    plan = load_plan(store)
    if plan is None or plan.config is None:
        raise ValueError(f"{store.root} holds no plan of `ov2 plan`; make one first")
    return plan, _changed(TypeAdapter(RunConfig).validate_python(plan.config), settings)


def _changed(config: RunConfig, settings: list[str]) -> RunConfig:
    if not settings:
        raise ValueError("give at least one threshold, e.g. --set filter.min_duration_seconds=1")
    return replace(config, filter=with_settings(config.filter, [text.removeprefix("filter.") for text in settings]))
