"""The stages that resumes are timed on: they are stages, and each position's first batch is the one of the order."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from jobs.bench_resume import index_files, make_large_index, make_large_shards, put_out_of_cache, resume_once
from ov2_core.data.loader import StageLoader
from ov2_core.data.verify_stage import verify_stage
from ov2_core.storage.files import Store


@pytest.mark.parametrize("form", ["index", "shards"])
def test_a_resume_is_timed_on_a_stage_that_verifies(tmp_path: Path, form: str) -> None:
    if form == "index":
        make_large_index(tmp_path, 130, 2, 7)
        found = verify_stage(Store(tmp_path))
        assert found.errors == []
        assert (found.num_packs, found.num_samples, found.num_images) == (130, 260, 260)
    else:
        make_large_shards(tmp_path, 130, 2, packs_per_shard=50)
        with StageLoader(tmp_path, batch_size=4, num_workers=0) as loader:
            assert sorted(key for batch in loader for key in batch.keys) == [f"ps_{i:08d}" for i in range(130)]
    names = {path.name for path in index_files(tmp_path)}
    assert names >= (
        {"tars.parquet", "part-00000.parquet"} if form == "index" else {".info.json", "shard-000002.tar.idx"}
    )
    put_out_of_cache(index_files(tmp_path))
    for share in (0.0, 0.5, 0.9995):
        once = resume_once(str(tmp_path), share, 1)
        assert 0 < once["open_seconds"] < once["seconds"] < 2
