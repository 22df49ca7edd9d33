"""`ov2 eval` and `ov2 eval-data`: arguments to calls, results to text. torch is imported only where a model answers."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from jobs.model_commands import need_torch, overrides_of
from ov2_core.evals.curves import CurvePoint
from ov2_core.evals.evaluate import Evaluation, Suite
from ov2_core.evals.item import TruthItem

SuiteName = Literal["jumpscore", "grounding", "counting", "tracking", "spatial", "evidence"]
AskMode = Literal["codec", "evidence", "frames", "stills"]
Truth = Annotated[
    Path, typer.Option(help="JSON lines {id, answer}, and {video, question} to ask; CSV and Parquet too.")
]
Model = Annotated[Path | None, typer.Option(help="Folder of a model of ours.")]
Server = Annotated[str | None, typer.Option(help="An OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1 (vLLM).")]
ServerModel = Annotated[str | None, typer.Option(help="The model's name there.")]
ServerMedia = Annotated[Literal["frames", "video"], typer.Option(help="What a server is sent.")]
InFlight = Annotated[int, typer.Option(help="Requests at a time.", min=1)]
Timeout = Annotated[float, typer.Option(help="Seconds that a request may take.", min=0.1)]
KeyEnv = Annotated[str | None, typer.Option(help="Name of the environment variable that holds the server's key.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field of the recipe, e.g. area_px=50176. Repeatable.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default the GPU where there is one.")]
Dtype = Annotated[Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")]
Limit = Annotated[int | None, typer.Option(help="Only the first items of the truth.", min=1)]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.", min=0)]


def add_eval_commands(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the commands; `errors` turns exceptions into messages and exit codes."""

    @app.command("eval")
    def eval_(
        suite: Annotated[SuiteName, typer.Option(help="What is asked.")],
        truth: Truth,
        predictions: Annotated[Path | None, typer.Option(help="JSON lines {id, prediction}, of any model.")] = None,
        model: Model = None,
        server: Server = None,
        server_model: ServerModel = None,
        server_media: ServerMedia = "frames",
        in_flight: InFlight = 8,
        timeout: Timeout = 300.0,
        key_env: KeyEnv = None,
        input: Annotated[AskMode, typer.Option(help="How a model of ours sees a video.")] = "codec",
        budget: Annotated[int, typer.Option(help="Canvases or frames.", min=1)] = 32,
        set_: Sets = None,
        max_new_tokens: MaxNewTokens = 1024,
        device: Device = None,
        dtype: Dtype = "auto",
        out: Annotated[
            Path | None, typer.Option(help="File for a model's answers; goes on with what is there.")
        ] = None,
        tokens: Annotated[
            str | None, typer.Option(help="RUN: a token run of the clips; scored by evidence, drawn in the report.")
        ] = None,
        recipe: Annotated[str | None, typer.Option(help="For evidence without RUN: tokenize by this recipe.")] = None,
        propagator: Annotated[
            str | None, typer.Option(help="For tracking with masks: a SAM 2 folder, or colour (generated clips).")
        ] = None,
        limit: Limit = None,
        seed: Seed = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
        report: Annotated[Path | None, typer.Option(help="Write an HTML page with timelines.")] = None,
    ) -> None:
        """Score answers, or ask a model and score it: means over items with 95 % intervals. Missing answers count as wrong."""
        with errors():
            from ov2_core.evals.answers import read_truth
            from ov2_core.evals.suites import suite_named
            from pipelines import evaluate_model as run

            chosen = suite_named(suite)
            whole = read_truth(truth, chosen.parse_truth)
            items = whole[:limit]
            left_out = {item.id for item in whole[len(items) :]}
            overrides = overrides_of(set_ or [])
            sources = [
                name
                for name, given in (("--predictions", predictions), ("--model", model), ("--server", server))
                if given
            ]
            bins = None
            if suite == "evidence":
                if (tokens is None) == (recipe is None) or sources:
                    raise ValueError("the suite evidence scores tokens: give --tokens RUN or --recipe, and no model")
                found, bins = _evidence(items, tokens, recipe, overrides, seed)
            else:
                if len(sources) != 1:
                    raise ValueError(
                        f"give one of --predictions, --model and --server, got {' and '.join(sources) or 'none'}"
                    )
                if recipe is not None:
                    raise ValueError(
                        f"--recipe belongs to the suite evidence, not to {suite}; for a model give --input"
                    )
                if predictions is not None and (out is not None or overrides):
                    raise ValueError(
                        "--out and --set belong to --model and --server; with --predictions nothing is asked"
                    )
                if propagator is not None:
                    chosen = _with_masks(chosen, propagator, device)
                bins = run.bins_of_run(tokens, items) if tokens is not None else None
                if predictions is not None:
                    found = run.evaluate_file(
                        chosen,
                        items,
                        str(predictions),
                        seed=seed,
                        notes={"predictions": str(predictions)},
                        left_out=left_out,
                    )
                else:
                    if out is None:
                        raise ValueError("give --out, a file for the answers")
                    if model is not None:
                        need_torch()
                        options = run.ModelOptions(
                            folder=str(model),
                            device=device,
                            dtype=dtype,
                            max_new_tokens=max_new_tokens,
                            overrides=overrides,
                        )
                        answerer = run.LoadedModel(options).answerer(input, budget)
                    else:
                        answerer = _server(
                            server,
                            server_model,
                            server_media,
                            budget,
                            overrides,
                            max_new_tokens,
                            timeout,
                            in_flight,
                            key_env,
                        )
                    found = run.ask_and_evaluate(
                        chosen, items, answerer, str(out), seed=seed, on_answer=_show, left_out=left_out
                    )
            print(json.dumps(found.to_json(), indent=2) if as_json else evaluation_text(found))
            if report is not None:
                run.write_page(str(report), found, items, bins=bins)
                print(f"report: {report}", file=sys.stderr)
        if failed := found.notes.get("num_failed"):
            told = (
                f"{failed} of {len(items)} questions failed, count as missing and are asked again by the same command"
            )
            print(f"ov2: {told}; the first: {found.notes['first_error']}", file=sys.stderr)
            if failed == len(items):
                raise typer.Exit(1)

    @app.command("eval-curves")
    def eval_curves(
        suite: Annotated[
            Literal["jumpscore", "grounding", "counting", "tracking", "spatial"], typer.Option(help="What is asked.")
        ],
        truth: Truth,
        out: Annotated[Path, typer.Option(help="Folder for answers, curves.json, curves.svg and report.html.")],
        model: Model = None,
        server: Server = None,
        server_model: ServerModel = None,
        in_flight: InFlight = 8,
        timeout: Timeout = 300.0,
        key_env: KeyEnv = None,
        modes: Annotated[str, typer.Option(help="Inputs: codec, evidence, frames, stills.")] = "codec,evidence,frames",
        budgets: Annotated[str, typer.Option(help="Canvases or frames.")] = "4,8,16,32,64,128",
        set_: Sets = None,
        max_new_tokens: MaxNewTokens = 1024,
        device: Device = None,
        dtype: Dtype = "auto",
        limit: Limit = None,
        seed: Seed = 0,
    ) -> None:
        """Codec against uniform: the same questions over input modes and budgets, the metric against tokens. Resumes."""
        with errors():
            from ov2_core.evals.curves import curves_text
            from pipelines import evaluate_model as run

            if (model is None) == (server is None):
                raise ValueError("give one of --model and --server")
            overrides = overrides_of(set_ or [])
            names = [mode.strip() for mode in modes.split(",") if mode.strip()]
            try:
                counts = [int(budget) for budget in budgets.split(",") if budget.strip()]
            except ValueError:
                raise ValueError(f"--budgets must be whole numbers with commas between, got {budgets!r}") from None
            if unknown := set(names) - set(get_args(AskMode)):
                raise ValueError(
                    f"unknown modes {', '.join(sorted(unknown))}; there are {', '.join(get_args(AskMode))}"
                )
            if model is not None:
                need_torch()
                options = run.ModelOptions(
                    folder=str(model), device=device, dtype=dtype, max_new_tokens=max_new_tokens, overrides=overrides
                )
                answerer_of = run.LoadedModel(options).answerer
            else:
                if names != ["frames"]:
                    raise ValueError("a server is sent frames alone: --modes frames")

                def answerer_of(mode: str, budget: int) -> Any:
                    return _server(
                        server, server_model, "frames", budget, overrides, max_new_tokens, timeout, in_flight, key_env
                    )

            points = run.run_curves(
                suite, str(truth), str(out), answerer_of=answerer_of, modes=names, budgets=counts, overrides=overrides,
                seed=seed, limit=limit,
                on_point=_show_point,
            )  # fmt: skip
            print(curves_text(points))
            print(f"figure: {out / 'curves.svg'}\nreport: {out / 'report.html'}")

    data_app = typer.Typer(help="Data for evaluations, with truth known because it is made.", no_args_is_help=True)
    app.add_typer(data_app, name="eval-data")

    @data_app.command("jumpscore")
    def jumpscore_data(
        out: Annotated[Path, typer.Option(help="Folder for the clips, manifest.jsonl and truth.jsonl.")],
        clips: Annotated[int, typer.Option(help="How many.", min=1)],
        split: Annotated[
            Literal["train", "heldout"], typer.Option(help="They share no seed, clothes, sizes, rates or grain.")
        ] = "train",
        seed: Annotated[int, typer.Option(help="Of the first clip, in millions.", min=0)] = 0,
        seconds: Annotated[float, typer.Option(help="Of a clip.", min=0.1)] = 8.0,
        width: Annotated[int, typer.Option(help="Pixels.", min=48)] = 640,
        height: Annotated[int, typer.Option(help="Pixels.", min=48)] = 360,
        fps: Annotated[str | None, typer.Option(help="30 or 30000/1001; by default one of the split's rates.")] = None,
        tempo: Annotated[tuple[float, float], typer.Option(help="Least and most turns a second.")] = (1.4, 3.2),
        plain: Annotated[
            bool, typer.Option("--plain", help="A standing camera, one figure, no miss, nothing in the way.")
        ] = False,
    ) -> None:
        """Make JumpScore-like clips: rope jumpers with event times exact to a frame."""
        with errors():
            from ov2_core.evals.jump_dataset import write_jump_clips

            try:
                rate = Fraction(fps) if fps is not None else None
            except (ValueError, ZeroDivisionError):
                raise ValueError(f"--fps must be a number or a fraction such as 30000/1001, got {fps!r}") from None

            def show(number: int) -> None:
                if number % 20 == 0:
                    print(f"{number} of {clips} clips", file=sys.stderr)

            manifest, truth = write_jump_clips(
                out, num_clips=clips, split=split, seed=seed, on_clip=show, seconds=seconds, width_px=width,
                height_px=height, fps=rate, turns_per_second=tempo, plain=plain,
            )  # fmt: skip
            print(f"{clips} clips\nmanifest: {manifest}\ntruth:    {truth}")

    @data_app.command("grounding")
    def grounding_data(
        annotations: Annotated[Path, typer.Option(help="The dataset's own file.")],
        kind: Annotated[
            Literal["charades-sta", "activitynet-captions", "qvhighlights"], typer.Option(help="Whose format it has.")
        ],
        out: Annotated[Path, typer.Option(help="Truth, JSON lines; clips are looked for beside it and in videos/.")],
    ) -> None:
        """Turn annotations of a grounding dataset into truth."""
        with errors():
            from ov2_core.evals.grounding import convert

            try:
                rows = convert(annotations.read_text(encoding="utf-8-sig"), kind)
            except ValueError as error:
                raise ValueError(f"{annotations}: {error}") from None
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{len(rows)} questions: {out}")


