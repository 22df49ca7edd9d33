"""Shards of a token run to tasks for encoders, and who is to blame when a worker dies.

A shard that has killed two workers is taken apart. Each of its samples is encoded alone and the result thrown away; one that dies
alone, three times, is quarantined. Then the shard is encoded once more without those, one sample at a time. A neighbour of a bad
sample is thereby never lost, and a healthy run pays nothing for it.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ov2_core.features.plan import ShardCost
from ov2_core.storage.commit import load_commit
from ov2_core.storage.files import Store
from pipelines.progress import Counters
from pipelines.tasks import RunStoppedError, Task, Verdict
from schemas.shard import QuarantineRow

log = logging.getLogger(__name__)


@dataclass(slots=True)
class FeatureTotals:
    """What the shards of one invocation took, summed; see EncodeSummary."""

    worker_seconds: float = 0.0
    encode_seconds: float = 0.0
    starved_seconds: float = 0.0
    num_flops: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Encode a shard and commit it."""

    shard: int
    fallen: dict[str, QuarantineRow] = field(default_factory=dict)
    """By key: samples that killed their workers; left out."""
    one_by_one: bool = False
    """A batch never holds more than one group: after workers have died at the shard."""
    started_unix_seconds: float


@dataclass(frozen=True, slots=True)
class TrialTask:
    """Encode one sample and throw the result away: does it kill its worker?"""

    shard: int
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEncoded:
    """How a shard's task ended: committed, or not because the source lost something."""

    shard: int
    num_made: int = 0
    num_images: int = 0
    num_tokens: int = 0
    video_seconds: float = 0.0
    quarantined: tuple[str, ...] = ()
    """Reasons."""
    worker_seconds: float = 0.0
    encode_seconds: float = 0.0
    starved_seconds: float = 0.0
    num_flops: float = 0.0
    source_lost: str | None = None


@dataclass(frozen=True, slots=True)
class TrialPassed:
    """The sample's worker lived."""

    shard: int


@dataclass(slots=True)
class _Suspect:
    """A shard that has killed workers, while its samples are on trial."""

    waiting: set[str]
    fallen: dict[str, QuarantineRow] = field(default_factory=dict)


class FeatureFeed:
    """Shards to tasks; a shard that fails to trials of its samples, then to a last task. See tasks.Feed."""

    def __init__(
        self,
        source: Store,
        shards: list[ShardCost],
        counters: Counters,
        totals: FeatureTotals,
        *,
        seconds_per_token: float,
    ) -> None:
        self._source = source
        self._counters, self._totals = counters, totals
        self._seconds_per_token = seconds_per_token
        self._costs = {cost.shard: cost for cost in shards}
        self._fresh = deque(shards)
        self._again: deque[Task] = deque()
        self._open: set[int] = set(self._costs)
        self._suspects: dict[int, _Suspect] = {}

    @property
    def finished(self) -> bool:
        """All shards are committed."""
        return not self._open

    def pull(self) -> Task | None:
        """A trial or a last task, else the next shard."""
        if self._again:
            return self._again.popleft()
        if not self._fresh:
            return None
        return self._shard_task(self._fresh.popleft().shard)

    def done(self, task: Task, info: ShardEncoded | TrialPassed, payload: Any) -> None:
        """A shard is committed, or a sample has passed its trial."""
        if isinstance(info, TrialPassed):
            self._tried(task.payload)
            return
        if info.source_lost is not None:
            raise RunStoppedError(info.source_lost)
        self._open.discard(info.shard)
        counters = self._counters
        counters.num_shards_done += 1
        counters.num_done += info.num_made + len(info.quarantined)
        counters.num_made += info.num_made
        counters.num_images += info.num_images
        counters.num_tokens += info.num_tokens
        counters.video_seconds += info.video_seconds
        counters.quarantined.update(info.quarantined)
        for name in ("worker_seconds", "encode_seconds", "starved_seconds", "num_flops"):
            setattr(self._totals, name, getattr(self._totals, name) + getattr(info, name))

    def condemned(self, task: Task, verdict: Verdict) -> None:
        """A shard is taken apart; or a sample on trial has killed its workers and is quarantined."""
        from ov2_core.features.extract import quarantine_sample

        payload = task.payload
        if isinstance(payload, TrialTask):
            sample = next(s for s in load_commit(self._source, payload.shard).samples if s.key == payload.key)
            self._suspects[payload.shard].fallen[payload.key] = quarantine_sample(
                sample, reason=verdict.reason, message=verdict.message, attempts=verdict.attempts
            )
            self._tried(payload)
            return
        keys = [sample.key for sample in load_commit(self._source, payload.shard).samples]
        log.warning("%s: %s: %s; its %d samples are tried alone", task.name, verdict.reason, verdict.message, len(keys))
        self._suspects[payload.shard] = _Suspect(set(keys))
        cost = self._costs[payload.shard]
        each = cost.num_tokens * self._seconds_per_token / cost.num_samples
        self._again.extend(Task(key, TrialTask(payload.shard, key), each) for key in keys)

    def _tried(self, trial: TrialTask) -> None:
        suspect = self._suspects[trial.shard]
        suspect.waiting.discard(trial.key)
        if not suspect.waiting:
            self._again.append(self._shard_task(trial.shard, suspect.fallen))

    def _shard_task(self, shard: int, fallen: dict[str, QuarantineRow] | None = None) -> Task:
        last = fallen is not None
        payload = ShardTask(
            shard=shard, fallen=fallen or {}, one_by_one=last, started_unix_seconds=round(time.time(), 3)
        )
        cost = self._costs[shard].num_tokens * self._seconds_per_token
        return Task(f"shard {shard}", payload, cost, blamed=not last, divisible=not last)
