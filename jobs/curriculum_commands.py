"""`ov2 curriculum` and `ov2 stage inspect | verify | report`. torch is imported when a command runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import typer

from jobs.model_commands import need_torch
from jobs.recipes import stage as named_stage
from jobs.stage_text import stage_text
from ov2_core.data.stage_config import with_settings
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.scheduling import DeadlinePolicy

EXIT_INVALID = 1


def add_curriculum_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def curriculum(
        recipe: Annotated[str, typer.Option(help="stage1, stage2, stage3 or stage4.")],
        sources: Annotated[
            str, typer.Option(help="YAML: sources: a list of {name, importer, path, weight or count, shards, ...}.")
        ],
        out: Annotated[str, typer.Option(help="STAGE: the folder that holds the stage; a path or an fsspec URL.")],
        model: Annotated[
            str,
            typer.Option(help="Folder of the model that will be trained: its tokenizer counts. All nodes must see it."),
        ],
        limit: Annotated[
            int | None, typer.Option(help="Samples at most, the mixture scaled down exactly; for a toy.", min=1)
        ] = None,
        seed: Annotated[int, typer.Option(help="Which samples are drawn.", min=0)] = 0,
        materialize: Annotated[
            bool, typer.Option("--materialize", help="Write the stage's own shards with an Energon index too.")
        ] = False,
        shard_bytes: Annotated[int, typer.Option(help="Of those shards.", min=1)] = 1 << 30,
        fetch: Annotated[
            bool, typer.Option("--fetch", help="Allow images that rows name by URL to be fetched.")
        ] = False,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="Override a recipe field, e.g. sequence_length=32768.")
        ] = None,
        workers: Annotated[
            int | None, typer.Option(help="Worker processes; by default all CPUs. 0: in this process, without Ray.")
        ] = None,
        address: Annotated[str | None, typer.Option(help="A Ray cluster (auto, host:6379).")] = None,
        deadline_base: Annotated[
            float, typer.Option(help="Seconds that any chunk may take, beside 30 x predicted.")
        ] = 600.0,
        progress: Annotated[
            Literal["auto", "live", "plain", "off"], typer.Option(help="How progress is shown, on stderr.")
        ] = "auto",
    ) -> None:
        """Draw samples from sources, pack them into sequences and write a stage, or go on with it: the same command resumes."""
        with errors():
            need_torch()
            from pipelines.build_curriculum import CurriculumOptions, build_curriculum

            store = Store(out)
            record = build_curriculum(
                store,
                with_settings(named_stage(recipe), set_ or []),
                CurriculumOptions(
                    sources=sources,
                    model=model,
                    seed=seed,
                    limit=limit,
                    materialize=materialize,
                    shard_bytes=shard_bytes,
                    fetch=fetch,
                ),
                RunOptions(
                    workers=workers,
                    address=address,
                    deadlines=DeadlinePolicy(base_seconds=deadline_base),
                    progress=progress,
                ),
            )
            print(stage_text(record, store))
