"""What a run came to: totals, throughput, plan against outcome, what was left out, distributions, samples to show.

Enters: the store of a run, finished or not. Leaves: a RunSummary. Commits are read one after the other; what is kept of a
sample are a few numbers, of a reason a few examples.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ov2_core.plan import load_plan
from ov2_core.report.histogram import Histogram, count_categories, count_numbers
from ov2_core.rounds import Rounds, list_rounds
from ov2_core.storage.commit import iter_commits, load_commit
from ov2_core.storage.files import Store
from ov2_core.storage.layout import RUN_JSON, tar_rel
from ov2_core.storage.reader import StoredSample
from schemas.run import RunRecord
from schemas.shard import CommitRecord, CommittedSample, FilteredRow, PlanRecord, QuarantineRow

MAX_PLAN_ROWS = 100_000
"""Above it the plan's totals are compared with the outcome, not the predictions of the committed rows alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A planned quantity and what it came to."""

    name: str
    unit: Literal["seconds", "bytes", "count"]
    predicted: float
    actual: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    line: int
    id: str | None
    uri: str | None
    message: str


@dataclass(kw_only=True, slots=True)
class LeftOut:
    """Rows that fell for one reason, or to one rule; the examples are those of the lowest lines."""

    name: str
    detail: str = ""
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSample:
    """A sample chosen for the report, and where it lies."""

    shard: int
    sample: CommittedSample


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    root: str
    run: RunRecord | None
    plan: PlanRecord | None
    manifest_rows: int
    committed: int
    filtered: int
    quarantined: int
    pending: int
    """Planned rows whose shard is not committed yet."""
    num_shards: int
    num_shards_committed: int
    num_images: int
    num_groups: int
    num_tokens: int
    tar_bytes: int
    sample_bytes: int
    video_seconds: float
    wall_seconds: float
    """Time in which at least one shard was in work: pauses between a kill and the resume do not count."""
    cpu_seconds: float
    peak_rss_bytes: int
    predictions: list[Prediction]
    quarantine: list[LeftOut]
    filter_rules: list[LeftOut]
    histograms: list[Histogram]
    notes: list[str]
    shown: list[ShownSample]


def collect_run(store: Store, *, num_samples: int = 6, num_examples: int = 5) -> RunSummary:
    """Read a run's records.

    Args:
        num_samples: how many samples are chosen, evenly over the manifest's order; the same run gives the same ones.
        num_examples: examples of a reason or a rule.

    Raises:
        ValueError: there is no run at the store's root, or an argument is out of range.
    """
    if not 0 <= num_samples <= 32:
        raise ValueError(f"num_samples must be in 0..32, got {num_samples}")
    run = _load_run(store)
    plan = load_plan(store)
    tally = _Tally(num_examples)
    rounds = None if plan is None else Rounds(store, plan, list_rounds(store))
    for number in range(len(rounds.records) + 1 if rounds else 0):
        assert rounds is not None
        for row in rounds.fallen(number):
            if not rounds.is_history(row.line, number):
                tally.add_quarantined(row)
    for commit in iter_commits(store):
        filtered = commit.filtered if rounds is None else rounds.filtered_of(commit)
        tally.add_commit(commit, filtered, commit.quarantined if rounds is None else rounds.quarantined_of(commit))
    if run is None and plan is None and not tally.num_shards:
        raise ValueError(f"no run at {store.root}: expected {RUN_JSON}, plan/ or commits/ there; is the path right?")

    notes: list[str] = []
    predicted = _predict_committed(rounds, tally, notes)
    accounted = len(tally.lines) + tally.filtered + tally.quarantined
    manifest_rows = rounds.manifest_rows if rounds else accounted
    return RunSummary(
        root=store.root,
        run=run,
        plan=plan,
        manifest_rows=manifest_rows,
        committed=len(tally.lines),
        filtered=tally.filtered,
        quarantined=tally.quarantined,
        pending=max(0, manifest_rows - accounted),
        num_shards=rounds.num_shards if rounds else tally.num_shards,
        num_shards_committed=tally.num_shards,
        num_images=tally.num_images,
        num_groups=int(sum(tally.groups)),
        num_tokens=int(sum(tally.tokens)),
        tar_bytes=tally.tar_bytes,
        sample_bytes=int(sum(tally.bytes)),
        video_seconds=float(sum(tally.durations)),
        wall_seconds=_covered_seconds(tally.spans),
        cpu_seconds=float(sum(tally.cpu)),
        peak_rss_bytes=int(max(tally.rss, default=0)),
        predictions=predicted,
        quarantine=tally.reasons(),
        filter_rules=tally.rules(),
        histograms=tally.histograms(),
        notes=notes,
        shown=_choose(store, tally, num_samples),
    )


