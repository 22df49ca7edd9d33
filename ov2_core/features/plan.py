"""The plan of a feature run, made of the source's commits alone: exact bytes and tokens before anything is encoded.

Enters: a finished token run. Leaves: RUN2/plan/plan.json and rows.parquet (line, key, shard: what `ov2 verify` holds the commits
against), and per shard what the driver needs to know. Deterministic: a plan that is gone is written again with equal content.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import pyarrow as pa
import pyarrow.parquet as pq

from ov2_core.features.layout import config_digest, plan_commit, source_digest, tar_bytes
from ov2_core.rounds import Rounds, list_rounds
from ov2_core.storage.commit import committed_shards, iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.layout import PLAN_JSON, RUN_JSON
from ov2_core.storage.writer import canonical_json
from schemas.features import FeatureConfig, PlannedFeatures
from schemas.run import RunRecord
from schemas.shard import PlanRecord

_ROWS_SCHEMA = pa.schema(
    [
        pa.field("line", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("predicted_bytes", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRun:
    """A finished token run, as features are made of it."""

    root: str
    digest: str
    """layout.source_digest of its commits."""
    config_digest: str
    patch_px: int
    merge: int
    num_shards: int
    """Of its plan, those without any sample too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCost:
    """One shard of a feature run, as far as the driver needs it."""

    shard: int
    num_samples: int
    num_tokens: int
    predicted_bytes: int
    """Of the tar, exactly; less whatever is quarantined."""


def open_source(source: Store) -> SourceRun:
    """What a token run is, once all its shards are committed.

    Raises:
        ValueError: no run there, no token run, or one that is not finished.
    """
    try:
        record = RunRecord.model_validate_json(source.read_bytes(RUN_JSON))
        plan = PlanRecord.model_validate_json(source.read_bytes(PLAN_JSON))
    except FileNotFoundError:
        raise ValueError(
            f"{source.root} holds no run; --shards takes the folder that `ov2 tokenize --out` made"
        ) from None
    tokenizer = record.config.get("tokenizer")
    if not isinstance(tokenizer, dict):
        raise ValueError(f"{source.root} holds a run of {record.recipe!r}; features are made of token shards")
    committed = committed_shards(source)
    num_shards = Rounds(source, plan, list_rounds(source)).num_shards
    if committed != list(range(num_shards)):
        raise ValueError(
            f"{source.root} has {len(committed)} of {num_shards} shards committed; finish it first: `ov2 tokenize` again"
        )
    return SourceRun(
        root=source.root,
        digest=source_digest(iter_commits(source)),
        config_digest=record.config_digest,
        patch_px=int(tokenizer["patch_px"]),
        merge=int(tokenizer["merge"]),
        num_shards=num_shards,
    )


def check_fits(run: SourceRun, config: FeatureConfig) -> None:
    """Raises ValueError where the encoder takes other patches than the run holds."""
    if (run.patch_px, run.merge) != (config.patch_px, config.merge):
        raise ValueError(
            f"{run.root} holds patches of {run.patch_px} px merged {run.merge} x {run.merge}, the encoder takes "
            f"{config.patch_px} px and {config.merge} x {config.merge}; tokenize with --set patch_px and merge as the encoder's"
        )


def iter_plan(
    source: Store, run: SourceRun, config: FeatureConfig
) -> Iterator[tuple[ShardCost, list[PlannedFeatures]]]:
    """Shard after shard of the source, those without samples left out, and those by which it has grown since it was opened."""
    for commit in takewhile(lambda commit: commit.shard < run.num_shards, iter_commits(source)):
        rows = list(plan_commit(commit, config))
        if rows:
            yield _cost(commit.shard, rows), rows


def _cost(shard: int, rows: list[PlannedFeatures]) -> ShardCost:
    return ShardCost(
        shard=shard,
        num_samples=len(rows),
        num_tokens=sum(row.num_tokens for row in rows),
        predicted_bytes=tar_bytes(sum(row.predicted_bytes for row in rows)),
    )


def write_plan(
    source: Store, run: SourceRun, config: FeatureConfig, store: Store | None
) -> tuple[PlanRecord, list[ShardCost]]:
    """The plan and the cost of each shard; written to the store where one is given, plan.json last."""
    costs = []
    with tempfile.TemporaryDirectory(prefix="ov2-plan-") as folder:
        path = os.path.join(folder, "rows.parquet")
        with pq.ParquetWriter(path, _ROWS_SCHEMA, compression="zstd") as parquet:
            for cost, rows in iter_plan(source, run, config):
                costs.append(cost)
                columns = {
                    name: [getattr(row, name) for row in rows]
                    for name in ("line", "key", "id", "shard", "num_tokens", "predicted_bytes")
                }
                parquet.write_table(pa.table(columns, schema=_ROWS_SCHEMA))
        record = PlanRecord(
            manifest_uri=run.root,
            manifest_digest=run.digest,
            manifest_rows=sum(cost.num_samples for cost in costs),
            config_digest=config_digest(config),
            num_shards=run.num_shards,
            num_planned=sum(cost.num_samples for cost in costs),
            num_quarantined=0,
            predicted_tokens=sum(cost.num_tokens for cost in costs),
            predicted_bytes=sum(cost.predicted_bytes for cost in costs),
            predicted_cpu_seconds=0.0,
            predicted_video_seconds=0.0,
        )
        if store is not None:
            store.put_file(path, record.rows, move=True)
            store.write_bytes(PLAN_JSON, canonical_json(record))
    return record, costs
