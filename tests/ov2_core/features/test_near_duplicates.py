"""Samples that look alike to an encoder, and the list that leaves them out."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from feature_runs import INLINE
from typer.testing import CliRunner

from jobs.cli import app
from ov2_core.features import near_duplicates as module
from ov2_core.features.near_duplicates import MeanFeatures, find_repeats, mean_features
from ov2_core.features.reader import FeatureReader
from ov2_core.filters.corpus import load_left_out
from ov2_core.storage.files import Store
from pipelines.extract_features import EncodeOptions, extract_features


def means_of(vectors: torch.Tensor) -> MeanFeatures:
    count = len(vectors)
    return MeanFeatures(
        lines=list(range(1, count + 1)),
        ids=[f"v{i}" for i in range(count)],
        uris=["/v"] * count,
        vectors_ND=torch.nn.functional.normalize(vectors, dim=1),
    )


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_blocks_find_what_comparing_one_by_one_finds(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_SAMPLES", block)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(5, 16, generator=generator)
    means = means_of(
        base[torch.randint(5, (40,), generator=generator)] + 0.3 * torch.randn(40, 16, generator=generator)
    )
    kept: list[int] = []
    naive = []
    for i in range(40):
        cosines = [float(means.vectors_ND[i] @ means.vectors_ND[k]) for k in kept]
        if cosines and max(cosines) >= 0.9:
            naive.append((i + 1, kept[cosines.index(max(cosines))]))
        else:
            kept.append(i)
    found = find_repeats(means, min_cosine=0.9)
    assert 5 < len(naive) < 35
    assert [(row.line, int(row.message.split("(v")[1].split(")")[0])) for row in found] == naive
    assert all(row.value is not None and row.value >= 0.9 and row.threshold == 0.9 for row in found)


def test_same_vector_is_found_at_one_and_thresholds_without_sense_are_refused() -> None:
    means = means_of(torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.0, -1.0]]))
    assert [row.id for row in find_repeats(means, min_cosine=1.0)] == ["v1"]
    with pytest.raises(ValueError, match=r"--min-cosine must be in \(0, 1\]"):
        find_repeats(means, min_cosine=0)


def test_list_made_of_a_feature_run_is_one_that_a_plan_reads(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    features = Store(tmp_path / "features")
    options = EncodeOptions(model=str(tiny_model), dtype="fp32", device="cpu")
    extract_features(Store(token_run), features, options, INLINE)
    with FeatureReader(features.root) as reader:
        means = mean_features(reader)
        first = next(iter(reader))
    place = means.ids.index(first.record.provenance.id)
    expected = torch.nn.functional.normalize(first.features.mean(dim=0), dim=0)
    assert torch.allclose(means.vectors_ND[place], expected, atol=1e-6)
    assert means.lines == sorted(means.lines)
    out = tmp_path / "alike.jsonl"
    done = CliRunner().invoke(app, ["near-duplicates", features.root, "--out", str(out), "--min-cosine", "0.01"])
    assert done.exit_code == 0, done.output
    listed = load_left_out(str(out))
    assert set(listed) == {row.id for row in find_repeats(means, min_cosine=0.01)}
    assert set(listed) <= set(means.ids[1:])


def test_list_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"list.jsonl:1 is no row"):
        load_left_out(str(tmp_path / "list.jsonl"))
    with pytest.raises(ValueError, match="no such file"):
        load_left_out(str(tmp_path / "nowhere.jsonl"))
