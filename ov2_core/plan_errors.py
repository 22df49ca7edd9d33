"""How far a plan's predictions may be off, learnt from earlier runs: their commits say what their plans did not know.

Enters: stores of finished or unfinished token runs. Leaves: for CPU time, tokens and bytes the ratio actual / predicted:
over all that was committed, and the spread over shards. A shard is the unit because a plan is a sum over many rows: errors
of single rows cancel, what is left is what a whole corpus or codec does to a prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ov2_core.plan import group_by_shard
from ov2_core.rounds import load_rounds
from ov2_core.storage.commit import committed_shards, load_commit
from ov2_core.storage.files import Store

MAX_SHARDS = 200
"""Of a run, evenly spread: enough for a spread, and a bounded number of reads."""
QUANTITIES = ("cpu_seconds", "tokens", "bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Actual / predicted of one quantity."""

    overall: float
    low: float
    high: float
    """10th and 90th percentile over shards."""
    num_shards: int


def learn_ratios(stores: Sequence[Store]) -> dict[str, Ratio]:
    """{quantity: its ratio} over the committed samples of the runs.

    Raises:
        ValueError: a store holds no token run with a committed sample.
    """
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for store in stores:
        found = _pairs(store)
        if not found:
            raise ValueError(f"{store.root} holds no token run with committed samples to learn from; leave it out")
        pairs += found
    predicted, actual = (np.array(column) for column in zip(*pairs, strict=True))
    ratios = actual / np.maximum(predicted, 1e-9)
    return {
        name: Ratio(
            overall=float(actual[:, i].sum() / max(predicted[:, i].sum(), 1e-9)),
            low=float(np.quantile(ratios[:, i], 0.1)),
            high=float(np.quantile(ratios[:, i], 0.9)),
            num_shards=len(ratios),
        )
        for i, name in enumerate(QUANTITIES)
    }


def _pairs(store: Store) -> list[tuple[np.ndarray, np.ndarray]]:
    """(predicted, actual) of each shard looked at, both by QUANTITIES, over its committed samples alone."""
    rounds = load_rounds(store)
    shards = committed_shards(store)
    if rounds is None or not shards:
        return []
    picked = {shards[int(i)] for i in np.linspace(0, len(shards) - 1, min(MAX_SHARDS, len(shards)))}
    skipped = frozenset(set(range(rounds.num_shards)) - picked)
    found = []
    for shard, rows in group_by_shard(rounds.iter_rows(skip_shards=skipped)):
        samples = {sample.key: sample for sample in load_commit(store, shard).samples}
        both = [(row, samples[row.key]) for row in rows if row.key in samples]
        if both:
            predicted = np.array([[r.predicted_cpu_seconds, r.predicted_tokens, r.predicted_bytes] for r, _ in both])
            actual = np.array([[s.cpu_seconds, s.num_tokens, s.byte_size] for _, s in both])
            found.append((predicted.sum(0), actual.sum(0).astype(float)))
    return found
