"""KEY.json of a token shard, the record beside a sample's canvases (byte-level layout: docs/formats.md).

`messages`, `image_keys`, `fps`, `timestamp_decimal` and `patch_positions_keys` are read by upstream's trainer; the other
fields are ours. Nothing here depends on the worker, the host or the clock: shards are byte-reproducible.
"""

from typing import Literal

from pydantic import Field

from schemas.record import Record
from schemas.video import Message


class GroupRecord(Record):
    """One group of canvases: the span of source time that it stands for, and where its canvases are."""

    first_image: int = Field(ge=0)
    """Index into image_keys of the group's first canvas (the I-canvas)."""
    num_images: int = Field(gt=0)
    t_start: int = Field(ge=0)
    t_end: int = Field(gt=0)
    """[t_start, t_end) in timeline ticks (seconds = t / fps)."""
    num_frames: int = Field(gt=0)
    """Source frames in the group."""
    bit_cost: float = Field(ge=0)
    """The group's share of the clip's bit cost, 0..1."""


class Provenance(Record):
    """Where a sample came from and how it was made."""

    id: str
    uri: str
    start_seconds: float | None
    end_seconds: float | None
    first_shown_seconds: float
    """Time on the file's own clock of t = 0."""
    source: str | None
    tags: list[str]
    manifest_line: int
    size_bytes: int
    codec: str
    width_px: int
    height_px: int
    num_frames: int
    duration_seconds: float
    generator: str
    """Name and version of the code."""
    config_digest: str


class SampleRecord(Record):
    """KEY.json. Lengths agree: image_keys, patch_positions_keys and the tar members; groups cover all images in order."""

    messages: list[Message]
    image_keys: list[str] = Field(min_length=1)
    patch_positions_keys: list[str] = Field(min_length=1)
    fps: float | None
    """Seconds = t / fps. Null for a still."""
    timestamp_decimal: int = Field(ge=0, le=6)

    media: Literal["video", "image"]
    mode: Literal["codec", "uniform", "still"]
    policy: Literal["saliency", "evidence", "legacy"] | None
    image_width_px: int = Field(gt=0)
    image_height_px: int = Field(gt=0)
    patch_px: int = Field(gt=0)
    merge: int = Field(gt=0)
    num_tokens: int = Field(gt=0)
    """Merged visual tokens: patches / merge^2."""
    token_budget: int = Field(gt=0)
    """Merged visual tokens that the recipe allowed."""
    groups: list[GroupRecord]
    frame_bit_cost: list[float]
    """Bit cost of the clip over time, at most 512 bins, sum 1 (for the report; empty for stills)."""
    flags: list[str]
    positions_digest: str
    """sha256 of all positions, int32 little-endian, in image order."""
    provenance: Provenance
