"""RUN/run.json: what the run is, written once before its first shard; a resume compares itself with it. Beside it rounds
(rows planned later), invocations (signs of life) and what `ov2 verify` found."""

from typing import Any, Literal

from pydantic import Field

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
    filtered_by_rule: dict[str, int] = Field(default_factory=dict)
    quarantined: int
    quarantined_by_reason: dict[str, int]
    shards: int
    tar_bytes: int
    num_images: int
    num_tokens: int
    errors: list[str]
    """Each names the shard, key or line, and the remedy."""


class RoundRecord(Record):
    """RUN/plan/round-NNNN.json: rows planned after the run's own plan; created once, if absent, after its two files.

    replay: rows that had fallen are tried again; what the round says of a line takes the place of what was said before.
    append: rows of another manifest, which join the run's.
    refilter: rows that a filter had left out and that other thresholds take in.
    """

    number: int = Field(ge=1)
    kind: Literal["replay", "append", "refilter"]
    reasons: list[str]
    """Of a replay: whose rows it took."""
    manifest_uri: str | None
    """Of an append."""
    manifest_digest: str | None
    line_offset: int = Field(ge=0)
    """Of an append: line in the run = line in its manifest + this."""
    filter: dict[str, Any] | None = None
    """Of a refilter: the thresholds (FilterConfig), which hold for later rounds too."""
    first_shard: int = Field(ge=0)
    num_shards: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    num_planned: int = Field(ge=0)
    num_quarantined: int = Field(ge=0)
    num_left_out: int = Field(ge=0)
    """Of an append: rows whose id (or malformed text) stood in the run already."""
    predicted_tokens: int
    predicted_bytes: int
    predicted_cpu_seconds: float
    predicted_video_seconds: float
    rows: str
    """Path of the planned rows below RUN: Parquet as the plan's. Has a part of its own, so two who try at once
    never write one file."""
    fallen: str
    """Path of the rows that fell while planning: JSON lines as the plan's."""
    created_unix_seconds: float


class MergedRun(Record):
    """One of the runs that a merged run was made of."""

    root: str
    """Where it stood, without credentials."""
    digest: str
    """sha256 of what its commits say: shards, tars, keys and lines, and how every row ended."""
    first_shard: int = Field(ge=0)
    num_shards: int = Field(ge=0)
    """Its shard n is the merged run's first_shard + n."""
    line_offset: int = Field(ge=0)
    """Line in the merged run = line in it + this."""
    num_rows: int = Field(ge=0)
    """Its manifest rows, with what was appended."""
    num_left_out: int = Field(ge=0)
    """Of these, rows whose id a run before it has."""


class MergeRecord(Record):
    """RUN/merge.json: what the run was merged of; created first, if absent. A merge of other runs into it is refused."""

    runs: list[MergedRun]


class WorkerSign(Record):
    """What the driver knows of one worker."""

    number: int
    state: Literal["starting", "idle", "busy", "released"]
    task: str | None
    """Sample key, manifest line or shard that it works on."""
    since_unix_seconds: float | None
    """Start of that task: the worker's last sign of life."""
    deadline_seconds: float | None
    """Seconds that the task may take."""


class InvocationRecord(Record):
    """RUN/invocations/<id>.json: one command at work on the run, rewritten every few seconds, and once more at its end.

    Counts are of this invocation alone. A record that has not ended and is not rewritten any more: its driver died.
    """

    stage: str
    host: str
    pid: int
    state: Literal["running", "done", "stopped"]
    began_unix_seconds: float
    seen_unix_seconds: float
    num_items: int | None
    num_done: int
    num_made: int
    num_filtered: int
    num_tokens: int
    num_shards_done: int
    num_worker_deaths: int
    cpu_seconds: float
    video_seconds: float
    quarantined: dict[str, int]
    elapsed_seconds: float
    workers: list[WorkerSign]