def read_sample(store: Store, shown: ShownSample) -> StoredSample:
    """One committed sample by one range read; needs no index, so it works while the run goes on."""
    sample, name = shown.sample, tar_rel(shown.shard)
    data = store.read_range(name, sample.byte_offset, sample.byte_offset + sample.byte_size)
    starts = [part.content_byte_offset - sample.byte_offset for part in sample.parts]
    members = [
        (part.name, data[start : start + part.content_byte_size])
        for part, start in zip(sample.parts, starts, strict=True)
    ]
    return StoredSample(key=sample.key, tar_name=name, members=members)


class _Tally:
    """Running numbers; arrays instead of lists, so that a million samples cost tens of MB."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples
        self.lines, self.shards, self.groups, self.tokens = array("q"), array("q"), array("q"), array("q")
        self.bytes, self.rss = array("q"), array("q")
        self.durations, self.cpu = array("d"), array("d")
        self.keys: list[str] = []
        self.codecs: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.spans: list[tuple[float, float]] = []
        self.num_shards = self.num_images = self.tar_bytes = self.filtered = self.quarantined = 0
        self._reasons: dict[str, LeftOut] = {}
        self._stages: dict[str, Counter[str]] = {}
        self._rules: dict[str, LeftOut] = {}

    def add_commit(
        self, commit: CommitRecord, filtered: Sequence[FilteredRow], quarantined: Sequence[QuarantineRow]
    ) -> None:
        """filtered, quarantined: those of the commit that no later round took."""
        self.num_shards += 1
        self.tar_bytes += commit.tar_bytes
        self.spans.append((commit.started_unix_seconds, commit.finished_unix_seconds))
        for sample in commit.samples:
            self.lines.append(sample.line)
            self.shards.append(commit.shard)
            self.keys.append(sample.key)
            self.groups.append(sample.num_groups)
            self.tokens.append(sample.num_tokens)
            self.bytes.append(sample.byte_size)
            self.rss.append(sample.peak_rss_bytes)
            self.durations.append(sample.duration_seconds)
            self.cpu.append(sample.cpu_seconds)
            self.num_images += sample.num_images
            self.codecs[sample.codec] += 1
            self.flags.update(sample.flags)
        for row in filtered:
            self.add_filtered(row)
        for fallen in quarantined:
            self.add_quarantined(fallen)

    def add_quarantined(self, row: QuarantineRow) -> None:
        self.quarantined += 1
        self._stages.setdefault(row.reason, Counter())[row.stage] += 1
        tried = f" ({row.attempts} attempts)" if row.attempts > 1 else ""
        example = Example(line=row.line, id=row.id, uri=row.uri, message=row.message + tried)
        self._count(self._reasons, row.reason, example)

    def add_filtered(self, row: FilteredRow) -> None:
        self.filtered += 1
        self._count(self._rules, row.rule, Example(line=row.line, id=row.id, uri=row.uri, message=row.message))

    def _count(self, table: dict[str, LeftOut], name: str, example: Example) -> None:
        entry = table.setdefault(name, LeftOut(name=name))
        entry.count += 1
        entry.examples = heapq.nsmallest(self.num_examples, [*entry.examples, example], key=lambda one: one.line)

    def reasons(self) -> list[LeftOut]:
        for name, stages in self._stages.items():
            self._reasons[name].detail = "at " + ", ".join(f"{stage} ({n})" for stage, n in sorted(stages.items()))
        return _by_count(self._reasons.values())

    def rules(self) -> list[LeftOut]:
        return _by_count(self._rules.values())

    def histograms(self) -> list[Histogram]:
        durations, cpu = np.asarray(self.durations), np.asarray(self.cpu)
        video = durations > 0
        found = [
            count_numbers("Duration", durations[video], unit="seconds"),
            count_categories("Codec", self.codecs),
            count_numbers("Groups a sample", self.groups, unit="count"),
            count_numbers("Tokens a sample", self.tokens, unit="count"),
            count_numbers("Bytes a sample", self.bytes, unit="bytes"),
            count_numbers("CPU time a sample", cpu, unit="seconds"),
            count_numbers("CPU seconds per second of video", cpu[video] / durations[video], unit="ratio"),
            count_numbers("Largest memory of the worker", [n for n in self.rss if n], unit="bytes"),
            count_categories("Flags", self.flags),
        ]
        return [histogram for histogram in found if histogram is not None]


def _load_run(store: Store) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(store.read_bytes(RUN_JSON))
    except FileNotFoundError:
        return None


def _predict_committed(rounds: Rounds | None, tally: _Tally, notes: list[str]) -> list[Prediction]:
    if rounds is None or not tally.keys:
        return []
    plan = rounds.plan
    tokens, num_bytes, cpu = plan.predicted_tokens, plan.predicted_bytes, plan.predicted_cpu_seconds
    if plan.num_planned <= MAX_PLAN_ROWS:
        committed = set(tally.keys)
        by_key = {row.key: row for row in rounds.iter_rows() if row.key in committed}  # of a replayed row the last
        rows = list(by_key.values())
        tokens, num_bytes = sum(row.predicted_tokens for row in rows), sum(row.predicted_bytes for row in rows)
        cpu = sum(row.predicted_cpu_seconds for row in rows)
    elif plan.num_planned != len(tally.keys):
        notes.append(
            f"Planned numbers are those of all {plan.num_planned:,} planned rows, actual ones of the "
            f"{len(tally.keys):,} committed."
        )
    return [
        Prediction(name="CPU time", unit="seconds", predicted=cpu, actual=float(sum(tally.cpu))),
        Prediction(name="Tokens", unit="count", predicted=tokens, actual=int(sum(tally.tokens))),
        Prediction(name="Bytes", unit="bytes", predicted=num_bytes, actual=int(sum(tally.bytes))),
    ]


def _choose(store: Store, tally: _Tally, num_samples: int) -> list[ShownSample]:
    order = np.argsort(np.asarray(tally.lines), kind="stable")
    count = min(num_samples, len(order))
    picks = [int(order[int((i + 0.5) * len(order) / count)]) for i in range(count)]
    wanted: dict[int, set[int]] = {}
    for pick in picks:
        wanted.setdefault(tally.shards[pick], set()).add(tally.lines[pick])
    shown = [
        ShownSample(shard=commit.shard, sample=sample)
        for commit in (load_commit(store, shard) for shard in sorted(wanted))
        for sample in commit.samples
        if sample.line in wanted[commit.shard]
    ]
    return sorted(shown, key=lambda one: one.sample.line)


def _covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of the spans."""
    total, end = 0.0, -np.inf
    for started, finished in sorted(spans):
        total += max(0.0, finished - max(started, end))
        end = max(end, finished)
    return float(total)


def _by_count(entries: Iterable[LeftOut]) -> list[LeftOut]:
    return sorted(entries, key=lambda entry: (-entry.count, entry.name))
