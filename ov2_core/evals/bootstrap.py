"""Confidence intervals of means by the percentile bootstrap (Efron 1979): items are drawn with replacement."""

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2000
_MAX_DRAWS = 4_000_000
"""Of one batch: memory stays bounded for any number of items."""


def mean_interval(
    values: Sequence[float], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean, deterministic for a seed. The same draws for all metrics of the same items, so they compare in pairs.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    if not len(values) or not 0 < level < 1 or num_resamples < 1:
        raise ValueError(
            f"expected values, resamples >= 1 and a level in (0, 1), got {len(values)}, {num_resamples}, {level}"
        )
    items = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    batch = max(1, _MAX_DRAWS // len(items))
    means = [
        items[rng.integers(0, len(items), (min(batch, num_resamples - done), len(items)))].mean(axis=1)
        for done in range(0, num_resamples, batch)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
