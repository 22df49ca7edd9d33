"""The command `ov2`: arguments to calls, results to text and exit codes. No logic of its own.

Exit codes: 0 done, and `ov2 verify` passes; 1 the run does not verify, or something here is broken; 2 the command, the
manifest or the folder is wrong; 3 done, but more rows are quarantined than --max-quarantined allows; 4 the run stopped for
want of workers, disk or storage; 130 interrupted. After 4 and 130 the same command goes on where it stopped.
"""

import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs import doctor as doctor_checks
from jobs.curriculum_commands import add_curriculum_commands
from jobs.encode_command import add_encode_command
from jobs.eval_commands import add_eval_commands
from jobs.filter_commands import add_filter_commands
from jobs.model_commands import add_model_commands, need_torch
from jobs.run_commands import add_run_commands
from jobs.spatial_command import add_spatial_command
from jobs.stream_command import add_stream_command
from jobs.summary import estimate_lines, plan_text, tokenize_text, verify_text
from jobs.train_command import add_train_commands
from ov2_core.config import RunConfig, with_overrides
from ov2_core.config import recipe as named_recipe
from ov2_core.data.keys import key_of
from ov2_core.redact import printable, redacted
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.layout import FEATURES_RECIPE, SPATIAL_RECIPE
from ov2_core.storage.source import allow_sources
from schemas.run import VerifyReport

HELP = """Video corpora to codec-token shards.

A video enters as a row of a manifest (JSONL, CSV or Parquet) and leaves as a sample of a WebDataset tar. Every row ends in
exactly one of committed, filtered and quarantined, and `ov2 verify` proves it. A run that was killed goes on when the same
command is given again.

Exit codes: 0 done and verified, 1 does not verify, 2 wrong arguments, manifest or folder, 3 more quarantined than
--max-quarantined, 4 stopped for want of workers, disk or storage, 130 interrupted."""

EXIT_INVALID, EXIT_USAGE, EXIT_QUARANTINED, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    name="ov2",
    help=HELP,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench_app = typer.Typer(help="Benchmarks.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Manifest = Annotated[str, typer.Option(help="JSONL (.gz), CSV or Parquet; a path or an fsspec URL.")]
Out = Annotated[str, typer.Option(help="RUN: the folder that holds the run; a path or an fsspec URL.")]
Recipe = Annotated[
    str,
    typer.Option(help="codec-N, evidence-N (also with -fast), uniform-N, uniform-auto, stills or authors-legacy-N."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a config field: key=value, e.g. jpeg_quality=90. Repeatable."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Worker processes, one CPU each; by default all CPUs. 0: in this process, without Ray."),
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster (auto, host:6379) whose nodes have this package; by default an own one."),
]
DeadlineBase = Annotated[
    float, typer.Option(help="Seconds that any video may take, beside 30 x its predicted CPU time.")
]
ProgressMode = Annotated[
    Literal["auto", "live", "plain", "off"], typer.Option(help="How progress is shown, on stderr.")
]
MaxQuarantined = Annotated[
    str | None, typer.Option(help="Rows (e.g. 10) or share of the manifest (e.g. 0.01) above which the exit code is 3.")
]
SourceRoots = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder that local sources must lie in, links followed; by default any file may be read. Repeatable."
    ),
]
ProbeCache = Annotated[
    str | None,
    typer.Option(
        help="Folder on this machine's own disk (on each, in a cluster) in which probes are kept for later plans."
    ),
]
FetchHosts = Annotated[
    list[str] | None,
    typer.Option(help="host or host:port that http(s) sources may reach though its address is private. Repeatable."),
]


