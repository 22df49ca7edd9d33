"""STAGE: what a curriculum stage is made of, what was asked and what was built (byte-level layout: docs/curriculum.md)."""

from typing import Any, Literal

from pydantic import Field

from schemas.record import Record
from schemas.records import MediaKind, Modality
from schemas.video import Message

StageForm = Literal["index", "shards"]
"""index: packs name samples in token shards. shards: packs are samples of tars of the stage itself."""


class StageMedium(Record):
    """Where one medium of a packed sample lies: a slice of a token shard's tar that holds exactly its sample."""

    key: str
    """Sample key there; the members are KEY.img_000.jpg, ..., KEY.json."""
    kind: MediaKind
    tar: int = Field(ge=0)
    """Number of the tar in tars.parquet."""
    byte_offset: int = Field(ge=0)
    byte_size: int = Field(gt=0)


class StageSample(Record):
    """One sample of a pack: its text, and its media by place."""

    source: int = Field(ge=0)
    """Index into StageRecord.sources."""
    id: str
    """Of the record, unique in its source."""
    messages: list[Message]
    media: list[StageMedium]
    """In the order of their placeholders."""
    num_tokens: int = Field(gt=0)
    """Of the sequence: text and visual tokens, as the processor lays them out."""
    num_visual_tokens: int = Field(ge=0)
    num_supervised_tokens: int = Field(gt=0)
    num_rounds_cut: int = Field(default=0, ge=0)
    """Trailing rounds left out to make it fit."""


class StagePack(Record):
    """One sequence."""

    number: int = Field(ge=0)
    key: str
    """ps_%08d."""
    num_tokens: int = Field(gt=0)
    samples: list[StageSample]


class StageTar(Record):
    """One tar that an index names; a row of tars.parquet."""

    number: int = Field(ge=0)
    run: str
    """The token run's path or URL; "." for the stage itself."""
    name: str
    """Below the run: shards/shard-000000.tar."""
    digest: str
    num_bytes: int = Field(gt=0)


class StageSource(Record):
    """One source as asked and as built."""

    name: str
    slot: str
    """The recipe's part that it fills."""
    importer: str
    path: str
    weight: float | None
    count: int | None
    """As asked; one of the two, or neither: then `weight` is the recipe's."""
    num_available: int = Field(ge=0)
    """Records that the importer made."""
    num_quarantined: int = Field(ge=0)
    """Rows that it refused."""
    num_samples: int = Field(ge=0)
    """In the stage."""
    num_tokens: int = Field(ge=0)
    num_visual_tokens: int = Field(ge=0)
    num_supervised_tokens: int = Field(ge=0)
    num_rounds_cut: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    """Of the tar slices that its samples read."""
    samples_by_modality: dict[Modality, int]
    tokens_by_modality: dict[Modality, int]
    num_tried: int = Field(ge=0)
    """Records that were measured: those in the stage, those dropped, and spares."""
    dropped: dict[str, int]
    """Records tried and left out, by reason; each is a line of dropped.jsonl."""


class PackingStats(Record):
    """How full the packs are."""

    sequence_length: int = Field(gt=0)
    num_packs: int = Field(ge=0)
    num_samples: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    fill: float = Field(ge=0, le=1)
    """num_tokens / (num_packs x sequence_length)."""
    max_samples: int = Field(ge=0)
    """Of a pack."""
    samples_per_pack: list[int]
    """Packs by number of samples: entry i counts packs of i samples."""
    sample_tokens: list[int]
    """Samples by length: entry i counts those of [2^i, 2^(i+1)) tokens."""


class StageRecord(Record):
    """STAGE/stage.json, written last: where it stands, the stage is complete."""

    recipe: str
    recipe_version: int
    config: dict[str, Any]
    """The resolved recipe."""
    seed: int
    form: StageForm
    tokenizer_digest: str
    """sha256 of how the processor lays text out; a loader's processor must agree."""
    lengths: Literal["exact", "bound"] = "exact"
    """bound: text was counted in bytes, which no byte-level tokenizer exceeds; loaders with any of those may read the stage, and
    find packs shorter than they say."""
    packs_per_block: int = Field(gt=0)
    packs_per_part: int = Field(gt=0)
    num_tars: int = Field(ge=0)
    digest: str
    """sha256 over all packs: the stage's identity, which a loader's state names."""
    sources: list[StageSource]
    missing_slots: list[str]
    """Parts of the recipe that no source fills."""
    packing: PackingStats
    generator: str


class DroppedSample(Record):
    """A line of STAGE/dropped.jsonl: a record that was tried and left out, or a row that its importer refused."""

    source: str
    id: str | None
    file: str
    row: int
    reason: str
    message: str


class PackedSamples(Record):
    """KEY.json of a stage shard (upstream: PackedCaptioningSample), with our own fields beside upstream's.

    Member names: img{i}_{j}.jpg and img{i}_{j}.npy, i = sample in the pack, j = image in the sample.
    """

    images: list[list[str]]
    prompts: list[list[str]]
    """Of each sample, its user turns; the first opens with the placeholders of its media."""
    captions: list[list[str]]
    """Of each sample, its answers."""
    sample_count: int = Field(gt=0)
    patch_positions: list[list[str]]
    """Of each image its .npy, or ""."""
    fps: list[float | None]
    """Of each sample: of its video; null where it has none."""
    timestamp_decimal: list[int]

    samples: list["PackedSample"] | None = None
    """Ours: what upstream's fields cannot say. Null in shards that others made."""


class PackedMedium(Record):
    """One medium of a sample of a stage shard."""

    key: str
    kind: MediaKind
    group_images: list[int]
    """Images of each attention group."""
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    """Patches of an image."""
    fps: float | None
    timestamp_decimal: int
    patch_px: int = Field(gt=0)
    merge: int = Field(gt=0)


class PackedSample(Record):
    """One sample of a stage shard."""

    source: str
    id: str
    messages: list[Message]
    media: list[PackedMedium]
    num_tokens: int = Field(gt=0)


PackedSamples.model_rebuild()
