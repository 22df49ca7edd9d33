"""One stored sample as the JSON that the viewer draws: pictures, sources of their blocks, groups, times, text.

Enters: a stored sample and a number of bytes. Leaves: plain JSON types. Pictures that would not fit are first written
again at a lower JPEG quality, then at half and quarter size, and at last later groups are left out; the page says which.
"""

import base64
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ov2_core.report.describe import split_messages, time_tag, vision_runs
from ov2_core.report.rebuild import block_sources, grid_blocks
from ov2_core.storage.reader import StoredSample
from schemas.tokens import SampleRecord

MAX_RUNS = 400
"""Vision runs listed on the page; a long clip has thousands."""
_BASE64_SHARE = 0.74
_TIERS = ((1, 85), (2, 82), (4, 80))
"""(divisor of the size, JPEG quality), tried in order after the stored bytes themselves."""


@dataclass(frozen=True, slots=True)
class _Pictures:
    jpegs: list[bytes]
    """The first images of the sample, whole groups."""
    divisor: int
    note: str | None


def sample_page(stored: StoredSample, *, run_root: str, max_bytes: int) -> dict[str, Any]:
    """JSON of one sample, about max_bytes long at most; one group is always shown.

    Raises:
        ValueError: the sample does not hold what its record says.
    """
    record, source = stored.record, stored.record.provenance
    rows, columns = grid_blocks(record)
    positions_NP3 = stored.positions_NP3
    sources = [block_sources(record, positions_P3) for positions_P3 in positions_NP3]
    images = [_image_entry(sources_B3, columns) for sources_B3 in sources]
    places_bytes = len(json.dumps(images))
    pictures = _fit_pictures(stored, max(0, max_bytes - places_bytes) * _BASE64_SHARE)
    for image, jpeg in zip(images, pictures.jpegs, strict=False):
        image["src"] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    shown = len(pictures.jpegs)
    runs = vision_runs(record, positions_NP3)
    end_tick = max(group.t_end for group in record.groups)
    return {
        "key": stored.key,
        "id": source.id,
        "command": f"ov2 inspect {shlex.quote(run_root)} {shlex.quote(stored.key)}",
        "title": _facts_line(record),
        "flags": record.flags,
        "provenance": _provenance(record),
        "notes": [pictures.note] if pictures.note else [],
        "fps": record.fps,
        "decimals": max(record.timestamp_decimal, 2),
        "mode": record.mode,
        "rows": rows,
        "columns": columns,
        "blockPx": record.patch_px * record.merge // pictures.divisor,
        "endTick": max(end_tick, round(source.duration_seconds * (record.fps or 0))),
        "numTokens": record.num_tokens,
        "tokenBudget": record.token_budget,
        "groups": [
            {
                "first": group.first_image,
                "count": group.num_images,
                "start": group.t_start,
                "end": group.t_end,
                "frames": group.num_frames,
                "bits": group.bit_cost,
                "tokens": group.num_images * rows * columns,
                "shown": group.first_image + group.num_images <= shown,
            }
            for group in record.groups
        ],
        "images": images[:shown],
        "evidence": _evidence_over_time(sources),
        "bitCost": [float(f"{cost:.4g}") for cost in record.frame_bit_cost],
        "turns": [list(turn) for turn in split_messages(record)],
        "runs": [[t, time_tag(record, t), length] for t, length in runs[:MAX_RUNS]],
        "numRuns": len(runs),
    }


def _image_entry(sources_B3: npt.NDArray[np.int32], columns: int) -> dict[str, Any]:
    """Times and places of the blocks; one number, and no places, for a whole frame in its own order."""
    place_B = sources_B3[:, 1] * columns + sources_B3[:, 2]
    if (sources_B3[:, 0] == sources_B3[0, 0]).all() and (place_B == np.arange(len(place_B))).all():
        return {"t": int(sources_B3[0, 0]), "place": None}
    return {"t": sources_B3[:, 0].tolist(), "place": place_B.tolist()}


