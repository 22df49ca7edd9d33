"""The loader's bench on a toy: readers read the same, and the bound of a packing is one."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("megatron.energon")

from jobs.bench_loader import fill_bound, first_fit_fill, main
from ov2_core.data.packing import PackingConfig, pack


@pytest.mark.filterwarnings("ignore")
def test_the_bench_runs_on_a_toy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--packs", "4", "--images", "2", "--workers", "1", "--rounds", "1", "--samples", "500"]
    assert main([*options, "--out", str(tmp_path / "bench.json")]) == 0
    assert "webdataset" in capsys.readouterr().out
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {found["packs"] for found in report["readers"].values()} == {4}
    assert {found["images"] for found in report["readers"].values()} == {8}
    assert max(report["resume_seconds"].values()) < 2
    for found in report["packing"].values():
        assert found["fill"] <= found["fill_at_most"] <= 1


def test_the_bound_holds_for_the_best_packing_of_few_samples() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        lengths = rng.integers(1, 101, 5)
        best = min(
            len(set(where))
            for where in itertools.product(range(5), repeat=5)
            if all(lengths[np.array(where) == i].sum() <= 100 for i in set(where))
        )
        assert lengths.sum() / (best * 100) <= fill_bound(lengths, 100) + 1e-9


def test_first_fit_is_what_it_says() -> None:
    lengths = np.array([60, 50, 40, 30, 20])
    assert first_fit_fill(lengths, 100) == 1.0
    assert first_fit_fill(np.array([60, 60]), 100, num=2) == 0.6
    assert pack([60, 60], PackingConfig(sequence_length=100)).fill([60, 60], 100) == 0.6
