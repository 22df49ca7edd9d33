"""`ov2 refilter, near-duplicates, split-shots`: which rows a run takes, and rows of clips made of long videos. docs/filters.md."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from jobs.model_commands import need_torch
from jobs.run_commands import Address, DeadlineBase, ProgressMode, Run, Workers, finish_round, run_options
from jobs.summary import counts_text, line_text, plan_text
from ov2_core.storage.files import Store
from ov2_core.storage.source import allow_sources
from pipelines.progress import duration_text

SourceRoots = Annotated[list[str] | None, typer.Option(help="Folder that local sources must lie in. Repeatable.")]
FetchHosts = Annotated[
    list[str] | None, typer.Option(help="host or host:port of http(s) sources at a private address. Repeatable.")
]


def add_filter_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def refilter(
        run: Run,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="A threshold: filter.min_duration_seconds=1. Repeatable.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what the thresholds would do.")] = False,
        workers: Workers = None,
        address: Address = None,
        deadline_base: DeadlineBase = 120.0,
        progress: ProgressMode = "auto",
    ) -> None:
        """Other thresholds, without measuring again: a plan is rewritten; a finished run takes in what they let pass."""
        code = 0
        with errors():
            from pipelines.refilter import count_refiltered, refilter_plan, refilter_run
            from pipelines.run_identity import load_run_record

            store, settings = Store(run), set_ or []
            if dry_run:
                counts = count_refiltered(store, settings)
                print(line_text("would be kept", f"{counts.kept}"))
                print(line_text("filtered", counts_text(counts.filtered)))
                if counts.published_against:
                    print(
                        line_text(
                            "published", f"{counts_text(counts.published_against)} would be filtered now; they stay"
                        )
                    )
            elif load_run_record(store) is None:
                print(plan_text(refilter_plan(store, settings), store, where=run))
            else:
                summary, counts = refilter_run(store, settings, run_options(workers, address, deadline_base, progress))
                print(line_text("taken in", f"{counts.kept}; left out still: {counts_text(counts.filtered)}"))
                code = finish_round(store, summary)
        raise typer.Exit(code)

    @app.command(name="split-shots")
    def split_shots(
        manifest: Annotated[str, typer.Argument(help="JSONL (.gz), CSV or Parquet, of long videos.")],
        out: Annotated[str, typer.Option(help="The manifest of clips: a .jsonl file or URL.")],
        min_seconds: Annotated[float, typer.Option(help="Clips below are left out.")] = 1.0,
        max_seconds: Annotated[float, typer.Option(help="Longer shots are cut into equal parts.")] = 60.0,
        workers: Workers = None,
        address: Address = None,
        deadline_base: DeadlineBase = 120.0,
        progress: ProgressMode = "auto",
        source_root: SourceRoots = None,
        fetch_host: FetchHosts = None,
    ) -> None:
        """Find the hard cuts of long videos and write a manifest of their shots, a row with start and end each."""
        with errors():
            from ov2_core.split_row import SplitConfig
            from pipelines.split_shots import split_shots as split

            allow_sources(roots=source_root, fetch_hosts=fetch_host)
            config = SplitConfig(min_seconds=min_seconds, max_seconds=max_seconds)
            done = split(manifest, out, config, run_options(workers, address, deadline_base, progress))
            print(line_text("rows", f"{done.num_rows}, {duration_text(done.video_seconds)} of video"))
            print(line_text("shots", f"{done.num_shots}"))
            print(line_text("written", f"{done.num_written} rows to {out}"))
            if done.num_empty:
                print(line_text("too short", f"{done.num_empty} rows without a clip of {min_seconds:g} s"))
            if done.problems:
                print(line_text("as they were", f"{counts_text(done.problems)}; `ov2 plan` will name them"))

    @app.command(name="near-duplicates")
    def near_duplicates(
        run: Annotated[str, typer.Argument(help="RUN2: a feature run of `ov2 encode`.")],
        out: Annotated[str, typer.Option(help="A .jsonl file or URL, for --set filter.leave_out=...")],
        min_cosine: Annotated[float, typer.Option(help="Cosine of mean features from which samples are alike.")] = 0.98,
    ) -> None:
        """List samples that look to the encoder like an earlier one; `ov2 plan` and `ov2 refilter` leave such a list out."""
        with errors():
            need_torch()
            from ov2_core.features.near_duplicates import find_repeats, mean_features
            from ov2_core.features.reader import FeatureReader

            folder, _, name = out.rpartition("/")
            if not name.endswith(".jsonl"):
                raise ValueError(f"--out must name a .jsonl file, got {out!r}")
            with FeatureReader(run) as reader:
                means = mean_features(reader)
            repeats = find_repeats(means, min_cosine=min_cosine)
            data = "".join(row.model_dump_json() + "\n" for row in repeats).encode()
            Store(folder or ("/" if out.startswith("/") else ".")).write_bytes(name, data)
            print(line_text("samples", f"{len(means.lines)}"))
            print(line_text("alike", f"{len(repeats)} to an earlier one, in {out}"))