@app.callback(invoke_without_command=True)
def _global(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
) -> None:
    if version:
        print(metadata.version("ov2-pipeline"))
        raise typer.Exit
    if debug:
        os.environ["OV2_DEBUG"] = "1"
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    for handler in (h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler):
        handler.setFormatter(_SafeFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("ov2_core", "pipelines", "jobs"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


@app.command()
def plan(
    manifest: Manifest,
    out: Out,
    recipe: Recipe = "codec-32",
    set_: Sets = None,
    workers: Workers = None,
    address: Address = None,
    deadline_base: DeadlineBase = 120.0,
    progress: ProgressMode = "auto",
    source_root: SourceRoots = None,
    fetch_host: FetchHosts = None,
    probe_cache: ProbeCache = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the predictions, leave nothing in RUN.")] = False,
    learn_from: Annotated[
        list[str] | None,
        typer.Option(
            help="An earlier RUN: its predictions and outcome correct these, and give their spread; repeatable."
        ),
    ] = None,
    price_per_cpu_hour: Annotated[
        float | None, typer.Option(help="Print what the CPU hours cost, in your currency.", min=0)
    ] = None,
) -> None:
    """Probe every source; predict tokens, bytes and CPU time; write RUN/plan."""
    with _errors():
        from ov2_core.plan_errors import learn_ratios
        from pipelines.options import available_cpus
        from pipelines.plan_videos import plan_videos

        ratios = learn_ratios([Store(earlier) for earlier in learn_from]) if learn_from else {}

        allow_sources(roots=source_root, fetch_hosts=fetch_host)
        config = _config(recipe, set_)
        options = _options(workers, address, deadline_base, progress, probe_cache)
        with contextlib.ExitStack() as stack:
            where = stack.enter_context(tempfile.TemporaryDirectory(prefix="ov2-dry-")) if dry_run else out
            store = Store(where)
            record = plan_videos(manifest, store, config, options)
            print(plan_text(record, store, where=None if dry_run else out))
        num_workers = workers or (available_cpus() if address is None else None)
        print("\n".join(estimate_lines(record, ratios, num_workers=num_workers, price=price_per_cpu_hour)))


@app.command()
def tokenize(
    manifest: Manifest,
    out: Out,
    recipe: Recipe = "codec-32",
    set_: Sets = None,
    workers: Workers = None,
    address: Address = None,
    deadline_base: DeadlineBase = 120.0,
    progress: ProgressMode = "auto",
    max_quarantined: MaxQuarantined = None,
    source_root: SourceRoots = None,
    fetch_host: FetchHosts = None,
    probe_cache: ProbeCache = None,
) -> None:
    """Make the shards of a manifest, or go on with them: the same command resumes. Plans first where there is no plan."""
    with _errors():
        allow_sources(roots=source_root, fetch_hosts=fetch_host)
        config = _config(recipe, set_)
        options = _options(workers, address, deadline_base, progress, probe_cache)
        allowed = _allowed(max_quarantined)
        code = _tokenize(manifest, Store(out), config, options, allowed)
    raise typer.Exit(code)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="RUN.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and sums alone; no tar is read.")] = False,
) -> None:
    """Prove that manifest = committed + filtered + quarantined, that every tar can be read and every digest is right."""
    with _errors():
        from ov2_core.spatial.run_files import verify_spatial
        from ov2_core.storage.verify import verify_run
        from pipelines.run_identity import load_run_record

        record = load_run_record(Store(run))
        spatial = record is not None and record.recipe == SPATIAL_RECIPE
        found = verify_spatial(Store(run), deep=not quick) if spatial else verify_run(Store(run), deep=not quick)
        print(found.model_dump_json(indent=2) if as_json else verify_text(found))
    raise typer.Exit(0 if found.ok else EXIT_INVALID)


@app.command(context_settings={"ignore_unknown_options": True})
def inspect(
    run: Annotated[str, typer.Argument(help="RUN.")],
    key: Annotated[str, typer.Argument(help="A sample's key, or its id in the manifest.")],
    png: Annotated[
        Path | None, typer.Option(help="Write the canvases to this file, source times drawn over them.")
    ] = None,
) -> None:
    """Show one sample: groups, times, budget, text; of a feature run, what its features are."""
    with _errors():
        from ov2_core.features.describe import describe_features, is_feature_sample
        from ov2_core.report.describe import describe_sample
        from ov2_core.report.draw import draw_sample
        from ov2_core.storage.reader import ShardReader

        with ShardReader(run) as reader:
            known = key if key in reader else key_of(key)
            if known not in reader:
                raise ValueError(_why_no_sample(reader.store, key))
            stored = reader.read(known)
        if is_feature_sample(stored):
            if png is not None:
                raise ValueError(f"{run} is a feature run and holds no canvases to draw; give its token run")
            print(describe_features(stored))
            return
        print(printable(describe_sample(stored)))
        if png is not None:
            draw_sample(stored).save(png, format="PNG")
            print(f"canvases: {png}")


