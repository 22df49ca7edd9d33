"""Runs a corpus of damaged and lying files through the pipeline and proves what must hold: every row ends, none innocent is lost.

Enters: options. Leaves: a table (and JSON), and a list of what was violated; the exit code is 1 where anything was. Checked of each
run: `verify` passes; every good clip is committed and its tokens show its own pixels; every other row is committed (with a flag or
because what decodes is a clip) or quarantined with a reason and a message; nothing is charged with internal_error; no probe and no
tokenization takes longer than --limit-seconds. With workers, rows that crash their worker and rows that hang are added by a
stand-in for the decoder: they must be charged as that, alone.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench_markdown import write_section
from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.evals.clips import CANARY_BLOCK_PX, read_canary
from ov2_core.evals.poison import PoisonRow, write_poison
from ov2_core.make_sample import ProbeTask, SampleOutcome, make_probe, make_sample
from ov2_core.plan import iter_plan_quarantine
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from pipelines.options import RunOptions
from pipelines.tasks import DeadlinePolicy
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import PlannedRow, QuarantineRow
from schemas.video import ManifestRow

BEGIN, END = "<!-- poison: begin -->", "<!-- poison: end -->"
CRASH, HANG = "simulated-crash", "simulated-hang"
EXPECTED_OF_SIMULATED = {CRASH: "worker_died", HANG: "deadline_exceeded"}


def main(argv: Iterable[str] | None = None) -> int:
    """Entry point of `ov2 bench poison`."""
    parser = argparse.ArgumentParser(prog="ov2 bench poison", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", action="append", help="default: codec-8 and uniform-4, one run each")
    parser.add_argument("--workers", type=int, default=0, help="0: in this process, without Ray (default)")
    parser.add_argument("--per-family", type=int, help="at most so many files of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-seconds", type=float, default=20.0, help="longest probe or tokenization of one row")
    parser.add_argument("--folder", type=Path, help="keep the corpus and the runs here")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--markdown", type=Path, help="write the table between its markers in this file")
    args = parser.parse_args(None if argv is None else list(argv))
    reports = []
    with tempfile.TemporaryDirectory(prefix="ov2-poison-") as temporary:
        folder = args.folder or Path(temporary)
        for name in args.recipe or ["codec-8", "uniform-4"]:
            reports.append(
                run_poison(
                    folder,
                    recipe_name=name,
                    workers=args.workers,
                    per_family=args.per_family,
                    seed=args.seed,
                    limit_seconds=args.limit_seconds,
                )
            )
    print(table_text(reports))
    if args.out is not None:
        args.out.write_text(json.dumps(reports, indent=2) + "\n")
    if args.markdown is not None:
        write_section(table_text(reports), args.markdown, begin=BEGIN, end=END, heading="## Poison corpus")
    violations = [violation for report in reports for violation in report["violations"]]
    for violation in violations:
        print(f"violated: {violation}", file=sys.stderr)
    return 1 if violations else 0


def run_poison(
    folder: Path,
    *,
    recipe_name: str = "codec-8",
    workers: int = 0,
    per_family: int | None = None,
    seed: int = 0,
    limit_seconds: float = 20.0,
    num_simulated: int = 2,
) -> dict[str, Any]:
    """Makes the corpus, runs it, and holds the run against what must be.

    Args:
        num_simulated: rows that crash, and as many that hang, where there are workers.

    Returns:
        Counts, times, and `violations`, empty where all holds.
    """
    rows = write_poison(folder / "corpus", per_family=per_family, seed=seed)
    simulated = _simulated_rows(rows, num_simulated if workers else 0)
    rows = [*rows[: len(rows) // 2], *simulated, *rows[len(rows) // 2 :]]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(_manifest_line(row, number, folder) for number, row in enumerate(rows)))
    config = with_overrides(recipe(recipe_name), {"shards.max_samples": "50"})
    store = Store(folder / f"run-{recipe_name}")
    options = RunOptions(
        workers=workers, progress="off", deadlines=DeadlinePolicy(base_seconds=limit_seconds, factor=0.0)
    )
    times = folder / f"seconds-{recipe_name}.txt"
    began = time.monotonic()
    tokenize_videos(str(manifest), store, config, options, make=_TimedMake(str(times)))
    wall_seconds = time.monotonic() - began
    report = _judged(rows, store, config, folder, times, wall_seconds, limit_seconds=limit_seconds)
    return {"recipe": recipe_name, "workers": workers, **report}


def _simulated_rows(rows: Sequence[PoisonRow], count: int) -> list[PoisonRow]:
    good = [row for row in rows if row.video_id is not None]
    return [
        PoisonRow(name=good[i % len(good)].name, family=f"simulated {kind.split('-')[1]}")
        for i in range(count)
        for kind in (CRASH, HANG)
    ]


def _id_of(row: PoisonRow, number: int) -> str:
    return f"{row.family.replace(' ', '-')}-{number}"


def _manifest_line(row: PoisonRow, number: int, folder: Path) -> str:
    line: dict[str, Any] = {row.media: str(folder / "corpus" / row.name), "id": _id_of(row, number)}
    if row.frames_fps is not None:
        line["frames_fps"] = row.frames_fps
    return json.dumps(line) + "\n"


@dataclass(frozen=True)
class _TimedMake:
    """make_sample with its seconds written down, and with a decoder that crashes or hangs where a row's id asks for it."""

    path: str

    def __call__(self, planned: PlannedRow, config: RunConfig) -> SampleOutcome:
        if planned.id.startswith(CRASH):
            os.kill(os.getpid(), signal.SIGSEGV)
        if planned.id.startswith(HANG):
            time.sleep(3600)
        began = time.monotonic()
        outcome = make_sample(planned, config)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{planned.line} {time.monotonic() - began:.4f} {outcome.peak_rss_bytes}\n")
        return outcome


