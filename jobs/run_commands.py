"""`ov2 status, failed, replay, append, merge, index, gc`: commands on runs that stand on a storage, with the text of results.

Each needs the storage alone: no database, and no word from the machine that made the run. docs/operations.md tells how.
"""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.summary import counts_text, line_text, size_text, tokenize_text, verify_text
from ov2_core.redact import printable
from ov2_core.rounds import is_replayable
from ov2_core.run_status import RunStatus, iter_failed, read_status
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.progress import duration_text
from pipelines.run_rounds import RoundSummary
from pipelines.tasks import DeadlinePolicy
from schemas.run import InvocationRecord
from schemas.shard import QuarantineRow

EXIT_INVALID = 1
_EXAMPLES = 3
_MESSAGE_CHARACTERS = 160
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Run = Annotated[str, typer.Argument(help="RUN; a path or an fsspec URL.")]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes; by default all CPUs. 0: in this process, without Ray.")
]
Address = Annotated[str | None, typer.Option(help="A Ray cluster (auto, host:6379).")]
DeadlineBase = Annotated[float, typer.Option(help="Seconds that any video may take, beside 30 x its predicted time.")]
ProgressMode = Annotated[
    Literal["auto", "live", "plain", "off"], typer.Option(help="How progress is shown, on stderr.")
]


def add_run_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def status(
        run: Run,
        as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
        watch: Annotated[float, typer.Option(help="Print it again every so many seconds; 0: once.", min=0)] = 0.0,
    ) -> None:
        """Where a run stands, also while it runs elsewhere: rows, shards, rate, rest, workers, what fell last."""
        with errors():
            while True:
                found = read_status(Store(run))
                print(status_json(found) if as_json else status_text(found), flush=True)
                if not watch:
                    break
                time.sleep(watch)

    @app.command()
    def failed(
        run: Run,
        reason: Annotated[str | None, typer.Option(help="Only rows quarantined for this reason.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print every row, a JSON object a line.")] = False,
        manifest: Annotated[
            str | None, typer.Option(help="Write the rows to this JSONL file or URL, as a manifest.")
        ] = None,
    ) -> None:
        """What stands quarantined, by reason, with examples. Rows that were replayed since are left out."""
        with errors():
            rows = iter_failed(Store(run), reason=reason)
            if manifest is not None:
                num_written, num_text = write_manifest(rows, manifest)
                print(line_text("written", f"{num_written} rows to {manifest}"))
                if num_text:
                    print(line_text("left out", f"{num_text} malformed rows: of these there is only text (--json)"))
            elif as_json:
                for row in rows:
                    print(row.model_dump_json())
            else:
                print(printable(failed_text(rows)))

    @app.command()
    def replay(
        run: Run,
        reason: Annotated[
            list[str] | None, typer.Option(help="Only rows quarantined for this reason; repeatable. By default all.")
        ] = None,
        workers: Workers = None,
        address: Address = None,
        deadline_base: DeadlineBase = 120.0,
        progress: ProgressMode = "auto",
    ) -> None:
        """Try rows again that a finished run quarantined; what succeeds goes to new shards, published ones stay as they are."""
        with errors():
            from pipelines.run_rounds import replay_rows

            options = run_options(workers, address, deadline_base, progress)
            reasons = None if not reason else frozenset(reason)
            summary = replay_rows(Store(run), options, reasons=reasons)
            code = finish_round(Store(run), summary)
        raise typer.Exit(code)

    @app.command()
    def append(
        run: Run,
        manifest: Annotated[
            str, typer.Option(help="JSONL (.gz), CSV or Parquet; rows whose ids RUN knows are left out.")
        ],
        workers: Workers = None,
        address: Address = None,
        deadline_base: DeadlineBase = 120.0,
        progress: ProgressMode = "auto",
    ) -> None:
        """Add new rows of a manifest to a finished run, as new shards; the same command resumes."""
        with errors():
            from pipelines.run_rounds import append_rows

            options = run_options(workers, address, deadline_base, progress)
            summary = append_rows(manifest, Store(run), options)
            code = finish_round(Store(run), summary)
        raise typer.Exit(code)

    @app.command()
    def merge(
        runs: Annotated[
            list[str], typer.Argument(help="Two or more finished token runs of one config; paths or URLs.")
        ],
        out: Annotated[str, typer.Option(help="RUN that they become; the runs themselves stay as they are.")],
        leave_out_duplicates: Annotated[
            bool, typer.Option("--leave-out-duplicates", help="Leave out rows whose id a run before has; else refuse.")
        ] = False,
    ) -> None:
        """Make one run of several: shards are copied, no video is read. The same command resumes."""
        with errors():
            from ov2_core.report.render import write_report
            from ov2_core.storage.verify import verify_run
            from pipelines.merge_runs import merge_runs

            store = Store(out)
            done = merge_runs([Store(run) for run in runs], store, leave_out_duplicates=leave_out_duplicates)
            found = verify_run(store, deep=False)
            for one in done.record.runs:
                left_out = f", {one.num_left_out} left out: known before" if one.num_left_out else ""
                shards = f"{one.num_shards} shards from {one.first_shard}"
                print(line_text("merged", f"{one.root}: {one.num_rows} rows{left_out}; {shards}"))
            print(line_text("shards", f"{done.num_shards}; {done.num_shards_before} stood already"))
            print(verify_text(found))
            print(line_text("report", write_report(store)))
        raise typer.Exit(0 if found.ok else EXIT_INVALID)

    @app.command()
    def index(run: Run) -> None:
        """Rebuild the index (.nv-meta) and every tar's .idx from the commits; equal commits give equal bytes."""
        with errors():
            from ov2_core.storage.index import rebuild_index

            store = Store(run)
            read_status(store, num_newest=0)
            num_samples, num_mended = rebuild_index(store)
            print(line_text("index", f"{num_samples} samples in {store.url('.nv-meta')}"))
            print(line_text("mended", f"{num_mended} commits or .idx files"))

    @app.command()
    def gc(
        run: Run,
        older_than: Annotated[
            str, typer.Option(help="Age from which an unfinished writer's files are nobody's: 90m, 24h, 7d.")
        ] = "24h",
        delete: Annotated[bool, typer.Option("--delete/--dry-run", help="Remove them; else only tell.")] = False,
    ) -> None:
        """Find what dead processes left in a run, and remove it with --delete. Nothing that a live run may need is touched."""
        with errors():
            from ov2_core.storage.gc import find_orphans, remove_orphans

            store, age = Store(run), age_seconds(older_than)
            read_status(store, num_newest=0)
            found = find_orphans(store, older_than_seconds=age)
            for orphan in found.orphans:
                print(f"    {orphan.rel}: {orphan.why} ({size_text(orphan.num_bytes)})")
            for orphan in found.kept:
                print(f"    {orphan.rel}: kept: {orphan.why}")
            if delete:
                remove_orphans(store, found)
            total = size_text(sum(orphan.num_bytes for orphan in found.orphans))
            done = "removed" if delete else "to be removed with --delete"
            print(line_text("orphans", f"{len(found.orphans)} ({total}) {done}; {len(found.kept)} kept"))


