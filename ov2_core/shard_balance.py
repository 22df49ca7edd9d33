"""Rows to shards: each about full, and those beside each other of about the same cost.

Enters: rows with predicted bytes and CPU seconds, in the manifest's order. Leaves: (shard, row), by ascending shard, and in a
shard in the order they came. Rows are taken a window at a time, as many as fill WINDOW_SHARDS shards. They are cut in order
where that serves: rows that stand together in a manifest often lie together, and a shard shows them together. But where the
most expensive shard would cost more than MAX_EXCESS times what it could (a run of long videos), the window is divided by
longest processing time first: the most expensive row goes to the cheapest shard with room for it.
"""

import heapq
import math
from collections.abc import Iterator, Sequence

from ov2_core.config import ShardConfig
from ov2_core.plan import PlannedText

WINDOW_SHARDS = 16
MAX_EXCESS = 1.25
Cost = tuple[int, float]
"""(bytes, CPU seconds) of a row."""
Shards = list[list[int]]
"""Places of rows by shard, both ascending."""


class ShardBalancer:
    """`place` every row, then `flush`. Holds a window."""

    def __init__(self, config: ShardConfig) -> None:
        self._config = config
        self._rows: list[PlannedText] = []
        self._bytes = 0
        self.num_shards = 0
        """Given out so far."""

    def place(self, row: PlannedText) -> Iterator[tuple[int, PlannedText]]:
        """Takes a row; gives rows with their shards when a window is full."""
        self._rows.append(row)
        self._bytes += row.bytes
        full = self._bytes >= WINDOW_SHARDS * self._config.target_bytes
        full = full or len(self._rows) >= WINDOW_SHARDS * self._config.max_samples
        return self._give(last=False) if full else iter(())

    def flush(self) -> Iterator[tuple[int, PlannedText]]:
        """The rows that are held, each with its shard."""
        return self._give(last=True)

    def _give(self, *, last: bool) -> Iterator[tuple[int, PlannedText]]:
        rows = self._rows
        costs = [(row.bytes, row.cpu_seconds) for row in rows]
        shards, balanced = cut(costs, self._config), balance(costs, self._config)
        kept: list[int] = []
        if highest(costs, shards) > MAX_EXCESS * highest(costs, balanced):
            shards = balanced
        elif not last:
            kept = shards.pop()  # not full yet: it goes on in the next window
        self._rows = [rows[place] for place in kept]
        self._bytes = sum(row.bytes for row in self._rows)
        first, self.num_shards = self.num_shards, self.num_shards + len(shards)
        return ((first + number, rows[place]) for number, places in enumerate(shards) for place in places)


def highest(costs: Sequence[Cost], shards: Shards) -> float:
    """CPU seconds of the most expensive shard."""
    return max((sum(costs[place][1] for place in places) for places in shards), default=0.0)


def cut(costs: Sequence[Cost], config: ShardConfig) -> Shards:
    """In order: a shard ends before its bytes pass target_bytes, or at max_samples."""
    shards: Shards = []
    size = 0
    for place, (more, _) in enumerate(costs):
        if not shards or size + more > config.target_bytes or len(shards[-1]) >= config.max_samples:
            shards.append([])
            size = 0
        shards[-1].append(place)
        size += more
    return shards


def balance(costs: Sequence[Cost], config: ShardConfig) -> Shards:
    """By longest processing time first, within the same limits: one row alone may be larger than target_bytes."""
    num_shards = max(
        math.ceil(sum(size for size, _ in costs) / config.target_bytes), math.ceil(len(costs) / config.max_samples)
    )
    shards: Shards = [[] for _ in range(num_shards)]
    sizes = [0] * num_shards
    cheapest = [(0.0, number) for number in range(num_shards)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place][1], place)):
        size, cost = costs[place]
        passed = []
        while cheapest:
            load, number = heapq.heappop(cheapest)
            if not shards[number] or sizes[number] + size <= config.target_bytes:
                break
            passed.append((load, number))
        else:
            load, number = 0.0, len(shards)
            shards.append([])
            sizes.append(0)
        shards[number].append(place)
        sizes[number] += size
        for entry in passed:
            heapq.heappush(cheapest, entry)
        if len(shards[number]) < config.max_samples:
            heapq.heappush(cheapest, (load + cost, number))
    return sorted(sorted(places) for places in shards if places)