@app.command()
def report(run: Annotated[str, typer.Argument(help="RUN.")]) -> None:
    """Write RUN/report.html: one self-contained file."""
    with _errors():
        from ov2_core.report.render import write_report
        from pipelines.run_identity import load_run_record

        record = load_run_record(Store(run))
        if record is not None and record.recipe == FEATURES_RECIPE:
            raise ValueError(f"{run} is a feature run; reports are of token runs: ov2 report {record.manifest_uri}")
        print(write_report(Store(run)))


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not start a Ray to see whether it works.")] = False,
) -> None:
    """What is installed, what can be decoded, what would fail. Exit code 1 if something that a run needs does not work."""
    with _errors():
        checks = doctor_checks.run_checks(start_ray=not quick)
        print("\n".join(check.line() for check in checks))
    raise typer.Exit(EXIT_INVALID if any(check.status == "FAIL" for check in checks) else 0)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sample corpus and its run.")] = Path("demo-run"),
    recipe: Recipe = "codec-32",
    workers: Workers = None,
    progress: ProgressMode = "auto",
) -> None:
    """Make a small sample corpus and take it all the way: plan, tokenize, verify, report."""
    with _errors():
        from jobs.sample_corpus import MANIFEST_NAME, make_corpus
        from ov2_core.storage.verify import verify_run

        corpus, run = out / "corpus", Store(str(out / "run"))
        manifest = corpus / MANIFEST_NAME
        if not manifest.exists():
            print(f"making a sample corpus in {corpus} ...", file=sys.stderr)
            manifest = make_corpus(corpus)
        options = _options(workers, None, 120.0, progress)
        code = _tokenize(str(manifest), run, _config(recipe, None), options, None)
        found = verify_run(run)
        print(verify_text(found))
    raise typer.Exit(code or (0 if found.ok else EXIT_INVALID))


_BENCHES = {
    "tokenizer": "CPU, wall and memory per clip and policy, held against plain decoding and the peer.",
    "legacy": "Whether the recipe authors-legacy shows the same places as codec-video-prep, clip by clip.",
    "encoder": "Rates and memory of the vision encoder by group length, held against matrix products.",
    "loader": "The loader against a bare tar read, webdataset and Energon, and the packing.",
    "train": "Tokens a second, MFU, memory and waits of training, against transformers' Trainer.",
    "learn": "Trains `tiny` on generated clips, each form of input apart, and judges it on held-out ones.",
    "headline": "JumpScore of `tiny` trained on codec tokens and on uniform frames, at equal visual tokens.",
    "poison": "Damaged and lying files between good ones: every row ends, no innocent is lost.",
    "canary": "Clips whose pixels say who they are: every token, caption and feature is bound to its own.",
    "kills": "SIGKILL to worker, actor, driver and node at every failpoint: the bytes stay the same.",
    "cost": "Fits what a plan predicts of CPU seconds to what clips take.",
    "scale": "Planning 10 M rows, resuming 100,000 shards, memory and time of the driver, parallel efficiency.",
    "spatial": "Proofs, guessing and cost of spatial questions on procedural scenes.",
}
"""Name of each benchmark, whose command line is `main` of jobs/bench_NAME.py, and what it measures."""
_NEED_TORCH = ("learn", "headline")


