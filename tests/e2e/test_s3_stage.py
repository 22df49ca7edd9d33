"""A curriculum on an object store: token run, stage and loader at s3://, the same packs as on local disk."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from feature_runs import INLINE

from jobs.recipes import stage
from ov2_core.data.loader import StageLoader
from ov2_core.data.stage_config import with_settings
from ov2_core.data.verify_stage import verify_stage
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("materialize", [False, True])
def test_a_stage_on_s3_is_that_of_local_disk(token_run: Path, tmp_path: Path, bucket: str, materialize: bool) -> None:
    bucket = f"{bucket}/{materialize}"
    run = Store(f"{bucket}/run")
    for path in sorted(p for p in token_run.rglob("*") if p.is_file()):
        run.write_bytes(path.relative_to(token_run).as_posix(), path.read_bytes())
    processor = LlavaOnevision2Processor(byte_tokenizer())
    processor.save_pretrained(tmp_path / "model")
    config = with_settings(stage("stage4"), ["sequence_length=1400", "packs_per_block=2"])
    batches: list[list[Any]] = []
    digests = []
    for root, out in ((str(token_run), str(tmp_path / "stage")), (f"{bucket}/run", f"{bucket}/stage")):
        (tmp_path / "sources.yaml").write_text(f"sources: [{{name: spatial, importer: token-shards, path: '{root}'}}]")
        options = CurriculumOptions(
            sources=str(tmp_path / "sources.yaml"), model=str(tmp_path / "model"), materialize=materialize
        )
        digests.append(build_curriculum(Store(out), config, options, INLINE).digest)
        assert verify_stage(Store(out)).ok
        with StageLoader(out, batch_size=1, num_workers=2, processor=processor) as loader:
            batches.append(list(loader))
    assert digests[0] == digests[1]
    assert [b.keys for b in batches[0]] == [b.keys for b in batches[1]]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.pixel_values, other.pixel_values)
