"""RUN/run.json: what the run is, written once before its first shard; a resume compares itself with it."""

from typing import Any

from schemas.record import Record


class RunRecord(Record):
    """The identity of a run. A resume whose recipe, config, code or manifest differs is refused, naming what differs."""

    recipe: str
    config: dict[str, Any]
    config_digest: str
    code_version: str
    """Package version + digest of the sources that decide shard bytes."""
    library_versions: dict[str, str]
    manifest_uri: str
    manifest_digest: str
    created_unix_seconds: float


class VerifyReport(Record):
    """What `ov2 verify` found. `ok` iff errors is empty."""

    ok: bool
    manifest_rows: int
    committed: int
    filtered: int
    quarantined: int
    quarantined_by_reason: dict[str, int]
    shards: int
    tar_bytes: int
    num_images: int
    num_tokens: int
    errors: list[str]
    """Each names the shard, key or line, and the remedy."""
