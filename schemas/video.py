"""What goes in: manifest rows, and what a probe says of a file.

Seconds are float, pixels are integers, ranges are half-open. `width_px` x `height_px` is the size as shown: rotation and
sample aspect ratio applied.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.record import Record


class Message(Record):
    """One turn of a conversation, ChatML roles."""

    role: Literal["system", "user", "assistant"]
    content: str


class ManifestRow(Record):
    """One line of a manifest (JSONL, CSV or Parquet): a video or a still, with optional range and text.

    Exactly one of `video` and `image` is a URI or a path; a relative path is relative to the manifest's folder.
    `start` and `end` are seconds on the file's own clock, half-open.
    """

    video: str | None = Field(default=None, min_length=1)
    image: str | None = Field(default=None, min_length=1)
    id: str | None = Field(default=None, min_length=1, max_length=4096)
    start: float | None = Field(default=None, ge=0)
    end: float | None = Field(default=None, gt=0)
    frames_fps: float | None = Field(default=None, gt=0, le=1000)
    """`video` is a folder of stills, so many a second, in the order of the numbers in their names."""
    caption: str | None = None
    messages: list[Message] | None = None
    conversations: list[dict[str, Any]] | None = None
    source: str | None = None
    tags: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_medium_and_a_range(self) -> Self:
        if (self.video is None) == (self.image is None):
            raise ValueError("exactly one of 'video' and 'image' must be given")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end}) must be greater than start ({self.start})")
        if self.image is not None and (self.start is not None or self.end is not None):
            raise ValueError("'start' and 'end' belong to a video, not to an image")
        if self.image is not None and self.frames_fps is not None:
            raise ValueError("'frames_fps' belongs to a video that is a folder of stills, not to an image")
        if sum(x is not None for x in (self.caption, self.messages, self.conversations)) > 1:
            raise ValueError("give at most one of 'caption', 'messages' and 'conversations'")
        return self


class ProbeRecord(Record):
    """What demuxing alone says of a file (no frame is decoded)."""

    media: Literal["video", "image"]
    container: str
    codec: str
    pixel_format: str
    width_px: int = Field(gt=0)
    height_px: int = Field(gt=0)
    num_frames: int = Field(gt=0)
    """Frames shown inside the row's range."""
    duration_seconds: float = Field(ge=0)
    fps: float | None
    """Rate of the constant-rate timeline on which t counts; None for a still."""
    variable_rate: bool
    rotation_degrees: int
    size_bytes: int = Field(ge=0)
    video_bytes: int = Field(ge=0)
    """Sum of the packet sizes inside the range."""
    num_keyframes: int | None = Field(default=None, ge=0)
    """Frames inside the range that a decoder can start at; None: a still, or an older plan."""
    num_discardable: int | None = Field(default=None, ge=0)
    """Frames that no other needs, as far as the stream says; None likewise."""
    flags: list[str] = Field(default_factory=list)
    """Oddities that did not stop us: "truncated", "missing_pts", ..."""


class PixelScores(Record):
    """What a look at a few frames at equal steps of time measured (ov2_core/filters/pixels.py); a still is one frame.

    Raw numbers, so that other thresholds can be held against them. F frames were looked at.
    """

    seconds: list[float]
    """[F] when, from the first shown frame of the range."""
    change_levels: list[float]
    """[F - 1] mean absolute difference of luma between neighbours, levels of 0..255."""
    dark_share: list[float]
    """[F] share of cells darker than 10 % of full luma."""
    hashes: list[str | None]
    """[F] 64-bit difference hash, 16 hex digits; None for a frame without contrast, which would look like any other such."""


class SourceIdentity(Record):
    """Tells whether the bytes behind a URI are those that were planned; cheap to recompute."""

    size_bytes: int = Field(ge=0)
    stamp: str
    """ETag of an object store, else the modification time in ns."""
