"""`ov2 generate`, `ov2 model merge` and `ov2 model info`: arguments to calls, results to text.

torch is imported when a command runs: the command line itself works without it.
"""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import typer

EXIT_INVALID = 1

Folder = Annotated[Path, typer.Option(help="Folder of a model: config.json, safetensors, tokenizer.json.")]


def add_model_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""
    model_app = typer.Typer(help="Model folders.", no_args_is_help=True)
    app.add_typer(model_app, name="model")

    @app.command()
    def generate(
        model: Folder,
        prompt: Annotated[str, typer.Option(help="The question.")],
        video: Annotated[Path | None, typer.Option(help="A video, or a still.")] = None,
        image: Annotated[list[Path] | None, typer.Option(help="A still. Repeatable.")] = None,
        input: Annotated[
            Literal["codec", "frames", "stills"],
            typer.Option(help="How a video is shown: canvases, uniform frames, or uniform frames without times."),
        ] = "codec",
        budget: Annotated[int, typer.Option(help="Canvases or frames.", min=1)] = 32,
        attend: Annotated[
            Literal["group", "image"],
            typer.Option(help="What the encoder attends over: a group of canvases, or each image alone."),
        ] = "group",
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="Override a recipe field, e.g. policy=evidence. Repeatable.")
        ] = None,
        max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.", min=1)] = 512,
        temperature: Annotated[float, typer.Option(help="0: the likeliest token; above: sampled.", min=0.0)] = 0.0,
        device: Annotated[
            str | None, typer.Option(help="cpu, cuda, cuda:1; by default the GPU where there is one.")
        ] = None,
        dtype: Annotated[
            Literal["auto", "bfloat16", "float16", "float32"],
            typer.Option(help="Of the weights; auto: bfloat16 on a GPU, float32 on a CPU."),
        ] = "auto",
        show_times: Annotated[
            bool, typer.Option("--show-times", help="List the source times that the model sees.")
        ] = False,
    ) -> None:
        """Ask a model about a video or stills. The answer streams to stdout; what the model was shown goes to stderr."""
        with errors():
            if video is None and not image:
                raise ValueError("nothing to ask about: give --video or --image")
            overrides = overrides_of(set_ or [])
            need_torch()
            from ov2_core.generate import DTYPES, load

            chat = load(model, device=device, dtype=DTYPES.get(dtype))
            began = time.perf_counter()
            question = chat.prepare(
                prompt, video=video, image=image, input=input, budget=budget, attend=attend, overrides=overrides
            )
            prepared_seconds = time.perf_counter() - began
            print(f"{question.timeline()}; prepared in {prepared_seconds:.1f} s", file=sys.stderr)
            if show_times:
                print(question.times(), file=sys.stderr)
            began, first_seconds = time.perf_counter(), None
            for piece in chat.generate(question, max_new_tokens=max_new_tokens, temperature=temperature):
                first_seconds = first_seconds or time.perf_counter() - began
                print(piece, end="", flush=True)
            print()
            seconds = time.perf_counter() - began
            print(f"first text after {first_seconds or seconds:.1f} s, {seconds:.1f} s in all", file=sys.stderr)

    @model_app.command()
    def merge(
        encoder: Annotated[Path, typer.Option(help="Folder of a standalone OneVision-Encoder, or of a whole model.")],
        llm: Annotated[Path, typer.Option(help="Folder of a Qwen3 with its tokenizer, or of a whole model.")],
        out: Annotated[Path, typer.Option(help="New folder.")],
        dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")] = "bfloat16",
        connector_seed: Annotated[int, typer.Option(help="Of a connector that no folder gives.")] = 0,
    ) -> None:
        """Make a whole model of an encoder and a language model. A connector that no folder gives is random: train it."""
        with errors():
            need_torch()
            from ov2_core.generate import DTYPES
            from ov2_core.model.merge import merge_checkpoints
            from ov2_core.model.processor import LlavaOnevision2Processor
            from ov2_core.model.weights import read_config

            report = merge_checkpoints(encoder, llm, out, dtype=DTYPES[dtype], connector_seed=connector_seed)
            print("\n".join(report.lines()))
            if (out / "tokenizer_config.json").is_file() or (out / "tokenizer.json").is_file():
                processor, config = LlavaOnevision2Processor.from_pretrained(out), read_config(out)
                processor.save_pretrained(out)
                config.update(processor.token_ids())
                config.save_pretrained(out)
            else:
                print(f"{llm} has no tokenizer; copy one with Qwen's special tokens into {out}", file=sys.stderr)
        raise typer.Exit(0 if report.ok else EXIT_INVALID)

    @model_app.command()
    def info(folder: Annotated[Path, typer.Argument(help="Folder of a model, an encoder or a Qwen3.")]) -> None:
        """What a folder holds, and whether every tensor is there and fits. Exit code 1 if one does not."""
        with errors():
            need_torch()
            from ov2_core.model.describe import describe_checkpoint

            report = describe_checkpoint(folder)
            print("\n".join(report.lines()))
        raise typer.Exit(0 if report.ok else EXIT_INVALID)


def need_torch() -> None:
    """Raises ValueError where the model's dependencies are not installed."""
    from importlib.util import find_spec

    absent = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
    if absent:
        raise ValueError(f"{', '.join(absent)} not installed; models need them: pip install 'ov2-pipeline[model]'")


def overrides_of(sets: list[str]) -> dict[str, str]:
    """--set texts as pairs; raises ValueError for one without "="."""
    pairs = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set expects key=value, got {text!r}")
        pairs[name.strip()] = value
    return pairs