def age_seconds(text: str) -> float:
    """90m, 24h, 7d, 30s. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ValueError(f"--older-than must be a number with s, m, h or d, e.g. 24h; got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def write_manifest(rows: Iterable[QuarantineRow], uri: str) -> tuple[int, int]:
    """(rows written, malformed rows that could not be). The file appears when it is complete; media are absolute."""
    folder, _, name = uri.rpartition("/")
    if not name.endswith(".jsonl"):
        raise ValueError(f"--manifest must name a .jsonl file, got {uri!r}")
    num_written = num_text = 0
    with tempfile.TemporaryDirectory(prefix="ov2-failed-") as scratch:
        path = Path(scratch) / "rows.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for row in rows:
                if row.row is None:
                    num_text += 1
                    continue
                file.write(row.row.model_dump_json(exclude_none=True, exclude={"schema_version"}) + "\n")
                num_written += 1
        Store(folder or ".").put_file(path, name)
    return num_written, num_text


def failed_text(rows: Iterable[QuarantineRow]) -> str:
    """Reasons by count, with their first examples."""
    counts: Counter[str] = Counter()
    replayable: Counter[str] = Counter()
    examples: dict[str, list[QuarantineRow]] = {}
    for row in rows:
        counts[row.reason] += 1
        replayable[row.reason] += is_replayable(row)
        if len(examples.setdefault(row.reason, [])) < _EXAMPLES:
            examples[row.reason].append(row)
    lines = [line_text("quarantined", f"{counts.total()}")]
    for reason, count in counts.most_common():
        again = "" if replayable[reason] else ", follows from the manifest: not replayable"
        lines.append(f"{reason}: {count}{again}")
        lines += [f"    {_fallen(row)}" for row in examples[reason]]
        if count > len(examples[reason]):
            lines.append(f"    and {count - len(examples[reason])} more (--reason {reason} --json)")
    return "\n".join(lines)


def status_text(found: RunStatus, *, now: float | None = None) -> str:
    """A run's state for a terminal. now: Unix seconds."""
    now = time.time() if now is None else now
    left = "?" if found.left is None else f"{found.left}"
    lines = [
        line_text("run", found.root),
        line_text("manifest rows", "not planned yet" if found.manifest_rows is None else f"{found.manifest_rows}"),
        line_text("committed", f"{found.committed} ({found.num_tokens:,} tokens, {size_text(found.tar_bytes)})"),
        line_text("filtered", counts_text(found.filtered)),
        line_text("quarantined", counts_text(found.quarantined)),
        line_text("left", left),
        line_text("shards", f"{found.num_shards_committed} of {found.num_shards} committed"),
    ]
    if found.num_rounds:
        lines.append(line_text("rounds", f"{found.num_rounds} (replays, appends, refilters)"))
    if found.last_commit_unix_seconds is not None:
        lines.append(line_text("last commit", f"{duration_text(max(0, now - found.last_commit_unix_seconds))} ago"))
    for one in found.alive(now):
        lines += _invocation(one, now)
    for one in found.silent(now):
        lines.append(
            line_text("silent", f"{_who(one)}: no sign of life for {duration_text(now - one.seen_unix_seconds)}; dead?")
        )
    if not found.alive(now) and not found.silent(now):
        lines.append(line_text("at work", "nobody"))
    lines += [line_text("newest fallen", "")] if found.newest else []
    lines += [f"    {row.reason}: {_fallen(row)}" for row in found.newest]
    return "\n".join(lines)


