"""A small synthetic TokenizedVideo, and runs made of a few of them."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ov2_core.config import TokenizerConfig
from ov2_core.storage.commit import collect_orphans, commit_shard, committed_shards, finish_commits
from ov2_core.storage.files import Store
from ov2_core.storage.index import write_index
from ov2_core.storage.layout import PLAN_JSON
from ov2_core.storage.writer import EncodedSample, canonical_json, committed_sample, encode_sample, write_tar
from ov2_core.tokenized import Group, TokenizedVideo
from schemas.shard import CommitRecord, FilteredRow, PlannedRow, PlanRecord, QuarantineRow
from schemas.tokens import Provenance
from schemas.video import ManifestRow, Message, ProbeRecord, SourceIdentity

CONFIG = TokenizerConfig()
SIDE_PX = 56


def make_tokenized(seed: int = 0, *, num_groups: int = 1, still: bool = False) -> TokenizedVideo:
    """Groups of 4 canvases of 56 x 56 (a still: one image), every 2 x 2 block of patches of one time."""
    rng = np.random.default_rng(seed)
    num_images = 1 if still else 4 * num_groups
    rows = SIDE_PX // 14
    coarse = rng.integers(0, 256, (num_images, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(14, axis=1).repeat(14, axis=2)
    t_blocks = np.zeros((num_images, rows // 2, rows // 2), np.int32)
    if not still:
        t_blocks[:] = np.arange(num_images)[:, None, None] * 3 + rng.integers(0, 3, t_blocks.shape)
        t_blocks.reshape(num_groups, 4, -1)[:, 0] = (np.arange(num_groups) * 12)[:, None]
    t = t_blocks.repeat(2, axis=1).repeat(2, axis=2).reshape(num_images, -1)
    h, w = np.divmod(np.arange(rows * rows, dtype=np.int32), rows)
    positions = np.stack([t, np.broadcast_to(h, t.shape), np.broadcast_to(w, t.shape)], axis=-1).astype(np.int32)
    groups = tuple(
        Group(
            first_image=4 * g, num_images=4, t_start=12 * g, t_end=12 * g + 12, num_frames=12, bit_cost=1 / num_groups
        )
        for g in range(num_groups)
    )
    if still:
        groups = (Group(first_image=0, num_images=1, t_start=0, t_end=1, num_frames=1, bit_cost=1.0),)
    bins = 0 if still else 12 * num_groups
    return TokenizedVideo(
        images_NHW3=images,
        positions_NP3=positions,
        fps=None if still else 24.0,
        groups=groups,
        mode="still" if still else "codec",
        policy=None if still else "saliency",
        patch_px=14,
        merge=2,
        first_shown_seconds=0.0,
        duration_seconds=0.0 if still else 0.5 * num_groups,
        num_source_frames=1 if still else 12 * num_groups,
        codec="png" if still else "h264",
        source_width_px=SIDE_PX,
        source_height_px=SIDE_PX,
        frame_bit_cost=np.full(bins, 1 / bins if bins else 0, np.float32),
        flags=(),
    )


def make_provenance(line: int, **changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "id": f"clip {line}/é",
        "uri": f"/videos/clip-{line}.mp4",
        "start_seconds": None,
        "end_seconds": None,
        "first_shown_seconds": 0.0,
        "source": None,
        "tags": [],
        "manifest_line": line,
        "size_bytes": 1000 + line,
        "codec": "h264",
        "width_px": SIDE_PX,
        "height_px": SIDE_PX,
        "num_frames": 12,
        "duration_seconds": 0.5,
        "generator": "ov2-pipeline 0",
        "config_digest": "c0ffee",
    }
    return Provenance(**(fields | changes))


def make_sample(line: int, **kwargs: Any) -> EncodedSample:
    """The sample of manifest line `line`, a pure function of it."""
    return encode_sample(
        make_tokenized(line, **kwargs),
        key=f"clip-{line:04d}",
        provenance=make_provenance(line),
        messages=[
            Message(role="user", content="Describe this video in detail."),
            Message(role="assistant", content=f"Clip {line}: 日本 ünïcode."),
        ],
        config=CONFIG,
    )


def make_planned(line: int, shard: int) -> PlannedRow:
    return PlannedRow(
        line=line,
        key=f"clip-{line:04d}",
        id=f"clip {line}/é",
        uri=f"/videos/clip-{line}.mp4",
        shard=shard,
        row=ManifestRow(video=f"/videos/clip-{line}.mp4", id=f"clip {line}/é"),
        probe=ProbeRecord(
            media="video",
            container="mp4",
            codec="h264",
            pixel_format="yuv420p",
            width_px=SIDE_PX,
            height_px=SIDE_PX,
            num_frames=12,
            duration_seconds=0.5,
            fps=24.0,
            variable_rate=False,
            rotation_degrees=0,
            size_bytes=1000 + line,
            video_bytes=900,
        ),
        identity=SourceIdentity(size_bytes=1000 + line, stamp="1"),
        predicted_tokens=16,
        predicted_bytes=10_000,
        predicted_cpu_seconds=0.1,
    )


def make_quarantined(line: int) -> QuarantineRow:
    return QuarantineRow(
        line=line,
        id=f"clip {line}/é",
        uri=f"/videos/clip-{line}.mp4",
        reason="no_decodable_frame",
        stage="tokenize",
        message="nothing decodes",
        row=ManifestRow(video=f"/videos/clip-{line}.mp4"),
    )


def commit_lines(
    store: Store,
    tmp: Path,
    *,
    shard: int,
    lines: list[int],
    filtered: list[int] | None = None,
    quarantined: list[int] | None = None,
) -> CommitRecord:
    """What a worker does for one shard: encode, write, commit."""
    tmp.mkdir(parents=True, exist_ok=True)
    records = []

    def encoded() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
        for line in lines:
            sample = make_sample(line)
            records.append(sample.record)
            yield sample.key, sample.members

    tar = write_tar(tmp / f"{os.getpid()}-{shard}.tar", encoded()) if lines else None
    return commit_shard(
        store,
        shard=shard,
        tar=tar,
        samples=[
            committed_sample(record, placed, cpu_seconds=0.5, peak_rss_bytes=1 << 20)
            for record, placed in zip(records, tar.samples if tar else [], strict=True)
        ],
        filtered=[
            FilteredRow(line=line, id=f"clip {line}/é", uri=f"/videos/clip-{line}.mp4", rule="max_seconds", message="x")
            for line in filtered or []
        ],
        quarantined=[make_quarantined(line) for line in quarantined or []],
        config_digest="c0ffee",
        code_version="0",
        started_unix_seconds=1.0,
        finished_unix_seconds=2.0,
    )


def write_plan(store: Store, tmp: Path, shards: dict[int, list[int]], *, fallen: list[int] | None = None) -> None:
    """RUN/plan for the given {shard: lines}, with the lines `fallen` quarantined by the plan itself."""
    tmp.mkdir(parents=True, exist_ok=True)
    rows = [make_planned(line, shard) for shard, lines in shards.items() for line in lines]
    rows.sort(key=lambda row: row.line)
    table = pa.table(
        {
            "line": pa.array([row.line for row in rows], pa.int64()),
            "key": [row.key for row in rows],
            "id": [row.id for row in rows],
            "uri": [row.uri for row in rows],
            "shard": pa.array([row.shard for row in rows], pa.int32()),
            "record": [json.dumps(row.model_dump(mode="json")) for row in rows],
        }
    )
    pq.write_table(table, tmp / "rows.parquet")
    store.put_file(tmp / "rows.parquet", "plan/rows.parquet")
    if fallen:
        store.write_bytes(
            "quarantine/plan.jsonl", b"".join(canonical_json(make_quarantined(n)) + b"\n" for n in fallen)
        )
    plan = PlanRecord(
        manifest_uri="videos.jsonl",
        manifest_digest="0",
        manifest_rows=len(rows) + len(fallen or []),
        config_digest="c0ffee",
        num_shards=len(shards),
        num_planned=len(rows),
        num_quarantined=len(fallen or []),
        predicted_tokens=0,
        predicted_bytes=0,
        predicted_cpu_seconds=0,
        predicted_video_seconds=0,
    )
    store.write_bytes(PLAN_JSON, canonical_json(plan))


def tree_bytes(root: Path, *, below: tuple[str, ...] = ("shards", "quarantine")) -> dict[str, bytes]:
    """{relative path: content} of the files that a run publishes."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in below
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def replace_tokenized(tokenized: TokenizedVideo, **changes: Any) -> TokenizedVideo:
    return dataclasses.replace(tokenized, **changes)


RUN_SHARDS = {0: [1, 2, 4], 1: [5, 6], 2: [8]}
RUN_FALLEN = [3, 7]


def run_job(store: Store, tmp: Path) -> None:
    """A whole run over RUN_SHARDS, resuming what stands there: line 4 is filtered, line 8 (all of shard 2) quarantined."""
    finish_commits(store)
    done = set(committed_shards(store))
    for shard in sorted(set(RUN_SHARDS) - done):
        lines = RUN_SHARDS[shard]
        commit_lines(
            store,
            tmp,
            shard=shard,
            lines=[line for line in lines if line not in (4, 8)],
            filtered=[line for line in lines if line == 4],
            quarantined=[line for line in lines if line == 8],
        )
    finish_commits(store)
    collect_orphans(store)
    write_index(store)


def run_job_in_child(root: Path, tmp: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    run_job(Store(root), tmp)


def finished_run(store: Store, tmp: Path) -> Store:
    write_plan(store, tmp / "plan", RUN_SHARDS, fallen=RUN_FALLEN)
    run_job(store, tmp / "work")
    return store
