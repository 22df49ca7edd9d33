"""`ov2 train`, `ov2 export`, `ov2 lineage`: torch is imported when it is needed; under torchrun every process runs `train`."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.model_commands import need_torch


def add_train_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def train(
        stage: Annotated[str, typer.Option(help="STAGE: what `ov2 curriculum` made; a path or an fsspec URL.")],
        recipe: Annotated[str, typer.Option(help="alignment, stage1, stage2, stage3 or stage4.")],
        init: Annotated[
            str, typer.Option(help="Folder of a model, or a preset with random weights: tiny, 2b, 4b, 8b.")
        ],
        out: Annotated[Path, typer.Option(help="CKPT: folder of the run; all nodes must see it.")],
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, if any.")] = False,
        max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps of the run.", min=1)] = None,
        seed: Annotated[int, typer.Option(help="Order of packs, random weights.", min=0)] = 0,
        tokenizer: Annotated[str | None, typer.Option(help="Folder whose tokenizer a preset takes.")] = None,
        features: Annotated[
            list[str] | None,
            typer.Option(
                help="RUN2 of `ov2 encode --unmerged`, repeatable: features of a frozen encoder in place of pixels."
            ),
        ] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="Override a recipe field, e.g. global_batch=8, lora.rank=16.")
        ] = None,
        loader_workers: Annotated[int, typer.Option(help="Threads that read packs, on each rank.", min=0)] = 2,
        on_bad: Annotated[
            Literal["raise", "skip"], typer.Option(help="Samples that cannot be read: stop, or leave out and count.")
        ] = "raise",
        device: Annotated[
            Literal["cpu", "cuda"] | None, typer.Option(help="By default cuda where there is one.")
        ] = None,
        moved: Annotated[
            list[str] | None, typer.Option(help="OLD=NEW: token runs that lie elsewhere than when the stage was built.")
        ] = None,
        ray_workers: Annotated[
            int | None,
            typer.Option(
                help="Ranks under Ray Train, which restarts them when one dies; with --device cuda a GPU each.", min=1
            ),
        ] = None,
        address: Annotated[str | None, typer.Option(help="Of a Ray cluster, with --ray-workers.")] = None,
        max_failures: Annotated[int, typer.Option(help="Restarts under Ray Train; -1: no limit.", min=-1)] = 3,
        wandb: Annotated[str | None, typer.Option(help="Log to this project of Weights & Biases too.")] = None,
    ) -> None:
        """Train a model on a stage. The same command with --resume goes on, on any number of ranks.

        One process: `ov2 train ...`. Several: `torchrun --nproc-per-node 8 -m jobs.cli train ...`, or `--ray-workers 8`.
        """
        with errors():
            need_torch()
            from jobs.curriculum_commands import moved_runs
            from jobs.train_recipes import training
            from ov2_core.config import with_settings
            from ov2_core.train.train import TrainOptions
            from ov2_core.train.train import train as run

            config = with_settings(training(recipe), set_ or [])
            options = TrainOptions(
                stage=stage,
                init=init,
                out=str(out),
                resume=resume,
                max_steps=max_steps,
                seed=seed,
                tokenizer=tokenizer,
                features=tuple(features or ()),
                num_workers=loader_workers,
                on_bad=on_bad,
                device=device,
                moved=tuple(moved_runs(moved).items()),
                wandb_project=wandb,
            )
            if ray_workers is None:
                result = run(config, options)
            else:
                from pipelines.train_model import RayTraining, train_on_ray

                ray_training = RayTraining(
                    workers=ray_workers, address=address, gpu=device == "cuda", max_failures=max_failures
                )
                result = train_on_ray(config, options, ray_training)
            print(f"step {result.step}; {result.checkpoint}")

    @app.command()
    def export(
        run: Annotated[Path, typer.Argument(help="CKPT: folder of `ov2 train --out`.")],
        out: Annotated[str, typer.Option(help="New folder; its parents are made.")],
        step: Annotated[int | None, typer.Option(help="Of the checkpoint; by default the newest.", min=1)] = None,
        best: Annotated[bool, typer.Option("--best", help="The checkpoint of the lowest validation loss.")] = False,
        dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")] = "bfloat16",
    ) -> None:
        """A checkpoint to a model's folder: for transformers, `ov2 generate`, or the next stage's --init. No GPU is needed."""
        with errors():
            need_torch()
            from ov2_core.generate import DTYPES
            from ov2_core.train.export import export_checkpoint

            found = export_checkpoint(run, out, step=step, best=best, dtype=DTYPES[dtype])
            print(f"{out}: step {found.step} of {run}, {dtype}")

    @app.command()
    def lineage(
        run: Annotated[Path, typer.Argument(help="CKPT: folder of `ov2 train --out`.")],
        step: Annotated[int | None, typer.Option(help="List what this step has seen.", min=1)] = None,
        sample: Annotated[str | None, typer.Option(help="SOURCE/ID: list the steps that have seen it.")] = None,
        media: Annotated[
            str | None, typer.Option(help="Key of a video or still: list the steps that have seen it.")
        ] = None,
        stage: Annotated[str | None, typer.Option(help="Where the run's stage lies now, if it was moved.")] = None,
        moved: Annotated[
            list[str] | None, typer.Option(help="OLD=NEW: token runs that lie elsewhere than when the stage was built.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    ) -> None:
        """Which samples and videos a training step has seen, or which steps have seen one of them."""
        with errors():
            from jobs.curriculum_commands import moved_runs
            from ov2_core.train.lineage import Lineage

            if sum(asked is not None for asked in (step, sample, media)) != 1:
                raise ValueError("give one of --step, --sample and --media")
            found = Lineage(run, stage=stage, moved=moved_runs(moved))
            if step is not None:
                seen = found.step(step)
                print(json.dumps(seen.to_dict()) if as_json else "\n".join(seen.lines()))
                return
            if sample is not None:
                source, slash, id = sample.partition("/")
                if not slash:
                    raise ValueError(f"--sample expects SOURCE/ID, got {sample!r}")
                steps = found.steps_of_sample(source, id)
            else:
                steps = found.steps_of_medium(media or "")
            print(json.dumps({"steps": steps}) if as_json else f"steps: {', '.join(map(str, steps)) or 'none so far'}")
