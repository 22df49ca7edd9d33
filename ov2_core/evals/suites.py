"""The suites by name: what `ov2 eval --suite` knows."""

from collections.abc import Mapping
from typing import Any

from ov2_core.evals import jumpscore
from ov2_core.evals.evaluate import Suite


def _jumpscore_truth(row: Mapping[str, Any]) -> list[float]:
    if "answer" not in row:
        raise ValueError("no `answer`")
    return jumpscore.parse_truth(row["answer"])


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="jumpscore",
            main_metric="mAP",
            prompt=lambda row: jumpscore.PROMPT,
            parse_truth=_jumpscore_truth,
            score=jumpscore.score_answer,
            timestamp_decimal=2,
        ),
    )
}


def suite_named(name: str) -> Suite:
    """A suite.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; there are {', '.join(SUITES)}")
    return SUITES[name]
