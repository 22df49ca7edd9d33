"""Energon itself reads the stage's shards, and gets what our own loader gets."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("megatron.energon")

import torch
from feature_runs import INLINE
from megatron import energon

from jobs.recipes import stage
from ov2_core.data.energon import pack_of
from ov2_core.data.loader import StageLoader
from ov2_core.data.packed_batch import PackEncoder
from ov2_core.data.stage_config import with_settings
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum


@pytest.mark.parametrize("num_workers", [0, 2])
def test_energon_gets_the_packs_that_our_loader_gets(token_run: Path, tmp_path: Path, num_workers: int) -> None:
    processor = LlavaOnevision2Processor(byte_tokenizer())
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "sources.yaml").write_text(f"sources: [{{name: spatial, importer: token-shards, path: {token_run}}}]")
    options = CurriculumOptions(
        sources=str(tmp_path / "sources.yaml"), model=str(tmp_path / "model"), materialize=True, shard_bytes=100_000
    )
    config = with_settings(stage("stage4"), ["sequence_length=1400"])
    build_curriculum(Store(tmp_path / "stage"), config, options, INLINE)
    encoder = PackEncoder(processor)

    @energon.stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return {**energon.basic_sample_keys(sample), "pack": encoder.encode(pack_of(sample), on_bad="raise")}

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = None
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

        def batch(self, samples: list[dict[str, Any]]) -> list[Any]:
            return [sample["pack"] for sample in samples]

        def encode_batch(self, batch: Any) -> Any:
            return batch

    dataset = energon.get_train_dataset(
        tmp_path / "stage",
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
    )
    loader = StageLoader(tmp_path / "stage", batch_size=1, num_workers=num_workers, processor=processor)
    ours = {batch.keys[0]: batch for batch in loader}
    batches = iter(energon.get_loader(dataset))
    theirs = [pack for _ in range(len(ours)) for pack in next(batches)]
    assert sorted(pack.key for pack in theirs) == sorted(ours)
    assert len(ours) > 2
    for pack in theirs:
        mine = ours[pack.key]
        assert torch.equal(pack.input_ids, mine.input_ids[0])
        assert torch.equal(pack.labels, mine.labels[0])
        assert torch.equal(torch.cat([part.pixel_values for part in pack.vision]), mine.pixel_values)
        assert pack.sample_ids == mine.sample_ids[0]


def test_decoded_members_are_refused() -> None:
    with pytest.raises(ValueError, match="json are not bytes; set `decoder = None`"):
        pack_of({"__key__": "ps_00000000", "json": {}})
