"""`ov2 refilter` and `ov2 split-shots`: which rows a run takes, and rows of clips made of long videos. docs/filters.md."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from jobs.run_commands import Address, DeadlineBase, ProgressMode, Run, Workers, finish_round, run_options
from jobs.summary import counts_text, line_text, plan_text
from ov2_core.storage.files import Store


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
