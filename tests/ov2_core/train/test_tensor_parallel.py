"""Ranks that share layers: the curve of one process, and checkpoints that go on without them."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from train_runs import curve, finish, train_command

from ov2_core.train.config import LoraConfig, TrainConfig

SETTINGS = ["--set", "global_batch=4", "--set", "save_every=2", "--set", "clip_norm=0.5"]


def test_two_ranks_that_share_layers_train_as_one_and_one_goes_on(train_stage: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert finish(train_command(train_stage, tmp_path / "one", "--max-steps", "4", *SETTINGS), log) == 0, (
        log.read_text()
    )
    two = train_command(
        train_stage, tmp_path / "two", "--max-steps", "2", "--set", "tensor_parallel=2", *SETTINGS, ranks=2
    )
    assert finish(two, log) == 0, log.read_text()
    resumed = train_command(train_stage, tmp_path / "two", "--max-steps", "4", "--resume", *SETTINGS)
    assert finish(resumed, log) == 0, log.read_text()
    for one, other in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], rel=1e-4)


@pytest.mark.slow
def test_heads_that_ranks_cannot_share_are_told(train_stage: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    three = train_command(
        train_stage, tmp_path / "three", "--max-steps", "1", "--set", "tensor_parallel=3", *SETTINGS, ranks=3
    )
    assert finish(three, log) != 0
    assert "tensor_parallel must divide the language model's 4 heads and 2 key heads, got 3" in log.read_text()


def test_low_rank_updates_are_not_shared() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        TrainConfig(name="x", version=1, tensor_parallel=2, lora=LoraConfig(rank=4))
