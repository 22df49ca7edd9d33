"""The one exception that means: this item is bad, and here is why. Everything else is our own fault."""

from ov2_core.redact import redacted
from schemas.shard import QuarantineReason, Stage


class BadItemError(ValueError):
    """A source or row that cannot become a sample. Pipelines turn it into a quarantine row; libraries let it rise.

    Its message goes into ledgers and reports, so passwords and signatures in URLs are taken out of it.
    """

    def __init__(self, reason: QuarantineReason, message: str, *, stage: Stage = "tokenize") -> None:
        super().__init__(redacted(message))
        self.reason: QuarantineReason = reason
        self.stage: Stage = stage

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.reason, str(self), self.stage)


def _rebuild(reason: QuarantineReason, message: str, stage: Stage) -> BadItemError:
    return BadItemError(reason, message, stage=stage)
