"""Feature runs: what RUN2/run.json says of the encoder, the plan's rows, and KEY.json beside a sample's features.

A feature run is made of a token run, shard by shard: sample keys, lines and shard numbers are those of its source.
"""

from typing import Literal

from pydantic import Field

from schemas.record import Record
from schemas.tokens import SampleRecord

FeatureStage = Literal["merged", "unmerged"]
"""merged: tokens behind the connector; unmerged: encoder outputs before it, one a patch."""
FeatureDtype = Literal["bf16", "int8", "fp32"]
"""Of the stored values. int8: value = features x scales, one float32 scale a row."""
ComputeDtype = Literal["float32", "bfloat16"]


class FeatureConfig(Record):
    """What decides the values of a feature run; `config` of its run.json. A resume that differs in any field is refused."""

    encoder_digest: str
    """sha256 of the vision weights, their config and the pixel normalisation; the connector's count only where it is used."""
    stage: FeatureStage
    dtype: FeatureDtype
    compute_dtype: ComputeDtype
    """Of weights and activations: bfloat16 on a GPU (unless dtype is fp32), float32 on a CPU."""
    width: int = Field(gt=0)
    """Values of a row."""
    patch_px: int = Field(gt=0)
    merge: int = Field(gt=0)
    source_digest: str
    """sha256 of what the source's commits promise."""
    source_config_digest: str


class FeatureInfo(Record):
    """The features of one sample: tensor shapes, order and what they were made of."""

    features_key: str
    """The safetensors member: `features` [num_rows, width] and, for int8, `scales` [num_rows] float32."""
    stage: FeatureStage
    dtype: FeatureDtype
    compute_dtype: ComputeDtype
    num_rows: int = Field(gt=0)
    """Merged: num_tokens of the sample; unmerged: its patches."""
    width: int = Field(gt=0)
    order: Literal["block"] = "block"
    """Images in order; in an image its merge x merge blocks in raster order; unmerged, the patches of a block in raster
    order."""
    encoder_digest: str
    source_digest: str
    """sha256 over the names and bytes of the source sample's images: of exactly these pixels are the features."""


class FeatureRecord(SampleRecord):
    """KEY.json of a feature shard: the source's record as it was, and `features`.

    `image_keys` names the images that the features stand for; they are members of the source's shard, not of this one.
    """

    features: FeatureInfo


class PlannedFeatures(Record):
    """One row of a feature run's plan, made of the source's commits alone."""

    line: int = Field(ge=1)
    """The source's manifest line."""
    key: str
    id: str
    shard: int = Field(ge=0)
    num_tokens: int = Field(gt=0)
    predicted_bytes: int = Field(ge=0)
    """Of its members in the tar."""
