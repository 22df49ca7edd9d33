"""`ov2 curriculum` and `ov2 stage inspect | verify | report`. torch is imported when a command runs."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import typer

from jobs.model_commands import need_torch
from jobs.recipes import stage as named_stage
from jobs.stage_text import check_lines, stage_text
from ov2_core.data.stage_config import with_settings
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.tasks import DeadlinePolicy

EXIT_INVALID = 1


def add_curriculum_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""
    add_stage_commands(app, errors)

    @app.command()
    def curriculum(
        recipe: Annotated[str, typer.Option(help="stage1, stage2, stage3 or stage4.")],
        sources: Annotated[
            str, typer.Option(help="YAML: sources: a list of {name, importer, path, weight or count, shards, ...}.")
        ],
        out: Annotated[str, typer.Option(help="STAGE: the folder that holds the stage; a path or an fsspec URL.")],
        model: Annotated[
            str | None,
            typer.Option(
                help="Folder of the model that will be trained: its tokenizer counts. All nodes must see it. "
                "Without it text counts in bytes, an upper bound."
            ),
        ] = None,
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
        fetch_host: Annotated[
            list[str] | None,
            typer.Option(help="With --fetch: host or host:port in a private network that may be asked. Repeatable."),
        ] = None,
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
            if model is None:
                print(
                    "no --model: text counts in bytes, which no byte-level tokenizer exceeds; packs of much text stay less full",
                    file=sys.stderr,
                )
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
                    fetch_hosts=tuple(fetch_host or ()),
                ),
                RunOptions(
                    workers=workers,
                    address=address,
                    deadlines=DeadlinePolicy(base_seconds=deadline_base),
                    progress=progress,
                ),
            )
            print(stage_text(record, store))


Stage = Annotated[str, typer.Argument(help="STAGE: a folder that `ov2 curriculum` made; a path or an fsspec URL.")]
Moved = Annotated[
    list[str] | None,
    typer.Option(help="OLD=NEW: a folder of token runs that lies elsewhere than when the stage was built. Repeatable."),
]


def add_stage_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds `ov2 stage ...`."""
    stage_app = typer.Typer(help="Look at a stage.", no_args_is_help=True)
    app.add_typer(stage_app, name="stage")

    @stage_app.command()
    def inspect(
        stage: Stage,
        pack: Annotated[int | None, typer.Argument(help="A pack's number: show its samples.")] = None,
        moved: Moved = None,
    ) -> None:
        """What a stage is made of, or one of its packs."""
        with errors():
            need_torch()
            from ov2_core.data.read_pack import open_packs
            from ov2_core.data.stage import load_stage
            from ov2_core.data.stage_samples import describe_pack

            store = Store(stage)
            record = load_stage(store)
            if pack is None:
                print(stage_text(record, store))
                return
            if not 0 <= pack < record.packing.num_packs:
                raise ValueError(f"{stage} has packs 0..{record.packing.num_packs - 1}, got {pack}")
            packs = open_packs(store, record, moved=moved_runs(moved))
            print(describe_pack(packs.load(pack, skip_bad=False)))
            packs.close()

    @stage_app.command()
    def verify(
        stage: Stage,
        quick: Annotated[bool, typer.Option("--quick", help="The index and the tars' sizes; no tar is read.")] = False,
        model: Annotated[
            str | None, typer.Option(help="Count every sample's tokens anew with this folder's tokenizer.")
        ] = None,
        moved: Moved = None,
    ) -> None:
        """Prove that a stage holds what stage.json says, and that each of its samples can be read."""
        with errors():
            need_torch()
            from ov2_core.data.verify_stage import verify_stage
            from ov2_core.model.processor import LlavaOnevision2Processor

            processor = None if model is None else LlavaOnevision2Processor.from_pretrained(model)
            found = verify_stage(Store(stage), deep=not quick, moved=moved_runs(moved), processor=processor)
            print("\n".join(check_lines(found)))
        raise typer.Exit(0 if found.ok else EXIT_INVALID)

    @stage_app.command()
    def report(stage: Stage, moved: Moved = None) -> None:
        """Write STAGE/stage.html: mixture, token budget, packing, and samples with their text and pictures."""
        with errors():
            need_torch()
            from ov2_core.data.stage_report import write_stage_report

            print(write_stage_report(Store(stage), moved=moved_runs(moved)))


def moved_runs(texts: list[str] | None) -> dict[str, str]:
    """Pairs of OLD=NEW. Raises ValueError for anything else."""
    pairs = [text.partition("=") for text in texts or []]
    if any(not old or not new for old, _, new in pairs):
        raise ValueError(f"--moved expects OLD=NEW, got {texts}")
    return {old: new for old, _, new in pairs}