def _add_bench(name: str, text: str) -> None:
    @bench_app.command(
        name,
        help=f"{text} --help tells its options.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )
    def bench(context: typer.Context) -> None:
        with _errors():
            if name in _NEED_TORCH:
                need_torch()
            module = importlib.import_module(f"jobs.bench_{name}")
            raise typer.Exit(module.main(list(context.args)) or 0)


for _name, _text in _BENCHES.items():
    _add_bench(_name, _text)


def main() -> None:
    """Entry point of the command `ov2`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


def _tokenize(manifest: str, store: Store, config: RunConfig, options: Any, allowed: "_Allowed | None") -> int:
    from ov2_core.report.render import write_report
    from ov2_core.storage.verify import verify_run
    from pipelines.tokenize_videos import tokenize_videos

    summary = tokenize_videos(manifest, store, config, options)
    found = verify_run(store, deep=False)
    report_path = write_report(store)
    print(tokenize_text(summary, found, store, report_path))
    if not found.ok:
        return EXIT_INVALID
    return _quarantine_code(found, allowed)


class _SafeFormatter(logging.Formatter):
    """Log lines without credentials, and without what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)))


class _Allowed:
    """--max-quarantined: a number of rows, or a share of them."""

    def __init__(self, text: str) -> None:
        try:
            self.rows: int | None = None if "." in text else int(text)
            self.share = float(text)
        except ValueError:
            self.share = -1.0
        if self.share < 0 or (self.rows is None and self.share > 1):
            raise ValueError(f"--max-quarantined must be a number of rows (10) or a share (0.01), got {text!r}")

    def limit(self, manifest_rows: int) -> int:
        return self.rows if self.rows is not None else int(self.share * manifest_rows)


def _allowed(text: str | None) -> _Allowed | None:
    return None if text is None else _Allowed(text)


def _quarantine_code(found: VerifyReport, allowed: _Allowed | None) -> int:
    if allowed is None or found.quarantined <= allowed.limit(found.manifest_rows):
        return 0
    print(
        f"ov2: {found.quarantined} of {found.manifest_rows} rows are quarantined, "
        f"--max-quarantined allows {allowed.limit(found.manifest_rows)}",
        file=sys.stderr,
    )
    return EXIT_QUARANTINED


def _config(recipe: str, sets: list[str] | None) -> RunConfig:
    overrides = {}
    for text in sets or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set expects key=value, got {text!r}")
        overrides[name.strip()] = value
    return with_overrides(named_recipe(recipe), overrides)


def _options(
    workers: int | None, address: str | None, deadline_base: float, progress: Any, probe_cache: str | None = None
) -> Any:
    from pipelines.options import RunOptions
    from pipelines.tasks import DeadlinePolicy

    deadlines = DeadlinePolicy(base_seconds=deadline_base)
    return RunOptions(workers=workers, address=address, deadlines=deadlines, progress=progress, probe_cache=probe_cache)


def _why_no_sample(store: Store, key: str) -> str:
    from ov2_core.run_status import iter_failed

    for row in iter_failed(store):
        if row.id is not None and key in (row.id, key_of(row.id)):
            return f"{key}: quarantined as {row.reason}: {row.message}"
    return f"{store.root} has no sample {key!r}; keys stand in shards/*.tar, and ids in the manifest"


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """User errors become one line and exit code 2, a stopped run 4, an interrupt 130."""
    from pipelines.tasks import RunStoppedError

    try:
        yield
    except KeyboardInterrupt:
        print("\nov2: interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except RunStoppedError as error:
        if os.environ.get("OV2_DEBUG"):
            raise
        print(printable(redacted(f"ov2: stopped: {error}\nThe same command goes on from here.")), file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None
    except Exception as error:
        storage = type(error).__module__.partition(".")[0] in ("botocore", "aiohttp", "fsspec", "s3fs", "gcsfs")
        if os.environ.get("OV2_DEBUG") or not (storage or isinstance(error, ValueError | OSError)):
            raise
        print(printable(redacted(f"ov2: {error}")), file=sys.stderr)
        machine = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        if machine:
            print("The same command goes on from here once that is mended.", file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED if machine or is_transient(error) else EXIT_USAGE) from None


add_run_commands(app, _errors)
add_filter_commands(app, _errors)
add_model_commands(app, _errors)
add_stream_command(app, _errors)
add_encode_command(app, _errors)
add_curriculum_commands(app, _errors)
add_spatial_command(app, _errors)
add_eval_commands(app, _errors)
add_train_commands(app, _errors)

if __name__ == "__main__":
    main()