def status_json(found: RunStatus) -> str:
    """The same for programs."""
    plain = {
        "root": found.root,
        "manifest_rows": found.manifest_rows,
        "committed": found.committed,
        "filtered": sum(found.filtered.values()),
        "filtered_by_rule": found.filtered,
        "quarantined": found.quarantined,
        "left": found.left,
        "num_rounds": found.num_rounds,
        "num_shards": found.num_shards,
        "num_shards_committed": found.num_shards_committed,
        "num_tokens": found.num_tokens,
        "tar_bytes": found.tar_bytes,
        "last_commit_unix_seconds": found.last_commit_unix_seconds,
        "alive": [one.model_dump(mode="json") for one in found.alive()],
        "silent": [one.model_dump(mode="json") for one in found.silent()],
        "newest": [row.model_dump(mode="json") for row in found.newest],
    }
    return json.dumps(plain, indent=2)


def _invocation(one: InvocationRecord, now: float) -> list[str]:
    rate = one.num_done / max(one.elapsed_seconds, 1e-9)
    eta = "?"
    if one.num_items is not None and one.num_done:
        eta = duration_text((one.num_items - one.num_done) / rate)
    items = "?" if one.num_items is None else f"{one.num_items}"
    states = Counter(worker.state for worker in one.workers)
    lines = [
        line_text("at work", f"{_who(one)}, seen {duration_text(max(0, now - one.seen_unix_seconds))} ago"),
        line_text("this command", f"{one.num_done} of {items} rows in {duration_text(one.elapsed_seconds)}"),
        line_text("rate", f"{rate:.2f} rows/s, {one.video_seconds / max(one.elapsed_seconds, 1e-9):.2f} video-hours/h"),
        line_text("ETA", eta),
        line_text("workers", ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"),
    ]
    if one.num_worker_deaths:
        lines.append(line_text("worker deaths", f"{one.num_worker_deaths}"))
    busy = [worker for worker in one.workers if worker.since_unix_seconds is not None]
    for worker in sorted(busy, key=lambda worker: worker.since_unix_seconds or 0.0)[:8]:
        assert worker.since_unix_seconds is not None
        since = duration_text(max(0, now - worker.since_unix_seconds))
        allowed = "" if worker.deadline_seconds is None else f" of {duration_text(worker.deadline_seconds)} allowed"
        lines.append(f"    worker {worker.number}: {worker.task} for {since}{allowed}")
    if len(busy) > 8:
        lines.append(f"    and {len(busy) - 8} more (--json)")
    return lines


def _who(one: InvocationRecord) -> str:
    return f"{one.stage} on {one.host} (pid {one.pid})"


def _fallen(row: QuarantineRow) -> str:
    text = (row.message.splitlines() or [""])[0][:_MESSAGE_CHARACTERS]
    return f"line {row.line}, {row.id or 'no id'} (at {row.stage}): {text}"


def finish_round(store: Store, summary: RoundSummary) -> int:
    """Verifies, writes the report, prints what the round did; the exit code."""
    from ov2_core.report.render import write_report
    from ov2_core.storage.verify import verify_run

    found = verify_run(store, deep=False)
    report_path = write_report(store)
    record = summary.record
    if summary.num_finished_before:
        print(line_text("resumed", f"{summary.num_finished_before} shards of a round that was cut off"))
    if record is not None:
        print(
            line_text("round", f"{record.number} ({record.kind}): {record.num_rows} rows, {record.num_planned} planned")
        )
        if record.num_left_out:
            print(line_text("left out", f"{record.num_left_out} rows that the run knows already"))
    elif summary.num_finished_before:
        print(line_text("round", "no new one; give the command again for what fell meanwhile"))
    else:
        print(line_text("round", "none: there is nothing to take"))
    if summary.num_not_replayable:
        print(line_text("not replayable", f"{summary.num_not_replayable} rows: malformed, or ids used twice"))
    print(tokenize_text(summary.tokenized, found, store, report_path))
    return 0 if found.ok else EXIT_INVALID


def run_options(workers: int | None, address: str | None, deadline_base: float, progress: str) -> RunOptions:
    """Options as the command line gives them."""
    return RunOptions(
        workers=workers,
        address=address,
        deadlines=DeadlinePolicy(base_seconds=deadline_base),
        progress=progress,  # type: ignore[arg-type]
    )