def _show(done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        print(f"{done} of {total} asked", file=sys.stderr)


def _show_point(point: CurvePoint) -> None:
    print(
        f"{point.mode} {point.budget}: {point.metric} {point.value:.4f}, {point.mean_tokens:.0f} tokens"
        + (f", {point.num_missing} of {point.num_items} without an answer" if point.num_missing else ""),
        file=sys.stderr,
    )


def _evidence(
    items: Sequence[TruthItem], tokens: str | None, recipe: str | None, overrides: dict[str, str], seed: int
) -> tuple[Evaluation, dict[str, list[int]]]:
    from ov2_core.config import recipe as named_recipe
    from ov2_core.config import with_overrides
    from ov2_core.evals.token_times import evaluate_tokens, tokens_of_recipe, tokens_of_run

    if tokens is not None:
        return evaluate_tokens(items, tokens_of_run(tokens, items), seed=seed, notes={"tokens": tokens})
    config = with_overrides(named_recipe(recipe or ""), overrides).tokenizer
    notes = {"recipe": recipe, "overrides": overrides}
    return evaluate_tokens(items, tokens_of_recipe(config, items), seed=seed, notes=notes)


def _with_masks(suite: Suite, propagator: str, device: str | None) -> Suite:
    from ov2_core.evals.masks import ColourPropagator
    from ov2_core.evals.track_masks import with_masks

    if suite.name != "tracking":
        raise ValueError(f"--propagator belongs to the suite tracking, not to {suite.name}")
    if propagator == "colour":
        return with_masks(suite, ColourPropagator())
    need_torch()
    from ov2_core.model.sam2 import Sam2Propagator

    return with_masks(suite, Sam2Propagator.from_pretrained(propagator, device=device))


def _server(
    url: str | None,
    model: str | None,
    media: Literal["frames", "video"],
    num_frames: int,
    overrides: dict[str, str],
    max_new_tokens: int,
    timeout: float,
    in_flight: int,
    key_env: str | None,
) -> Any:
    from ov2_core.evals.server import ServerAnswerer, key_from_environment

    if model is None:
        raise ValueError("give --server-model, the model's name on the server")
    return ServerAnswerer(
        base_url=url or "",
        model=model,
        media=media,
        num_frames=num_frames,
        overrides=overrides,
        max_new_tokens=max_new_tokens,
        timeout_seconds=timeout,
        max_in_flight=in_flight,
        api_key=key_from_environment(key_env),
    )


def _problem(found: Evaluation, id_: str) -> str | None:
    return found.items[id_].detail.get("problem") if id_ in found.items else None


def evaluation_text(found: Evaluation) -> str:
    """Metrics as lines, then what was odd."""
    width = max(len(name) for name in found.metrics)
    lines = [
        f"{found.suite}: {len(found.items)} items, {len(found.items) - len(found.missing_ids)} answered",
        *(
            f"  {name:<{width}}  {metric.value:.4f}  [{metric.low:.4f}, {metric.high:.4f}]"
            + (f"  {metric.num_items} items" if metric.num_items != len(found.items) else "")
            for name, metric in found.metrics.items()
        ),
    ]
    for name, metrics in found.groups.items():
        shown = ", ".join(f"{key} {metric.value:.4f}" for key, metric in list(metrics.items())[:3])
        lines.append(f"  {name}: {shown} ({max(metric.num_items for metric in metrics.values())} items)")
    for title, named in (
        ("missing, counted as wrong", found.missing_ids),
        ("unreadable, counted as wrong", found.unreadable_ids),
        ("answers to unknown ids, not counted", found.unknown_ids),
        ("ids answered more than once, the first counts", found.duplicate_ids),
        ("lines that are no prediction", found.bad_lines),
    ):
        if named:
            named = [f"{id_}: {problem}" if (problem := _problem(found, id_)) else id_ for id_ in named]
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            lines.append(f"{title}: {len(named)} ({', '.join(named[:5])}{more})")
    return "\n".join(lines)
