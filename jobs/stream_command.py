"""`ov2 stream`: a live source to groups of canvases on disk, as they come.

Enters: a path, pipe, "-" or URL. Leaves: OUT/group-00000000.tar and so on, each a sample in the layout of a token shard (t counts
from the group's first frame), and OUT/groups.jsonl with a line a group, written after its tar: where the group stands in the
stream, and how late it came. Design: a tar appears under its name only when it is whole, so a reader may follow groups.jsonl.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ov2_core.config import RunConfig, StreamConfig, digest, with_overrides, with_settings
from ov2_core.config import recipe as named_recipe
from ov2_core.redact import redacted
from ov2_core.tokenize_stream import StreamGroup, StreamStats, join_groups, tokenize_stream

EXIT_STOPPED, EXIT_INTERRUPTED = 4, 130
GROUPS_NAME = "groups.jsonl"


def add_stream_command(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Adds the command; `errors` turns exceptions into messages and exit codes."""

    @app.command()
    def stream(
        source: Annotated[
            str, typer.Argument(help="A file, a named pipe, - (standard input) or a URL: RTSP, HTTP, UDP ...")
        ],
        out: Annotated[
            Path | None, typer.Option(help="Folder for the groups; without it they are only told of.")
        ] = None,
        canvases_per_minute: Annotated[float, typer.Option(help="The rate that the groups may use.")] = 60.0,
        policy: Annotated[Literal["saliency", "evidence"], typer.Option(help="How blocks are chosen.")] = "evidence",
        set_: Annotated[
            list[str] | None,
            typer.Option(
                "--set", help="A field of the config: key=value; stream.key=value for the stream's. Repeatable."
            ),
        ] = None,
        timeout: Annotated[float, typer.Option(help="Seconds without data after which the stream is over.")] = 10.0,
        max_seconds: Annotated[float | None, typer.Option(help="Stop after so much stream time.")] = None,
        option: Annotated[
            list[str] | None, typer.Option(help="For FFmpeg: key=value, e.g. rtsp_transport=tcp. Repeatable.")
        ] = None,
    ) -> None:
        """Tokenize a live or endless source: a JSON line a group, at most 2 s of stream time after the group's end.

        Exit code 0 where the source ended, 4 where it fell silent or broke off, 130 after Ctrl-C: what was emitted stands.
        """
        with errors():
            settings = set_ or []
            of_stream = [s.removeprefix("stream.") for s in settings if s.startswith("stream.")]
            rate = with_settings(StreamConfig(canvases_per_minute=canvases_per_minute), of_stream)
            config = _config(policy, [s for s in settings if not s.startswith("stream.")])
            options = dict(_pair(text, "--option") for text in option or [])
            stats = StreamStats()
            groups = tokenize_stream(
                source,
                config.tokenizer,
                rate,
                timeout_seconds=timeout,
                max_seconds=max_seconds,
                options=options,
                stats=stats,
            )
            writer = None if out is None else GroupWriter(out, source, config)
            try:
                for group in groups:
                    line = json.dumps(describe_group(group))
                    if writer is not None:
                        writer.write(group, line)
                    print(line, flush=True)
            except KeyboardInterrupt:  # the usual end of an endless source
                typer.echo(summary_text(stats), err=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None
            typer.echo(summary_text(stats), err=True)
        raise typer.Exit(0 if stats.status.ended == "end" else EXIT_STOPPED)


class GroupWriter:
    """Writes groups into a folder.

    Raises:
        ValueError: the folder holds groups already.
    """

    def __init__(self, folder: Path, source: str, config: RunConfig) -> None:
        if (folder / GROUPS_NAME).exists():
            raise ValueError(f"{folder} holds the groups of another stream; give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._config = folder, config
        self._source = redacted(re.sub(r"//[^/@]*@", "//", source))  # no password of a camera in a sample
        self._name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]

    def write(self, group: StreamGroup, line: str) -> None:
        """The tar first, then the line that tells of it."""
        from ov2_core.make_sample import GENERATOR
        from ov2_core.storage.writer import encode_sample, write_tar
        from schemas.tokens import Provenance

        key = f"{self._name}-{group.index:08d}"
        video = join_groups([group])
        provenance = Provenance(
            id=key,
            uri=self._source,
            start_seconds=group.start_seconds,
            end_seconds=group.end_seconds,
            first_shown_seconds=group.start_seconds,
            source=None,
            tags=["stream"],
            manifest_line=group.index + 1,
            size_bytes=0,
            codec=group.codec,
            width_px=group.source_width_px,
            height_px=group.source_height_px,
            num_frames=group.num_frames,
            duration_seconds=video.duration_seconds,
            generator=GENERATOR,
            config_digest=digest(self._config),
        )
        sample = encode_sample(video, key=key, provenance=provenance, messages=[], config=self._config.tokenizer)
        target = self._folder / f"group-{group.index:08d}.tar"
        part = target.with_suffix(".part")
        write_tar(part, [(key, sample.members)])
        os.replace(part, target)
        with open(self._folder / GROUPS_NAME, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def describe_group(group: StreamGroup) -> dict[str, Any]:
    """A group's line."""
    return {
        "group": group.index,
        "start_seconds": round(group.start_seconds, 6),
        "end_seconds": round(group.end_seconds, 6),
        "fps": group.fps,
        "canvases": len(group.images_NHW3),
        "whole_frames": group.whole,
        "tokens": group.num_tokens,
        "frames": group.num_frames,
        "cost_bytes": round(group.cost_bytes),
        "delay_seconds": round(group.emitted_seconds - group.end_seconds, 6),
        "stretch": group.stretch,
    }


def summary_text(stats: StreamStats) -> str:
    """What happened, on one line."""
    status = stats.status
    parts = [
        f"{stats.num_groups} groups, {stats.num_images} canvases of {stats.num_frames} frames, {stats.seconds:.1f} s"
    ]
    for count, name in (
        (stats.gaps, "gaps"),
        (stats.new_clocks, "new clocks"),
        (stats.new_sizes, "new sizes"),
        (stats.dropped_frames, "frames dropped for want of canvases"),
        (stats.repeated_frames, "frames out of order"),
        (stats.decoding.decode_errors, "decode errors"),
        (stats.decoding.corrupt_frames, "corrupt frames"),
    ):
        if count:
            parts.append(f"{count} {name}")
    ended = {"end": "the source ended", "stalled": "the source fell silent", "failed": "the source broke off"}
    said = ended.get(status.ended or "", "stopped")
    return "; ".join([*parts, f"{said}: {status.message}" if status.message else said])


def _config(policy: Literal["saliency", "evidence"], settings: list[str]) -> RunConfig:
    """The budget of a sample is that of its one group."""
    overrides = dict(_pair(text, "--set") for text in settings)
    for key in ("budget", "tokenizer.budget", "mode", "tokenizer.mode", "policy", "tokenizer.policy"):
        if key in overrides:
            raise ValueError(f"--set {key}: a stream has --canvases-per-minute and --policy; its mode is codec")
    base = named_recipe("codec-4" if policy == "saliency" else "evidence-4")
    big = replace(base, tokenizer=replace(base.tokenizer, budget=1 << 20))
    made = with_overrides(big, overrides)
    budget = made.tokenizer.groups.canvases_per_group
    return replace(made, recipe=f"stream-{policy}", tokenizer=replace(made.tokenizer, budget=budget))


def _pair(text: str, name: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{name} expects key=value, got {text!r}")
    return key.strip(), value
