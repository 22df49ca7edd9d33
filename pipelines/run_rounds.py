"""Rounds of a finished run: what fell is tried again, or rows of another manifest join it (ov2_core/rounds.py).

Enters: a run and, to append, a manifest. Leaves: the run with a round more, all of it committed. Config, code and
libraries are those of the run, or the call is refused: a round's bytes are what the run itself would have made. Both are
resumed by the same call; `ov2 tokenize` with the run's own manifest finishes a round that was cut off, too.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from ov2_core import config as configs
from ov2_core.config import RunConfig
from ov2_core.data.keys import IdLedger, derived_id
from ov2_core.data.manifest import ManifestItem, absolute_uri, manifest_digest, read_manifest
from ov2_core.filters.config import FilterConfig
from ov2_core.filters.corpus import corpus_rules
from ov2_core.make_sample import make_sample
from ov2_core.rounds import Rounds, RoundWriter, is_replayable, load_rounds
from ov2_core.storage.commit import committed_shards
from ov2_core.storage.files import Store
from pipelines.options import RunOptions, session
from pipelines.plan_videos import PlanFeed, probe_all
from pipelines.progress import Counters
from pipelines.run_identity import check_same_run, load_run_record, make_run_record
from pipelines.tokenize_videos import Make, TokenizeSummary, complete_run
from schemas.run import RoundRecord, RunRecord
from schemas.shard import PlanRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSummary:
    """What one invocation did."""

    record: RoundRecord | None
    """The new round; None where there was nothing to take."""
    num_finished_before: int
    """Shards of earlier rounds that had no commit and were made first."""
    num_not_replayable: int
    """Fallen rows of the reasons asked that no attempt can mend: malformed ones and repeated ids."""
    tokenized: TokenizeSummary


def replay_rows(
    store: Store, options: RunOptions, *, reasons: frozenset[str] | None = None, make: Make = make_sample
) -> RoundSummary:
    """Tries rows again that stand quarantined for one of the reasons (None: any), probe and all.

    A round that was cut off is finished, and no new one begun: call again for what fell in it.

    Raises:
        ValueError: no token run, one that is not finished, or one of other code or libraries.
        RunStoppedError: see tokenize_videos.
    """
    rounds, here, config = open_run(store)
    planning = planning_config(config, rounds)
    fallen = [row for row in rounds.iter_quarantined() if reasons is None or row.reason in reasons]
    taken = sorted((row for row in fallen if is_replayable(row)), key=lambda row: row.line)
    num_missing = rounds.num_shards - len(committed_shards(store))
    with session(options):
        record = None
        if taken and not num_missing:
            counters = Counters("plan", num_items=len(taken))
            items = (ManifestItem(line=row.line, row=row.row) for row in taken)
            kept = rounds.iter_kept(leave_out=frozenset(row.line for row in taken))
            with (
                RoundWriter(rounds) as writer,
                IdLedger() as ledger,
                corpus_rules(planning.filter, kept) as rules,
            ):
                feed = PlanFeed(
                    items,
                    rounds.plan.manifest_uri,
                    planning,
                    writer.plan,
                    ledger,
                    counters,
                    first_shard=rounds.num_shards,
                    rules=rules,
                )
                probe_all(feed, store, planning, options, counters)
                planned = feed.record(manifest_digest="")
                record = create_round(
                    writer, planned, rounds, kind="replay", reasons=sorted({row.reason for row in taken})
                )
        tokenized = complete_run(store, here, config, options, make=make)
    return RoundSummary(
        record=record,
        num_finished_before=num_missing,
        num_not_replayable=len(fallen) - len(taken),
        tokenized=tokenized,
    )


def append_rows(manifest_uri: str, store: Store, options: RunOptions, *, make: Make = make_sample) -> RoundSummary:
    """Adds the rows of a manifest whose ids the run does not know; so a manifest that has grown may be given whole.

    Malformed rows whose text the run knows are left out too. A round that was cut off is finished first.

    Raises:
        ValueError: see replay_rows; or the manifest cannot be read.
        RunStoppedError: see tokenize_videos.
    """
    rounds, here, config = open_run(store)
    planning = planning_config(config, rounds)
    digest = manifest_digest(manifest_uri)
    manifest = read_manifest(manifest_uri)
    num_missing = rounds.num_shards - len(committed_shards(store))
    with session(options), IdLedger() as known, IdLedger() as ledger:
        texts, last_line = _known(rounds, known)
        items = _Unknown(manifest, known, texts, line_offset=last_line)
        counters = Counters("plan")
        record = None
        with RoundWriter(rounds) as writer, corpus_rules(planning.filter, rounds.iter_kept()) as rules:
            feed = PlanFeed(
                iter(items),
                manifest_uri,
                planning,
                writer.plan,
                ledger,
                counters,
                first_shard=rounds.num_shards,
                rules=rules,
            )
            probe_all(feed, store, planning, options, counters)
            planned = feed.record(manifest_digest=digest)
            if planned.manifest_rows:
                record = create_round(
                    writer,
                    planned,
                    rounds,
                    kind="append",
                    manifest_uri=manifest_uri,
                    line_offset=last_line,
                    left_out=items.num_left_out,
                )
        tokenized = complete_run(store, here, config, options, make=make)
    return RoundSummary(record=record, num_finished_before=num_missing, num_not_replayable=0, tokenized=tokenized)


def open_run(store: Store) -> tuple[Rounds, RunRecord, RunConfig]:
    """(rounds, record, config) of a token run whose own plan is committed, if this code would make the same bytes.

    Raises:
        ValueError: it is not so.
    """
    there, rounds = load_run_record(store), load_rounds(store)
    if there is None or rounds is None:
        raise ValueError(f"{store.root} holds no run; give the folder that `ov2 tokenize --out` made")
    if "tokenizer" not in there.config:
        raise ValueError(f"{store.root} is a run of {there.recipe!r}; rounds are of token runs (`ov2 tokenize`)")
    config = TypeAdapter(RunConfig).validate_python(there.config)
    assert configs.digest(config) == there.config_digest, "the run's config does not survive reading"
    here = make_run_record(config, manifest_uri=there.manifest_uri, manifest_digest=there.manifest_digest)
    check_same_run(there, here, where=store.root)
    missing = set(range(rounds.plan.num_shards)) - set(committed_shards(store))
    if missing:
        raise ValueError(
            f"{store.root} has {len(missing)} of {rounds.plan.num_shards} shards to make; finish it first: "
            f"ov2 tokenize --manifest {there.manifest_uri} --out {store.root} --recipe {there.recipe}"
        )
    return rounds, there, config


def planning_config(config: RunConfig, rounds: Rounds) -> RunConfig:
    """What rows are planned by: the run's config, with the thresholds of its last refilter."""
    there = rounds.filter_now()
    return config if there is None else replace(config, filter=TypeAdapter(FilterConfig).validate_python(there))


