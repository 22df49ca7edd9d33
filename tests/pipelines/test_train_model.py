"""Training under Ray Train: the run of one process, also when a worker is killed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from jobs.train_recipes import training
from ov2_core.config import with_settings
from ov2_core.train.train import TrainOptions, train
from pipelines.train_model import RayTraining, train_on_ray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config() -> Any:
    return with_settings(training("stage1"), ["global_batch=4", "save_every=2", "activation_checkpointing=false"])


@pytest.fixture(scope="module")
def options(train_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    out = tmp_path_factory.mktemp("ray-train")
    return TrainOptions(stage=str(train_stage), init="tiny", out=str(out / "alone"), max_steps=5, device="cpu")


def metrics(out: str | Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, (Path(out) / "metrics.jsonl").open())]


def test_a_killed_worker_restarts_the_group_and_the_curve_is_that_of_one_process(
    local_ray: None, config: Any, options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, options)
    under_ray = dataclasses.replace(options, out=str(tmp_path / "ray"))
    monkeypatch.setenv("OV2_FAILPOINT", "train_before_step:4")
    monkeypatch.setenv("OV2_FAILPOINT_MARKER", str(tmp_path / "marker"))
    result = train_on_ray(config, under_ray, RayTraining(workers=2, max_failures=1))
    assert (tmp_path / "marker").exists()
    assert result.step == 5
    want, found = metrics(options.out), metrics(under_ray.out)
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in want], abs=1e-4)
    with pytest.raises(ValueError, match="add --resume"):
        train_on_ray(config, under_ray, RayTraining(workers=2))
