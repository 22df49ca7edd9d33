"""Trains runs of a list, one after the other, as one rank of a world: `python rank_runs.py RUNS_JSON` in torchrun's environment.

RUNS_JSON: a list of arguments of `run`. torch.distributed's group is made once for all of them.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ov2_core.config import with_settings
from ov2_core.train.config import TrainConfig
from ov2_core.train.train import TrainOptions, train


def run(stage: str, out: str, settings: list[str], max_steps: int | None) -> None:
    """A training of `tiny` whose every step leaves a checkpoint."""
    plain = TrainConfig(
        name="test", version=1, global_batch=4, save_every=1, keep_last=100, activation_checkpointing=False
    )
    config = with_settings(plain, settings)
    train(
        config,
        TrainOptions(stage=stage, init="tiny", out=out, max_steps=max_steps, num_workers=1, device="cpu", seed=0),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(**one)
    dist.destroy_process_group()
