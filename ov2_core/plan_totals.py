"""Planned rows to the plan's file, placed in shards, and what they are predicted to give and cost together.

Enters: rows in order. Leaves: them in a PlanWriter, and the fields of a PlanRecord or RoundRecord that follow from them.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ov2_core.config import ShardConfig
from ov2_core.plan import PlannedText, PlanWriter
from ov2_core.shard_balance import ShardBalancer


class PlanTotals:
    """`add` every row, then `finish`. Holds the balancer's window."""

    def __init__(self, writer: PlanWriter, config: ShardConfig, *, first_shard: int = 0) -> None:
        self._writer = writer
        self._balancer = ShardBalancer(config)
        self._first_shard = first_shard
        self._filtered: Counter[str] = Counter()
        self._num_planned = self._tokens = self._bytes = 0
        self._cpu_seconds = self._video_seconds = 0.0

    def add(self, row: PlannedText) -> None:
        """Counts a row, and writes what has its shard by now."""
        if row.rule is not None:
            self._filtered[row.rule] += 1
        self._num_planned += 1
        self._tokens += row.tokens
        self._bytes += row.bytes
        self._cpu_seconds += row.cpu_seconds
        self._video_seconds += row.video_seconds
        self._write(self._balancer.place(row))

    def finish(self) -> dict[str, Any]:
        """Writes what is still held back; the totals."""
        self._write(self._balancer.flush())
        return {
            "num_shards": self._balancer.num_shards,
            "num_planned": self._num_planned,
            "filtered_by_rule": dict(sorted(self._filtered.items())),
            "predicted_tokens": self._tokens,
            "predicted_bytes": self._bytes,
            "predicted_cpu_seconds": round(self._cpu_seconds, 3),
            "predicted_video_seconds": round(self._video_seconds, 3),
        }

    def _write(self, placed: Iterable[tuple[int, PlannedText]]) -> None:
        for shard, row in placed:
            self._writer.add(row, self._first_shard + shard)
