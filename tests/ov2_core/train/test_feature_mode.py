"""Features in place of pixels: the same losses and connector, and what does not belong together is refused."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from feature_runs import INLINE

from jobs.train_recipes import training
from ov2_core.config import with_settings
from ov2_core.data.read_pack import BadPackError
from ov2_core.features.source import FeatureSource
from ov2_core.model.create import open_model, open_processor
from ov2_core.model.weights import save_weights
from ov2_core.storage.files import Store
from ov2_core.train.train import TrainOptions, train
from pipelines.extract_features import EncodeOptions, extract_features

SETTINGS = ["global_batch=4", "visual.train=false", "activation_checkpointing=false"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a `tiny` model of bytes."""
    folder = tmp_path_factory.mktemp("feature-model")
    processor = open_processor("tiny")
    made = open_model("tiny", processor, seed=1)
    processor.save_pretrained(folder)
    made.config.save_pretrained(folder)
    save_weights(made, folder)
    return folder


@pytest.fixture(scope="module")
def feature_runs(model: Path, token_run: Path, train_stage: Path) -> tuple[str, str]:
    """Of the stage's two token runs."""
    made = []
    for name, source in (("codec", token_run), ("frames", train_stage.parent / "frames-run")):
        options = EncodeOptions(model=str(model), stage="unmerged", dtype="fp32")
        extract_features(Store(source), Store(model / name), options, INLINE)
        made.append(str(model / name))
    return made[0], made[1]


def run(stage: Path, model: Path, out: Path, *settings: str, **options: object) -> list[float]:
    config = with_settings(training("stage1"), [*SETTINGS, *settings])
    given = TrainOptions(
        **{"stage": str(stage), "init": str(model), "out": str(out), "max_steps": 3, "device": "cpu", **options}  # type: ignore[arg-type]
    )
    train(config, given)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()]


def test_features_give_the_losses_of_pixels(
    train_stage: Path, model: Path, feature_runs: tuple[str, str], tmp_path: Path
) -> None:
    pixels = run(train_stage, model, tmp_path / "pixels")
    features = run(train_stage, model, tmp_path / "features", features=feature_runs)
    assert features == pytest.approx(pixels, abs=1e-5)


def test_a_medium_without_features_is_named(
    train_stage: Path, model: Path, feature_runs: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(BadPackError, match=r"no features of clip-\d.* run `ov2 encode --unmerged`"):
        run(train_stage, model, tmp_path / "half", features=feature_runs[:1])
    losses = run(train_stage, model, tmp_path / "skipping", features=feature_runs[:1], on_bad="skip")
    assert len(losses) == 3


def test_features_of_another_encoder_or_a_trained_one_are_refused(
    train_stage: Path, model: Path, feature_runs: tuple[str, str], tmp_path: Path
) -> None:
    processor = open_processor("tiny")
    other = tmp_path / "other"
    made = open_model("tiny", processor, seed=2)
    processor.save_pretrained(other)
    made.config.save_pretrained(other)
    save_weights(made, other)
    with pytest.raises(ValueError, match="features of the encoder"):
        run(train_stage, other, tmp_path / "a", features=feature_runs)
    with pytest.raises(ValueError, match=r"set visual\.train=false"):
        run(train_stage, model, tmp_path / "b", "visual.train=true", features=feature_runs)


def test_merged_features_are_refused(train_stage: Path, model: Path, token_run: Path, tmp_path: Path) -> None:
    options = EncodeOptions(model=str(model), stage="merged", dtype="fp32")
    extract_features(Store(token_run), Store(tmp_path / "merged"), options, INLINE)
    with pytest.raises(ValueError, match="merged features"):
        FeatureSource([str(tmp_path / "merged")])
