"""`ov2 spatial`, and the text of its results."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import typer

from jobs.summary import line_text, verdict_lines
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.progress import duration_text
from pipelines.tasks import DeadlinePolicy
from schemas.run import VerifyReport

EXIT_INVALID = 1


def add_spatial_command(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the command; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def spatial(
        scenes: Annotated[
            str,
            typer.Option(help="A folder or URL of scenes (layouts: docs/spatial.md), or procedural:COUNT?seed=S."),
        ],
        out: Annotated[str, typer.Option(help="RUN: the folder that holds the run.")],
        recipe: Annotated[str, typer.Option(help="spatial-4m.")] = "spatial-4m",
        input: Annotated[
            Literal["stills", "frames", "codec"],
            typer.Option(help="What questions are shown with: stills, or the scene's video as frames or codec stream."),
        ] = "stills",
        per_type: Annotated[int, typer.Option(help="Questions of a type that a scene may give.", min=1)] = 20,
        seed: Annotated[int, typer.Option(help="Of what is asked.", min=0)] = 0,
        set_: Annotated[
            list[str] | None,
            typer.Option(
                "--set", help="Change the recipe: max_share=0.2, scenes_per_shard=20, quotas.depth_point=5; repeatable."
            ),
        ] = None,
        export_scenes: Annotated[
            str | None, typer.Option(help="Write each scene in our plain format below this folder.")
        ] = None,
        workers: Annotated[
            int | None, typer.Option(help="Worker processes; by default one a CPU. 0: in this process, without Ray.")
        ] = None,
        address: Annotated[str | None, typer.Option(help="A Ray cluster (auto, host:6379).")] = None,
        deadline_base: Annotated[
            float, typer.Option(help="Seconds that any shard may take, beside 30 x its predicted time.")
        ] = 120.0,
        gallery: Annotated[int, typer.Option(help="Questions a type in RUN/gallery.html; 0: none.", min=0)] = 3,
        progress: Annotated[
            Literal["auto", "live", "plain", "off"], typer.Option(help="How progress is shown, on stderr.")
        ] = "auto",
    ) -> None:
        """Make proven spatial and tracking questions of scenes, or go on with them: the same command resumes."""
        with errors():
            from ov2_core.spatial.gallery import write_gallery
            from ov2_core.spatial.recipe import SpatialRecipe, with_settings
            from ov2_core.spatial.run_files import verify_spatial
            from pipelines.generate_spatial_qa import generate_spatial_qa

            config = with_settings(
                SpatialRecipe(name=recipe, seed=seed, questions_per_type=per_type, input=input), set_ or []
            )
            options = RunOptions(
                workers=workers,
                address=address,
                deadlines=DeadlinePolicy(base_seconds=deadline_base),
                progress=progress,
            )
            store = Store(out)
            summary = generate_spatial_qa(scenes, store, config, options, export_folder=export_scenes)
            found = verify_spatial(store)
            page = write_gallery(store, per_type=gallery) if gallery else None
            print(spatial_text(summary, found, store, page))
        raise typer.Exit(0 if found.ok else EXIT_INVALID)


def spatial_text(summary: "object", found: VerifyReport, store: Store, page: str | None) -> str:
    """What an invocation did, yields by type, what fell most, and where it stands."""
    from pipelines.generate_spatial_qa import SpatialSummary

    assert isinstance(summary, SpatialSummary)
    report = summary.report
    lines = [
        line_text("scenes", f"{found.committed} used, {found.filtered} filtered, {found.quarantined} quarantined"),
        line_text("questions", f"{report.num_questions:,} proven, of {report.num_drafted:,} drafted"),
        line_text(
            "this run",
            f"{summary.num_scenes} scenes, {summary.num_questions:,} questions in {duration_text(summary.wall_seconds)}",
        ),
    ]
    if summary.num_shards_before:
        lines.append(line_text("resumed", f"{summary.num_shards_before} of {summary.num_shards} shards stood already"))
    if summary.num_worker_deaths:
        lines.append(line_text("worker deaths", f"{summary.num_worker_deaths}"))
    for kind, count in report.shipped.items():
        fallen = sorted(report.dropped.get(kind, {}).items(), key=lambda item: -item[1])[:2]
        why = "; ".join(f"{reason} {number}" for reason, number in fallen)
        lines.append(f"    {kind:<22}{count:>8,}  {count / max(1, report.num_questions):6.1%}  {why}")
    lines.append(line_text("records", store.url("records/")))
    if page is not None:
        lines.append(line_text("gallery", page))
    return "\n".join([*lines, *verdict_lines(found)])