def create_round(
    writer: RoundWriter,
    planned: PlanRecord,
    rounds: Rounds,
    *,
    kind: Literal["replay", "append", "refilter"],
    reasons: list[str] | None = None,
    manifest_uri: str | None = None,
    line_offset: int = 0,
    left_out: int = 0,
    filter: FilterConfig | None = None,
) -> RoundRecord:
    """Makes a round of what the writer holds; `planned` has its totals."""

    def make(number: int, rows: str, fallen: str) -> RoundRecord:
        return RoundRecord(
            number=number,
            kind=kind,
            reasons=reasons or [],
            manifest_uri=None if manifest_uri is None else absolute_uri(manifest_uri),
            manifest_digest=planned.manifest_digest or None,
            line_offset=line_offset,
            filter=None if filter is None else configs.to_dict(filter),
            first_shard=rounds.num_shards,
            num_shards=planned.num_shards,
            num_rows=planned.manifest_rows,
            num_planned=planned.num_planned,
            num_quarantined=planned.num_quarantined,
            num_left_out=left_out,
            predicted_tokens=planned.predicted_tokens,
            predicted_bytes=planned.predicted_bytes,
            predicted_cpu_seconds=planned.predicted_cpu_seconds,
            predicted_video_seconds=planned.predicted_video_seconds,
            rows=rows,
            fallen=fallen,
            created_unix_seconds=round(time.time(), 3),
        )

    return writer.finish(make, planned)


def _known(rounds: Rounds, known: IdLedger) -> tuple[set[str], int]:
    """(texts of malformed rows, last line) of the run; its ids go into `known`."""
    texts: set[str] = set()
    last_line = 0
    for number in range(len(rounds.records) + 1):
        with rounds.store.open_read(rounds.rows_rel(number)) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=65536, columns=["line", "id"]):
                for line, id in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                    known.claim(id, line)
                    last_line = max(last_line, line)
        for row in rounds.fallen(number):
            last_line = max(last_line, row.line)
            if row.id is not None:
                known.claim(row.id, row.line)
            elif row.raw is not None:
                texts.add(row.raw)
    return texts, last_line


class _Unknown:
    """Rows of a manifest that a run does not know, their lines counted on from the run's last."""

    def __init__(self, items: Iterator[ManifestItem], known: IdLedger, texts: set[str], *, line_offset: int) -> None:
        self._items, self._known, self._texts, self._offset = items, known, texts, line_offset
        self.num_left_out = 0

    def __iter__(self) -> Iterator[ManifestItem]:
        for item in self._items:
            row = item.row
            if item.raw in self._texts if row is None else self._known.holds(row.id or derived_id(row)):
                self.num_left_out += 1
            else:
                yield replace(item, line=item.line + self._offset)
