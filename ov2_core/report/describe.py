"""A stored sample as text: the sequence that a model reads, and what stands in the sample.

Enters: a stored sample. Leaves: strings, with pad tokens abbreviated as `<|image_pad|>×K`, for a sample has thousands.
(The file is not named inspect.py: that is a module of the standard library.)
"""

import numpy as np
import numpy.typing as npt

from ov2_core.redact import one_line
from ov2_core.report.rebuild import block_sources, grid_blocks
from ov2_core.storage.reader import StoredSample
from schemas.tokens import Provenance, SampleRecord

DEFAULT_SYSTEM = "You are a helpful assistant."
PLACEHOLDERS = ("<video>", "<image>")


def vision_runs(record: SampleRecord, positions_NP3: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """(t, merged tokens) of each vision run: consecutive blocks, across images too, that share one source time."""
    t_E = np.concatenate([block_sources(record, positions_P3)[:, 0] for positions_P3 in positions_NP3])
    starts = np.flatnonzero(np.r_[True, t_E[1:] != t_E[:-1]])
    lengths = np.diff(np.r_[starts, len(t_E)])
    return [(int(t), int(length)) for t, length in zip(t_E[starts], lengths, strict=True)]


def time_tag(record: SampleRecord, t: int) -> str:
    """`<4.2 seconds>`, with the record's decimals; empty for a still."""
    return f"<{t / record.fps:.{record.timestamp_decimal}f} seconds>" if record.fps else ""


def split_messages(record: SampleRecord) -> list[tuple[str, str, str | None]]:
    """(role, text before the vision runs, text after them; None where none stand in the turn), system turn first.

    The runs replace the first `<video>` or `<image>` of the first user turn; without one they open that turn.
    """
    turns: list[tuple[str, str, str | None]] = []
    if not record.messages or record.messages[0].role != "system":
        turns.append(("system", DEFAULT_SYSTEM, None))
    placed = False
    for message in record.messages:
        if message.role != "user" or placed:
            turns.append((message.role, message.content, None))
            continue
        placed = True
        found = [(message.content.find(p), p) for p in PLACEHOLDERS if p in message.content]
        if found:
            _, placeholder = min(found)
            before, after = message.content.split(placeholder, 1)
            for other in PLACEHOLDERS:
                after = after.replace(other, "")
            turns.append((message.role, before, after.removeprefix("\n")))
        else:
            turns.append((message.role, "", message.content))
    if not placed:
        turns.insert(1, ("user", "", ""))
    return turns


def build_text(record: SampleRecord, positions_NP3: npt.NDArray[np.int32]) -> str:
    """The ChatML sequence with one vision run per source time; pads abbreviated, so for eyes and not for a tokenizer.

    Args:
        positions_NP3: int32, in image order.
    """
    runs = "".join(
        f"{time_tag(record, t)}<|vision_start|><|image_pad|>×{length}<|vision_end|>\n"
        for t, length in vision_runs(record, positions_NP3)
    )
    return "".join(
        f"<|im_start|>{role}\n{before}{'' if after is None else runs + after}<|im_end|>\n"
        for role, before, after in split_messages(record)
    )


def describe_sample(stored: StoredSample) -> str:
    """Groups, times, budget, places and text of one sample, as lines for a terminal."""
    record, source = stored.record, stored.record.provenance
    rows, columns = grid_blocks(record)
    sources = [block_sources(record, positions_P3) for positions_P3 in stored.positions_NP3]
    sources_E3 = np.concatenate(sources)
    times = np.unique(sources_E3[:, 0])
    seen = len(np.unique(sources_E3, axis=0))
    cut = _cut_text(source)
    jpeg_bytes = sum(len(stored.member(name)) for name in record.image_keys)
    policy = f", policy {record.policy}" if record.policy else ""
    rate = f", {record.fps:g} ticks a second" if record.fps else ""
    lines = [
        stored.key,
        f"  id         {one_line(source.id)}",
        f"  source     {source.uri}{cut} (manifest line {source.manifest_line})",
        f"  media      {source.codec}, {source.width_px} x {source.height_px} px, {source.num_frames} frames, "
        f"{source.duration_seconds:.2f} s{rate}",
        f"  flags      {', '.join(record.flags) or 'none'}",
        f"  mode       {record.mode}{policy}",
        f"  images     {len(record.image_keys)} of {record.image_width_px} x {record.image_height_px} px "
        f"({rows} x {columns} blocks), {jpeg_bytes:,} JPEG bytes",
        f"  tokens     {record.num_tokens:,} of {record.token_budget:,} allowed "
        f"({record.num_tokens / record.token_budget:.0%}), {jpeg_bytes / record.num_tokens:.0f} bytes a token",
        f"  places     {len(times)} source times, {seen:,} different blocks, {len(sources_E3) - seen} given twice",
        f"  made by    {source.generator}, config {source.config_digest}",
        "",
        "  group  images    time s            frames  blocks  times  bits",
    ]
    for index, group in enumerate(record.groups):
        blocks = np.concatenate(sources[group.first_image : group.first_image + group.num_images])
        last = group.first_image + group.num_images - 1
        span = f"{_clock(record, group.t_start)}-{_clock(record, group.t_end)}"
        lines.append(
            f"  {index + 1:>5}  {f'{group.first_image}-{last}':<8}  {span:<16}  {group.num_frames:>6}  "
            f"{len(blocks):>6}  {len(np.unique(blocks[:, 0])):>5}  {group.bit_cost:>4.0%}"
        )
    return "\n".join([*lines, "", build_text(record, stored.positions_NP3).rstrip("\n")]) + "\n"


def _clock(record: SampleRecord, t: int) -> str:
    return f"{t / record.fps:.2f}" if record.fps else str(t)


def _cut_text(source: Provenance) -> str:
    if source.start_seconds is None and source.end_seconds is None:
        return ""
    end = "end" if source.end_seconds is None else f"{source.end_seconds:g} s"
    return f", cut to [{source.start_seconds or 0:g} s, {end})"