def _judged(
    rows: Sequence[PoisonRow],
    store: Store,
    config: RunConfig,
    folder: Path,
    times: Path,
    wall_seconds: float,
    *,
    limit_seconds: float,
) -> dict[str, Any]:
    violations: list[str] = []
    found = verify_run(store)
    violations += [f"verify: {error}" for error in found.errors]
    committed = {sample.line: sample for record in iter_commits(store) for sample in record.samples}
    fallen: dict[int, QuarantineRow] = {row.line: row for row in iter_plan_quarantine(store)}
    fallen |= {row.line: row for record in iter_commits(store) for row in record.quarantined}
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for line, row in enumerate(rows, start=1):
        where = f"line {line}, {row.name} ({row.family})"
        if (line in committed) == (line in fallen):
            violations.append(f"{where}: does not end in exactly one of committed and quarantined")
            continue
        if line in committed:
            ends[row.family]["flagged" if committed[line].flags else "committed"] += 1
        else:
            ends[row.family][fallen[line].reason] += 1
            violations += _complaints(row, fallen[line], where)
        if row.video_id is not None and line not in committed:
            violations.append(f"{where}: an innocent was quarantined as {fallen[line].reason}")
    violations += _misbound(rows, committed, store)
    made = [line.split() for line in times.read_text().splitlines()] if times.exists() else []
    seconds = {int(line): float(took) for line, took, _ in made}
    probes = _probe_seconds(rows, fallen, config, folder)
    for what, took_of in (("tokenize", seconds), ("probe", probes)):
        for line, took in took_of.items():
            if took > limit_seconds:
                violations.append(f"line {line}, {rows[line - 1].name}: {what} took {took:.1f} s")
    return {
        "rows": len(rows),
        "good": sum(row.video_id is not None for row in rows),
        "committed": found.committed,
        "quarantined": dict(sorted(found.quarantined_by_reason.items())),
        "families": {family: dict(sorted(counts.items())) for family, counts in sorted(ends.items())},
        "wall_seconds": round(wall_seconds, 1),
        "slowest_probe_seconds": round(max(probes.values(), default=0.0), 3),
        "slowest_tokenize_seconds": round(max(seconds.values(), default=0.0), 3),
        "peak_rss_mib": round(max((int(rss) for *_, rss in made), default=0) / 2**20),
        "violations": violations,
    }


def _complaints(row: PoisonRow, end: QuarantineRow, where: str) -> list[str]:
    kind = f"simulated-{row.family.partition(' ')[2]}"
    expected = EXPECTED_OF_SIMULATED.get(kind)
    if expected is not None and end.reason != expected:
        return [f"{where}: charged with {end.reason}, not {expected}"]
    if end.reason == "internal_error":
        return [f"{where}: internal_error: {end.message[-300:]}"]
    if expected is None and end.reason in ("worker_died", "deadline_exceeded", "out_of_memory"):
        return [f"{where}: {end.reason}: {end.message[:200]}"]
    return [] if end.message else [f"{where}: no message"]


def _misbound(rows: Sequence[PoisonRow], committed: dict[int, Any], store: Store) -> list[str]:
    """Good clips whose tokens are not of their own pixels."""
    wrong = []
    with ShardReader(store.root) as reader:
        for line, row in enumerate(rows, start=1):
            if row.video_id is None or line not in committed:
                continue
            image = reader.read(committed[line].key).image(0)
            try:
                shown = read_canary(image[:CANARY_BLOCK_PX, :CANARY_BLOCK_PX]).video_id
            except ValueError as error:
                wrong.append(f"line {line}, {row.name}: {error}")
                continue
            if shown != row.video_id:
                wrong.append(f"line {line}, {row.name}: shows the pixels of video {shown}")
    return wrong


def _probe_seconds(
    rows: Sequence[PoisonRow], fallen: dict[int, QuarantineRow], config: RunConfig, folder: Path
) -> dict[int, float]:
    """Seconds of each row's probe, made once more in this process; of rows that ended it or hung, none."""
    took = {}
    for line, row in enumerate(rows, start=1):
        if line in fallen and fallen[line].reason in ("worker_died", "deadline_exceeded", "out_of_memory"):
            continue
        uri = str(folder / "corpus" / row.name)
        asked = ManifestRow.model_validate({row.media: uri, "frames_fps": row.frames_fps})
        began = time.monotonic()
        make_probe(ProbeTask(line=line, id="x", key="x", uri=uri, row=asked), config)
        took[line] = time.monotonic() - began
    return took


def table_text(reports: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line a run (probe s, tokenize s: of the slowest row), then where the families ended in the last one."""
    lines = [
        "| recipe | workers | rows | good | committed | quarantined | probe s | tokenize s | peak MiB | wall s | violations |",
        "| --- " * 11 + "|",
    ]
    for report in reports:
        fallen = sum(report["quarantined"].values())
        lines.append(
            f"| {report['recipe']} | {report['workers']} | {report['rows']} | {report['good']} | {report['committed']} | {fallen} "
            f"| {report['slowest_probe_seconds']:.2f} | {report['slowest_tokenize_seconds']:.2f} | {report['peak_rss_mib']} "
            f"| {report['wall_seconds']:.0f} | {len(report['violations'])} |"
        )
    lines += ["", f"Where the families ended ({reports[-1]['recipe']}):", "", "| family | ends |", "| --- | --- |"]
    for family, ends in reports[-1]["families"].items():
        lines.append(f"| {family} | {', '.join(f'{count} {end}' for end, count in ends.items())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
