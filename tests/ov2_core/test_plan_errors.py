from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from ov2_core.config import recipe
from ov2_core.plan import iter_plan_rows
from ov2_core.plan_errors import learn_ratios
from ov2_core.storage.commit import load_commits
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos


@pytest.fixture
def run(clip_manifest: Path, tmp_path: Path) -> Store:
    store = Store(tmp_path / "run")
    tokenize_videos(str(clip_manifest), store, recipe("uniform-4"), RunOptions(workers=0, progress="off"))
    return store


def test_ratios_are_those_of_a_naive_sum(run: Store) -> None:
    samples = [sample for commit in load_commits(run).values() for sample in commit.samples]
    rows = list(iter_plan_rows(run))
    ratios = learn_ratios([run, run])
    for name, actual, predicted in (
        ("tokens", sum(s.num_tokens for s in samples), sum(r.predicted_tokens for r in rows)),
        ("bytes", sum(s.byte_size for s in samples), sum(r.predicted_bytes for r in rows)),
        ("cpu_seconds", sum(s.cpu_seconds for s in samples), sum(r.predicted_cpu_seconds for r in rows)),
    ):
        assert ratios[name].overall == pytest.approx(actual / predicted)
        assert ratios[name].low == pytest.approx(ratios[name].high)  # one shard, twice
    assert ratios["tokens"].overall == 1.0
    assert ratios["tokens"].num_shards == 2


def test_dry_run_prints_hours_size_tokens_and_price(run: Store, clip_manifest: Path, tmp_path: Path) -> None:
    arguments = ["plan", "--manifest", clip_manifest, "--out", tmp_path / "x", "--recipe", "uniform-4", "--dry-run"]
    arguments += ["--workers", "0", "--progress", "off", "--price-per-cpu-hour", "36"]
    plain = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert plain.exit_code == 0, plain.output
    assert "--learn-from RUN" in plain.stdout
    learnt = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--learn-from", run.root]])
    assert "corrected by 1 shards" in learnt.stdout
    (price,) = [line for line in learnt.stdout.splitlines() if line.startswith("price")]
    predicted = sum(row.predicted_cpu_seconds for row in iter_plan_rows(run))
    assert float(price.split()[1]) == pytest.approx(
        predicted * learn_ratios([run])["cpu_seconds"].overall / 100, abs=0.006
    )
    assert not (tmp_path / "x").exists()


def test_run_without_samples_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no token run with committed samples"):
        learn_ratios([Store(tmp_path / "none")])
