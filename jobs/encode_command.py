"""`ov2 encode` and the text of its results. torch is imported when the command runs.

The summary's numbers are measured by the workers themselves: the share of their time, from the first read of a shard to its commit,
in which the encoder was at work; the rest is waiting for pixels, for the writer, reading and committing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import typer

from jobs.model_commands import need_torch
from jobs.summary import line_text, size_text, verdict_lines
from ov2_core.storage.files import Store
from pipelines.extract_features import EncodeOptions, EncodeSummary, extract_features, predict_features
from pipelines.options import RunOptions
from pipelines.progress import duration_text
from pipelines.tasks import DeadlinePolicy
from schemas.features import FeatureConfig
from schemas.run import VerifyReport
from schemas.shard import PlanRecord

EXIT_INVALID = 1


def add_encode_command(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the command; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def encode(
        shards: Annotated[str, typer.Option(help="RUN: a finished token run; a path or an fsspec URL.")],
        out: Annotated[str, typer.Option(help="RUN2: the folder that holds the feature run.")],
        model: Annotated[
            str, typer.Option(help="Folder of a model, or of an encoder (--unmerged). All nodes must see it.")
        ],
        merged: Annotated[
            bool, typer.Option("--merged/--unmerged", help="Tokens behind the connector, or a row a patch before it.")
        ] = True,
        dtype: Annotated[
            Literal["bf16", "int8", "fp32"], typer.Option(help="As stored; int8 has a scale a row.")
        ] = "bf16",
        device: Annotated[
            Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU where this machine has one.")
        ] = "auto",
        gpus_per_worker: Annotated[float, typer.Option(help="On GPUs; 0.5: two workers share one.", min=0.01)] = 1.0,
        tokens_per_batch: Annotated[
            int | None, typer.Option(help="Merged tokens of a batch; by default 1568 on a CPU, 16384 on a GPU.", min=1)
        ] = None,
        decode_threads: Annotated[
            int | None, typer.Option(help="Threads of a worker that decode; by default 1 on a CPU, 4 on a GPU.", min=1)
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(help="Worker processes; by default one a CPU or GPU. 0: in this process, without Ray."),
        ] = None,
        address: Annotated[
            str | None, typer.Option(help="A Ray cluster (auto, host:6379); say --device cpu or cuda with it.")
        ] = None,
        deadline_base: Annotated[
            float, typer.Option(help="Seconds that any shard may take, beside 30 x its predicted time.")
        ] = 120.0,
        progress: Annotated[
            Literal["auto", "live", "plain", "off"], typer.Option(help="How progress is shown, on stderr.")
        ] = "auto",
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Print the exact bytes and tokens; read no weights, leave nothing in RUN2."),
        ] = False,
    ) -> None:
        """Encode the shards of a token run with a frozen encoder, or go on with it: the same command resumes."""
        with errors():
            need_torch()
            from ov2_core.features.encoder import choose_device
            from ov2_core.storage.verify import verify_run

            if address is not None and device == "auto":
                raise ValueError("--device auto looks at this machine alone; with --address say --device cpu or cuda")
            chosen = choose_device(device)
            options = EncodeOptions(
                model=model,
                stage="merged" if merged else "unmerged",
                dtype=dtype,
                device=chosen,
                tokens_per_batch=tokens_per_batch,
                decode_threads=decode_threads,
            )
            if dry_run:
                print(prediction_text(*predict_features(Store(shards), options)))
                return
            run_options = RunOptions(
                workers=workers,
                address=address,
                gpus_per_worker=gpus_per_worker if chosen == "cuda" else 0.0,
                deadlines=DeadlinePolicy(base_seconds=deadline_base),
                progress=progress,
            )
            store = Store(out)
            summary = extract_features(Store(shards), store, options, run_options)
            found = verify_run(store, deep=False)
            print(encode_text(summary, found, store))
        raise typer.Exit(0 if found.ok else EXIT_INVALID)


def prediction_text(plan: PlanRecord, config: FeatureConfig) -> str:
    """What a feature run will hold."""
    return "\n".join(
        [
            line_text("samples", f"{plan.num_planned} in {plan.num_shards} shards"),
            line_text("features", f"{config.stage}, {config.width} values a row, {config.dtype}"),
            line_text("tokens", f"{plan.predicted_tokens:,}"),
            line_text("bytes", f"{plan.predicted_bytes:,} ({size_text(plan.predicted_bytes)}), if no sample falls"),
        ]
    )


def encode_text(summary: EncodeSummary, found: VerifyReport, store: Store) -> str:
    """What an invocation did, what the run holds, and where it stands."""
    wall = max(summary.wall_seconds, 1e-9)
    lines = [
        line_text("committed", f"{found.committed} samples in {found.shards} shards, {size_text(found.tar_bytes)}"),
        line_text("tokens", f"{found.num_tokens:,}"),
        line_text(
            "this run",
            f"{summary.num_made} samples, {summary.num_tokens:,} tokens in {duration_text(wall)} "
            f"({summary.num_tokens / wall:.0f} tokens/s)",
        ),
    ]
    if summary.worker_seconds:
        starved = summary.starved_seconds / summary.worker_seconds
        lines.append(
            line_text(
                "encoder",
                f"at work {summary.compute_share:.1%} of {summary.worker_seconds:.1f} worker seconds, waiting for pixels "
                f"{starved:.1%}; {summary.num_flops / summary.encode_seconds / 1e9:.1f} GFLOP/s a worker",
            )
        )
    if summary.num_shards_before:
        lines.append(line_text("resumed", f"{summary.num_shards_before} of {summary.num_shards} shards stood already"))
    if summary.num_worker_deaths:
        lines.append(line_text("worker deaths", f"{summary.num_worker_deaths}"))
    lines.append(line_text("shards", store.url("shards/")))
    return "\n".join([*lines, *verdict_lines(found)])
