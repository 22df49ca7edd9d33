"""The index against megatron-energon's own, and Energon reading a run."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import commit_lines, finished_run, make_sample

from ov2_core.storage.commit import load_commits
from ov2_core.storage.files import Store
from ov2_core.storage.index import INDEX_SQLITE, _collapse, write_index


def tables(path: Path) -> dict[str, Any]:
    """Everything in a sqlite file that a reader can tell: schema and sorted rows."""
    with sqlite3.connect(path) as db:
        found: dict[str, Any] = {
            "schema": sorted(
                " ".join(sql.replace("IF NOT EXISTS ", "").split()).replace("( ", "(").replace(" )", ")")
                for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
            )
        }
        for name in ("samples", "sample_parts"):
            found[name] = sorted(db.execute(f"SELECT * FROM {name}"))
    db.close()
    return found


def test_index_equals_what_energon_prepare_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished_run(Store(run), tmp_path)
    copy = tmp_path / "copy"
    (copy / "shards").mkdir(parents=True)
    for tar in (run / "shards").glob("*.tar"):
        shutil.copy(tar, copy / "shards")
    command = (
        "prepare --non-interactive --split-ratio 1,0,0 --sample-type CrudeWebdataset --num-workers 2 --no-progress"
    )
    energon = "import sys; from megatron.energon.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", energon, *command.split(), str(copy)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (".info.json", "split.yaml", "dataset.yaml"):
        assert (run / ".nv-meta" / name).read_bytes() == (copy / ".nv-meta" / name).read_bytes(), name
    assert sorted(p.name for p in (run / ".nv-meta").iterdir()) == sorted(p.name for p in (copy / ".nv-meta").iterdir())
    assert tables(run / INDEX_SQLITE) == tables(copy / INDEX_SQLITE)
    sidecars = sorted((copy / "shards").glob("*.idx"))
    assert len(sidecars) == 2
    for sidecar in sidecars:
        assert (run / "shards" / sidecar.name).read_bytes() == sidecar.read_bytes()


def test_energon_iterates_every_sample(tmp_path: Path) -> None:
    energon = pytest.importorskip("megatron.energon")
    run = tmp_path / "run"
    finished_run(Store(run), tmp_path)

    @energon.stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        record = sample["json"]
        return {
            **energon.basic_sample_keys(sample),
            "images": [sample[name] for name in record["image_keys"]],
            "positions": [sample[name] for name in record["patch_positions_keys"]],
            "messages": record["messages"],
            "fps": record["fps"],
        }

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        decoder = energon.SampleDecoder(image_decode="pil")
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

        def batch(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return samples

        def encode_batch(self, batch: Any) -> Any:
            return batch

    dataset = energon.get_train_dataset(
        run,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Encoder(),
    )
    loader = energon.get_loader(dataset)
    batches = iter(loader)
    seen = [sample for _ in range(4) for sample in next(batches)]
    assert sorted(sample["__key__"] for sample in seen) == [f"clip-{line:04d}" for line in (1, 2, 5, 6)]
    for sample in seen:
        expected = make_sample(int(sample["__key__"][-4:])).record
        assert sample["messages"] == [{"role": m.role, "content": m.content} for m in expected.messages]
        assert len(sample["images"]) == len(sample["positions"]) == 4
        assert sample["images"][0].size == (56, 56)
        assert sample["positions"][0].shape == (16, 3)
        assert str(sample["positions"][0].dtype).endswith("int32")
        assert sample["fps"] == 24.0


def test_index_is_a_function_of_the_commits(store: Store, tmp_path: Path) -> None:
    finished_run(store, tmp_path)
    names = store.list(".nv-meta")
    before = {name: store.read_bytes(f".nv-meta/{name}") for name in names}
    assert write_index(store) == 4
    assert write_index(store, load_commits(store)) == 4
    assert {name: store.read_bytes(f".nv-meta/{name}") for name in names} == before
    commit_lines(store, tmp_path, shard=9, lines=[20])
    assert write_index(store) == 5
    after = {name: store.read_bytes(f".nv-meta/{name}") for name in names}
    changed = {name for name in names if after[name] != before[name]}
    assert changed == {".info.json", "index.sqlite", "index.uuid", "split.yaml"}


def test_a_key_in_two_shards_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    commit_lines(store, tmp_path, shard=0, lines=[1, 2])
    write_index(store)
    commit_lines(store, tmp_path, shard=1, lines=[2])
    with pytest.raises(ValueError, match="shard 1: sample key 'clip-0002' is used twice"):
        write_index(store)
    assert not store.exists(".nv-meta/.info.json")  # no index rather than a stale one


@given(st.sets(st.integers(0, 1_000_020).filter(lambda n: n < 30 or n > 999_980)))
def test_split_patterns_are_energons(shards: set[int]) -> None:
    from megatron.energon.bracecollapse import collapse

    names = [f"shards/shard-{shard:06d}.tar" for shard in sorted(shards)]
    assert _collapse(names) == collapse(names, keep_order=True)