def _evidence_over_time(sources: Sequence[npt.NDArray[np.int32]]) -> list[list[int]]:
    """[t, blocks from t outside whole frames, whole frames at t] over all images, shown or not."""
    counts: dict[int, list[int]] = {}
    for sources_B3 in sources:
        times, blocks = np.unique(sources_B3[:, 0], return_counts=True)
        for t, n in zip(times.tolist(), blocks.tolist(), strict=True):
            entry = counts.setdefault(t, [0, 0])
            if n == len(sources_B3):
                entry[1] += 1
            else:
                entry[0] += n
    return [[t, *counts[t]] for t in sorted(counts)]


def _fit_pictures(stored: StoredSample, max_bytes: float) -> _Pictures:
    record = stored.record
    jpegs = [stored.member(name) for name in record.image_keys]
    if sum(map(len, jpegs)) <= max_bytes:
        return _Pictures(jpegs, 1, None)
    block_px = record.patch_px * record.merge
    tiers = [(divisor, quality) for divisor, quality in _TIERS if block_px % divisor == 0]
    for divisor, quality in tiers:
        size = f" at 1/{divisor} size" if divisor > 1 else ""
        note = f"Pictures are written again{size}, JPEG quality {quality}, to keep this page small; the shard's are larger."
        first = [_written_again(stored.image(i), divisor, quality) for i in range(min(4, len(jpegs)))]
        if sum(map(len, first)) / len(first) * len(jpegs) > max_bytes * 1.1:
            continue
        smaller = first + [_written_again(stored.image(i), divisor, quality) for i in range(len(first), len(jpegs))]
        if sum(map(len, smaller)) <= max_bytes:
            return _Pictures(smaller, divisor, note)
    divisor, quality = tiers[min(1, len(tiers) - 1)]
    kept: list[bytes] = []
    num_groups = 0
    for group in record.groups:
        wanted = range(group.first_image, group.first_image + group.num_images)
        more = [_written_again(stored.image(i), divisor, quality) for i in wanted]
        if kept and sum(map(len, kept + more)) > max_bytes:
            break
        kept += more
        num_groups += 1
    note = (
        f"The first {num_groups} of {len(record.groups)} groups are shown, pictures at 1/{divisor} size, to keep this page "
        "small; the timeline has all groups, the shard all pictures."
    )
    return _Pictures(kept, divisor, note)


def _written_again(image_HW3: npt.NDArray[np.uint8], divisor: int, quality: int) -> bytes:
    image = Image.fromarray(image_HW3)
    if divisor > 1:
        image = image.reduce(divisor)  # a box average: no pixel mixes two blocks
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _facts_line(record: SampleRecord) -> list[str]:
    source = record.provenance
    line = [record.mode + (f" · {record.policy}" if record.policy else "")]
    if record.fps:
        line.append(f"{source.duration_seconds:.1f} s")
    line += [
        f"{source.codec} {source.width_px} × {source.height_px}",
        f"{len(record.image_keys)} image{'s' * (len(record.image_keys) > 1)} of {record.image_width_px} × {record.image_height_px}",
        f"{record.num_tokens:,} tokens, {record.num_tokens / record.token_budget:.0%} of the budget",
    ]
    return line


def _provenance(record: SampleRecord) -> list[list[str]]:
    source = record.provenance
    cut = source.start_seconds is not None or source.end_seconds is not None
    end = "end" if source.end_seconds is None else f"{source.end_seconds:g} s"
    rows = [("Source", source.uri), ("Manifest line", str(source.manifest_line))]
    if record.fps:
        rows += [
            ("Range", f"{source.start_seconds or 0:g} s to {end}" if cut else "whole file"),
            ("First frame shown", f"{source.first_shown_seconds:g} s on the file's clock"),
            ("Frames", f"{source.num_frames:,}, t counts at {record.fps:g} a second"),
        ]
    rows += [
        ("File", f"{source.size_bytes:,} bytes"),
        ("From", source.source or "–"),
        ("Tags", ", ".join(source.tags) or "–"),
        ("Made by", f"{source.generator}, config {source.config_digest}"),
        ("Positions", record.positions_digest),
    ]
    return [list(row) for row in rows]
