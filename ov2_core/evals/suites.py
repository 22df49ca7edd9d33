"""The suites by name: what `ov2 eval --suite` knows."""

from ov2_core.evals import counting, grounding, jumpscore, spatial, tracking
from ov2_core.evals.evaluate import Suite
from ov2_core.evals.item import ItemScore, TruthItem
from ov2_core.evals.token_times import events_of, score_evidence


def _without_tokens(item: TruthItem, answer: str | None) -> ItemScore:
    return score_evidence(item, "no tokens were given")


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="jumpscore",
            main_metric="mAP",
            prompt=lambda row: jumpscore.PROMPT,
            parse_truth=lambda row: jumpscore.parse_truth(row["answer"]),
            score=lambda item, answer: jumpscore.score_answer(item.row, item.answer, answer),
            timestamp_decimal=2,
        ),
        Suite(
            name="grounding",
            main_metric="mIoU",
            prompt=grounding.prompt,
            parse_truth=lambda row: grounding.parse_truth(row["answer"]),
            score=lambda item, answer: grounding.score_answer(item.row, item.answer, answer),
        ),
        Suite(
            name="counting",
            main_metric="exact",
            prompt=counting.prompt,
            parse_truth=lambda row: counting.parse_truth(row["answer"]),
            score=lambda item, answer: counting.score_answer(item.row, item.answer, answer),
        ),
        Suite(
            name="tracking",
            main_metric="HOTA@0.5",
            prompt=tracking.prompt,
            parse_truth=tracking.parse_truth,
            score=lambda item, answer: tracking.score_answer(item.row, item.answer, answer),
        ),
        Suite(
            name="spatial",
            main_metric="score",
            prompt=spatial.prompt,
            parse_truth=spatial.parse_truth,
            score=lambda item, answer: spatial.score_answer(item.row, item.answer, answer, folder=item.folder),
        ),
        Suite(
            name="evidence",  # tokens are scored, not answers: token_times.evaluate_tokens
            main_metric="event_recall",
            prompt=spatial.prompt,
            parse_truth=events_of,
            score=_without_tokens,
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
