"""Features in place of pixels: the model's outputs are the same, within what storing them costs."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from feature_runs import INLINE

from ov2_core.features.encoder import encoder_digest
from ov2_core.features.reader import FeatureReader
from ov2_core.model.byte_tokenizer import SPECIAL_IDS, byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.weights import load_model
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from pipelines.extract_features import EncodeOptions, extract_features

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 2e-2}
"""Of the largest logit. fp32: rounding of batches. bf16 and int8: 2^-8 and 1/254 of a feature, through tiny's language model."""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def batches(token_run: Path) -> dict[str, Any]:
    """Pixels and text of each sample; ids above the tiny vocabulary are mapped into it."""
    processor = LlavaOnevision2Processor(byte_tokenizer())
    with ShardReader(token_run) as reader:
        return {sample.key: processor(sample) for sample in reader}


def tiny_ids(batch: Any) -> torch.Tensor:
    ids = batch["input_ids"]
    return torch.where(ids == SPECIAL_IDS["<|image_pad|>"], 500, ids % 400)


@pytest.mark.parametrize("stage", ["merged", "unmerged"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_forward_with_features_equals_forward_with_pixels(
    token_run: Path, tiny_model: Path, model: Any, batches: dict[str, Any], tmp_path: Path, stage: Any, dtype: Any
) -> None:
    options = EncodeOptions(model=str(tiny_model), stage=stage, dtype=dtype, tokens_per_batch=100)
    extract_features(Store(token_run), Store(tmp_path), options, INLINE)
    worst = 0.0
    processor = LlavaOnevision2Processor(byte_tokenizer())
    with FeatureReader(tmp_path, encoder_digest=encoder_digest(tiny_model, stage=stage)) as reader, torch.no_grad():
        assert len(reader) == len(batches)
        for stored in reader:
            batch = batches[stored.key]
            text = processor.encode(stored, pixels=False)
            assert text.vision is None
            assert torch.equal(text.input_ids, batch["input_ids"][0]), "the feature run alone tells the text"
            assert torch.equal(text.labels, batch["labels"][0])
            pixels = {name: batch[name] for name in ("pixel_values", "image_grid_thw", "patch_positions")}
            want = model(input_ids=tiny_ids(batch), **pixels).logits
            got = model(input_ids=tiny_ids(batch), **stored.model_inputs()).logits
            worst = max(worst, float((got - want).abs().max() / want.abs().max()))
            every = 4 if stage == "merged" else 1
            assert torch.equal(stored.positions, batch["patch_positions"][::every])
    assert worst <= TOLERANCE[dtype]
    assert (worst > 1e-5) == (dtype != "fp32"), "rounding shows, so features were used"


def test_one_sample_is_read_by_key_with_its_record(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = EncodeOptions(model=str(tiny_model), dtype="int8")
    extract_features(Store(token_run), Store(tmp_path), options, INLINE)
    with FeatureReader(tmp_path) as reader, ShardReader(token_run) as source:
        assert "clip-3" in reader
        assert reader.keys() == source.keys()
        stored, sample = reader.read("clip-3"), source.read("clip-3")
        assert stored.features.shape == (stored.record.num_tokens, 64)
        assert stored.features.dtype == torch.float32
        assert stored.record.messages == sample.record.messages
        assert (stored.positions_NP3 == sample.positions_NP3).all()
        assert stored.record.model_dump(exclude={"features"}) == sample.record.model_dump()
        with pytest.raises(KeyError, match="no sample 'nobody'"):
            reader.read("nobody")
        with pytest.raises(ValueError, match="holds no images"):
            stored.image(0)
    with pytest.raises(ValueError, match="run `ov2 encode` with this model"):
        FeatureReader(tmp_path, encoder_digest="0" * 64)
