"""Plan, commit and quarantine records: who is where, and how each manifest row ended."""

from typing import Any, Literal

from pydantic import Field

from schemas.record import Record
from schemas.video import ManifestRow, PixelScores, ProbeRecord, SourceIdentity

QuarantineReason = Literal[
    "malformed_row",
    "duplicate_id",
    "refused_uri",
    "source_missing",
    "source_empty",
    "source_changed",
    "not_media",
    "no_video_stream",
    "no_decodable_frame",
    "empty_range",
    "too_large",
    "unsupported",
    "invalid_text",
    "unbound_media",
    "damaged_sample",
    "malformed_scene",
    "bad_pose",
    "bad_intrinsics",
    "missing_depth",
    "bad_boxes",
    "transient_error",
    "deadline_exceeded",
    "worker_died",
    "out_of_memory",
    "internal_error",
]
Stage = Literal["manifest", "probe", "tokenize", "write", "encode", "import", "spatial"]


class QuarantineRow(Record):
    """One manifest row that did not become a sample. `row` holds all that is needed to replay it alone."""

    line: int = Field(ge=1)
    """1-based line (JSONL, CSV without its header) or row (Parquet) of the manifest."""
    id: str | None
    uri: str | None
    reason: QuarantineReason
    stage: Stage
    message: str
    attempts: int = Field(default=1, ge=1)
    row: ManifestRow | None = None
    raw: str | None = None
    """The line as read, cut to 2000 characters, where no ManifestRow could be made of it."""


class FilteredRow(Record):
    """One manifest row left out by a rule of the config."""

    line: int = Field(ge=1)
    id: str
    uri: str
    rule: str
    """The field of FilterConfig that left it out; near_duplicate; stills_only."""
    message: str
    value: float | None = None
    """What the rule measured, where that is a number."""
    threshold: float | None = None
    """What it was held against."""


class PlannedRow(Record):
    """One row of the plan: a source that a probe could read, its key and its shard."""

    line: int = Field(ge=1)
    key: str
    """Sample key: [A-Za-z0-9_-], unique in the run."""
    id: str
    uri: str
    """Absolute path or URL."""
    shard: int = Field(ge=0)
    row: ManifestRow
    probe: ProbeRecord
    identity: SourceIdentity
    predicted_tokens: int = Field(ge=0)
    predicted_bytes: int = Field(ge=0)
    predicted_cpu_seconds: float = Field(ge=0)
    pixels: PixelScores | None = None
    """None: nobody asked for them."""
    filtered: FilteredRow | None = None
    """Left out by a rule: it costs nothing, its predictions are 0, and its shard's commit says so."""


class PlanRecord(Record):
    """RUN/plan/plan.json, created once, if absent, after the two files that it names."""

    manifest_uri: str
    manifest_digest: str
    manifest_rows: int
    config_digest: str
    config: dict[str, Any] | None = None
    """The config itself, of plans of token runs."""
    num_shards: int
    num_planned: int
    """Rows with a shard, filtered ones among them."""
    num_quarantined: int
    filtered_by_rule: dict[str, int] = Field(default_factory=dict)
    predicted_tokens: int
    predicted_bytes: int
    predicted_cpu_seconds: float
    predicted_video_seconds: float
    rows: str = "plan/rows.parquet"
    """Path of the planned rows below RUN. Of a token run it has a digest of its content, so two who plan at once never write
    one file; feature runs, whose plan follows from their source, and plans of older versions have this name."""
    fallen: str = "quarantine/plan.jsonl"
    """Path of the rows that fell while planning, likewise; absent where a plan has none to tell of."""


class TarPart(Record):
    """One member of a sample in a tar, for the index."""

    name: str
    """Part name, the member's name without "KEY."."""
    content_byte_offset: int = Field(ge=0)
    content_byte_size: int = Field(ge=0)


class CommittedSample(Record):
    """One sample of a committed tar."""

    line: int = Field(ge=1)
    key: str
    id: str
    byte_offset: int = Field(ge=0)
    byte_size: int = Field(gt=0)
    """From the sample's first tar header to the end of its last member's padding."""
    parts: list[TarPart]
    num_images: int
    num_tokens: int
    num_groups: int
    duration_seconds: float
    codec: str
    mode: str
    flags: list[str]
    cpu_seconds: float = Field(ge=0)
    """CPU time of the worker that made it; the only field here that varies between runs."""
    peak_rss_bytes: int = Field(ge=0)


class CommitRecord(Record):
    """RUN/commits/<shard>.json: created once, if absent; from then on the shard is done.

    Each planned row of the shard is in exactly one of samples, filtered and quarantined. A shard whose rows all fell has no
    tar: tar_name, tar_digest and attempt are None.
    """

    shard: int = Field(ge=0)
    tar_name: str | None
    """Published name below RUN/shards."""
    attempt: str | None
    """Path of the attempt below RUN, which the winner publishes and then removes."""
    tar_digest: str | None
    """sha256 of the tar."""
    tar_bytes: int = Field(ge=0)
    samples: list[CommittedSample]
    filtered: list[FilteredRow]
    quarantined: list[QuarantineRow]
    config_digest: str
    code_version: str
    started_unix_seconds: float
    finished_unix_seconds: float
    line_offset: int = Field(default=0, ge=0)
    """Of a shard that `ov2 merge` took over: line = manifest_line in the samples' own JSON + this."""
