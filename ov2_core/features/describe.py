"""One sample of a feature run as text. No torch.

Enters: a sample as it lies in its tar. Leaves: lines for a terminal.
"""

from ov2_core.features.layout import FEATURES_KEY, read_header
from ov2_core.storage.reader import StoredSample
from schemas.features import FeatureRecord


def is_feature_sample(stored: StoredSample) -> bool:
    """Whether features stand in a sample, told by its members."""
    return any(name == FEATURES_KEY for name, _ in stored.members)


def describe_features(stored: StoredSample) -> str:
    """What is there, of which encoder, and of which pixels."""
    record = FeatureRecord.model_validate_json(stored.member("json"))
    info, source = record.features, record.provenance
    data = stored.member(info.features_key)
    tensors = ", ".join(f"{name} {span.dtype} {list(span.shape)}" for name, span in sorted(read_header(data).items()))
    what = "tokens behind the connector" if info.stage == "merged" else "encoder outputs, one a patch"
    lines = [
        f"key        {stored.key}",
        f"source     {source.id}: {source.uri}",
        f"stands in  {stored.tar_name}, manifest line {source.manifest_line}",
        f"features   {info.stage} ({what}), {info.num_rows} rows x {info.width}, {info.dtype}, block order",
        f"member     {info.features_key}: {tensors}, {len(data):,} bytes",
        f"made of    {len(record.image_keys)} images of {record.image_width_px} x {record.image_height_px} px, "
        f"{record.num_tokens} tokens, {len(record.groups)} groups; sha256 of the images {info.source_digest[:16]}",
        f"encoder    {info.encoder_digest[:16]}, computed in {info.compute_dtype}",
    ]
    lines += [f"{message.role:<10} {message.content[:200]}" for message in record.messages]
    return "\n".join(lines)
