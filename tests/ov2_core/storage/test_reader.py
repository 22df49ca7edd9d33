"""Reading a run back, by us and by the libraries that users have."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import finished_run, make_sample, make_tokenized

from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader, iter_tar

KEYS = [f"clip-{line:04d}" for line in (1, 2, 5, 6)]


def test_samples_are_read_by_key_and_in_order(store: Store, tmp_path: Path) -> None:
    finished_run(store, tmp_path)
    with ShardReader(store.root, store.storage_options) as reader:
        assert reader.keys() == KEYS
        assert len(reader) == 4
        assert "clip-0005" in reader
        assert "clip-0004" not in reader
        for key in reversed(KEYS):
            sample = reader.read(key)
            expected = make_sample(int(key[-4:]))
            assert sample.members == expected.members
            assert sample.record == expected.record
        streamed = list(reader)
        assert [sample.key for sample in streamed] == KEYS
        assert [sample.members for sample in streamed] == [reader.read(key).members for key in KEYS]
        assert sample.tar_name == "shards/shard-000000.tar"
        with pytest.raises(KeyError, match="clip-0099"):
            reader.read("clip-0099")


def test_stored_sample_decodes_to_its_arrays(tmp_path: Path) -> None:
    finished_run(Store(tmp_path / "run"), tmp_path)
    (first, *rest) = iter_tar(tmp_path / "run/shards/shard-000001.tar")
    assert [sample.key for sample in (first, *rest)] == ["clip-0005", "clip-0006"]
    tokenized = make_tokenized(5)
    assert np.array_equal(first.positions_NP3, tokenized.positions_NP3)
    assert first.images_NHW3.shape == tokenized.images_NHW3.shape
    assert np.array_equal(first.image(2), first.images_NHW3[2])
    with pytest.raises(KeyError, match="no member 'txt'"):
        first.member("txt")


def test_a_run_without_an_index_says_so(tmp_path: Path) -> None:
    finished_run(Store(tmp_path / "run"), tmp_path)
    (tmp_path / "run/.nv-meta/.info.json").unlink()
    with pytest.raises(FileNotFoundError, match="no index"):
        ShardReader(tmp_path / "run")


def test_a_tar_cut_short_anywhere_is_an_error(tmp_path: Path) -> None:
    """Also at the boundaries of members and headers, where tarfile sees a regular end."""
    finished_run(Store(tmp_path / "run"), tmp_path)
    data = (tmp_path / "run/shards/shard-000001.tar").read_bytes()
    end = len(data.rstrip(b"\0"))
    for cut in (0, 100, 512, *range(1024, end, 1024), 3000, end - 1):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut short|not a readable tar"):
            list(iter_tar(tmp_path / "cut.tar"))


def test_webdataset_reads_the_tars(tmp_path: Path) -> None:
    import webdataset

    finished_run(Store(tmp_path / "run"), tmp_path)
    urls = sorted(str(path) for path in (tmp_path / "run/shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == KEYS
    for sample in samples:
        record = sample["json"]
        positions = np.stack([sample[name] for name in record["patch_positions_keys"]])
        assert np.array_equal(positions, make_tokenized(int(sample["__key__"][-4:])).positions_NP3)
        assert sample["img_000.jpg"].shape == (56, 56, 3)


def test_hugging_face_datasets_reads_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    finished_run(Store(tmp_path / "run"), tmp_path)
    files = sorted(str(path) for path in (tmp_path / "run/shards").glob("*.tar"))
    rows = list(
        datasets.load_dataset(
            "webdataset", data_files={"train": files}, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
        )
    )
    assert [row["__key__"] for row in rows] == KEYS
    for row in rows:
        expected = json.loads(dict(make_sample(int(row["__key__"][-4:])).members)["json"])
        assert row["json"]["messages"] == expected["messages"]
        assert row["json"]["image_keys"] == expected["image_keys"]
        positions = row["patch_positions_003.npy"]
        if isinstance(positions, bytes):
            positions = np.load(io.BytesIO(positions))
        assert np.array_equal(np.asarray(positions), make_tokenized(int(row["__key__"][-4:])).positions_NP3[3])
        assert row["img_000.jpg"].size == (56, 56)
