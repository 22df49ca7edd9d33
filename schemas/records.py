"""Training records: one conversation with its media, whatever dataset it came from; what importers make and stages are built of.

A record is bound to its media by key, never by order: `MediaRef.key` is the sample key under which a token run holds that
medium, and it is made of the medium's identity alone (id, URI and range, or the sha256 of its bytes). Two records that ask
about one video carry one key.

Placeholders: the k-th `<image>` or `<video>` of the user turns, in reading order, stands for `media[k]`; there are exactly as
many as media, of the same kinds, and none in system or assistant turns.
"""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.record import Record
from schemas.video import Message

Modality = Literal["text", "image", "images", "video"]
"""text: no media. image: one still. images: several stills. video: at least one video."""
MediaKind = Literal["image", "video"]

_PLACEHOLDER = re.compile(r"<(image|video)>")


class EmbeddedBytes(Record):
    """Bytes of an image file that lie inside a Parquet file."""

    uri: str
    """The Parquet file: absolute path or URL."""
    row: int = Field(ge=0)
    """0-based row of the file."""
    column: str
    index: int = Field(ge=0)
    """0-based place in the row's list; 0 where the column holds one image."""
    num_bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MediaRef(Record):
    """One image or video. Where it lies is exactly one of `uri`, `embedded` and `run`; nothing of it was fetched."""

    kind: MediaKind
    """What its placeholder says, `<image>` or `<video>`."""
    key: str = Field(pattern=r"^[A-Za-z0-9_-]{1,72}$")
    """The sample key of this medium in a token run."""
    id: str = Field(min_length=1)
    """The manifest id of which `key` is made (ov2_core.data.keys.key_of)."""
    uri: str | None = Field(default=None, min_length=1)
    """Absolute path or URL of a media file; of a folder of frames where `frames_fps` is set."""
    embedded: EmbeddedBytes | None = None
    run: str | None = Field(default=None, min_length=1)
    """A token run, path or URL, that holds the sample `key`: the medium is tokenized already."""
    start_seconds: float | None = Field(default=None, ge=0)
    end_seconds: float | None = Field(default=None, gt=0)
    """[start, end) on the file's own clock; None: from the first or to the last frame."""
    frames_fps: float | None = Field(default=None, gt=0, le=1000)
    """Of a folder of frames; None: one file."""

    @model_validator(mode="after")
    def _one_place_and_a_range(self) -> Self:
        if sum(x is not None for x in (self.uri, self.embedded, self.run)) != 1:
            raise ValueError("exactly one of 'uri', 'embedded' and 'run' must be given")
        if self.kind == "image" and (self.start_seconds is not None or self.end_seconds is not None):
            raise ValueError("'start_seconds' and 'end_seconds' belong to a video, not to an image")
        if (
            self.start_seconds is not None
            and self.end_seconds is not None
            and not self.end_seconds > self.start_seconds
        ):
            raise ValueError(
                f"end_seconds ({self.end_seconds}) must be greater than start_seconds ({self.start_seconds})"
            )
        return self


class RecordOrigin(Record):
    """The line that a record was made of."""

    file: str
    row: int = Field(ge=1)
    """1-based: line (JSONL), record below the header (CSV), item (JSON array), row (Parquet), sample (token shards)."""


class TrainingRecord(Record):
    """One conversation. An id is unique in its source; the pair (source, id) is unique in a stage."""

    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """The dataset's name, as the sources file of a stage gives it."""
    modality: Modality
    media: list[MediaRef]
    """In the order of their placeholders."""
    messages: list[Message] = Field(min_length=2)
    """An optional system turn, then user and assistant turns in alternation, ending on an answer."""
    tags: list[str] = Field(default_factory=list)
    ratings: dict[str, float] = Field(default_factory=dict)
    """Quality ratings by name, e.g. FineVision's `relevance` (the least over the turns)."""
    repairs: list[str] = Field(default_factory=list)
    """Rules by which the importer put the text right; empty where it was right as read (docs/curriculum.md)."""
    origin: RecordOrigin

    @model_validator(mode="after")
    def _text_fits_media(self) -> Self:
        kinds = [medium.kind for medium in self.media]
        expected = "video" if "video" in kinds else ("text", "image")[len(kinds)] if len(kinds) < 2 else "images"
        if self.modality != expected:
            raise ValueError(f"modality must be {expected!r} for media of kinds {kinds}, got {self.modality!r}")
        places = [(turn.role, kind) for turn in self.messages for kind in _PLACEHOLDER.findall(turn.content)]
        if any(role != "user" for role, _ in places):
            raise ValueError("placeholders belong into user turns")
        if [kind for _, kind in places] != kinds:
            raise ValueError(f"placeholders {[kind for _, kind in places]} do not match media {kinds}")
        roles = [turn.role for turn in self.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
            raise ValueError(f"user and assistant must alternate and end on an answer, got {roles}")
        return self
