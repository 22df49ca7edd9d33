"""RUN/summaries: what a listing of commits does not tell, some hundred bytes a commit in place of some hundred thousand.

Derived from the commits alone, and wrong for none of them by construction: a summary counts only while the commit's file has
the size and stamp that stand beside it. Whoever misses one reads the commit.
"""

from pydantic import Field

from schemas.record import Record


class CommitSummary(Record):
    """One commit in numbers."""

    shard: int = Field(ge=0)
    commit_bytes: int = Field(ge=0)
    commit_stamp: str
    """ETag of an object store, else the modification time in ns, of the commit's file."""
    num_samples: int = Field(ge=0)
    """0 for a shard without a tar."""
    filtered: dict[str, list[int]]
    """Lines by rule."""
    num_tokens: int = Field(ge=0)
    tar_bytes: int = Field(ge=0)
    ledger_bytes: int = Field(ge=0)
    """Of quarantine/<shard>.jsonl; 0 where nothing fell."""
    quarantined: dict[str, list[int]]
    """Lines by reason."""
    finished_unix_seconds: float


class SummaryBlock(Record):
    """RUN/summaries/block-NNNNNN.json: those of a thousand consecutive shards that are committed so far."""

    commits: list[CommitSummary]
