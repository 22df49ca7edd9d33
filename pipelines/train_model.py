"""Training on Ray: `train` of the core on every worker of a Ray Train group, begun anew from its checkpoint when one dies.

Enters: a training config and options. Leaves: CKPT, as without Ray. Ray places the workers, sets up torch's process group and
restarts the group after a failure; what the run is and where it stands lies in CKPT alone, so a run may be begun under Ray and
resumed under torchrun, or the other way round.
"""

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.options import available_cpus
from pipelines.runtime import ray_session


@dataclass(frozen=True, kw_only=True, slots=True)
class RayTraining:
    """How a run is carried out on Ray."""

    workers: int
    """Ranks."""
    address: str | None = None
    """Of a cluster; None starts an embedded one."""
    gpu: bool = False
    """One GPU a rank."""
    cpus_per_worker: float = 1.0
    max_failures: int = 3
    """Restarts of the group before the run is given up; -1: no limit."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be >= 1, got {self.workers}")


def train_on_ray(config: Any, options: Any, ray_training: RayTraining) -> Any:
    """`ov2_core.train.train.train` on all workers.

    Args:
        config: TrainConfig.
        options: TrainOptions; `out` is a folder that all nodes see.

    Returns:
        TrainResult.

    Raises:
        ValueError: CKPT holds a run and resume is not asked for; or what `train` raises for input.
        RuntimeError: the workers kept failing; the last cause is told.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from ov2_core.train.run_files import check_new

    out = Path(options.out).resolve()
    check_new(out, resume=options.resume)
    options = replace(options, out=str(out), resume=True, device="cuda" if ray_training.gpu else "cpu")
    backend = "cpu:gloo,cuda:nccl" if ray_training.gpu else "gloo"
    with ray_session(workers=max(ray_training.workers, available_cpus()), address=ray_training.address):
        trainer = TorchTrainer(
            _train,
            train_loop_config={"config": config, "options": options},
            torch_config=TorchConfig(backend=backend),
            scaling_config=ScalingConfig(
                num_workers=ray_training.workers,
                use_gpu=ray_training.gpu,
                resources_per_worker={"CPU": ray_training.cpus_per_worker, **({"GPU": 1} if ray_training.gpu else {})},
            ),
            # Ray Train goes on silently with a run of the same name: every call is a new one to it.
            run_config=RunConfig(
                name=f"ov2-{uuid.uuid4().hex[:12]}",
                storage_path=str(out / "ray"),
                failure_config=FailureConfig(max_failures=ray_training.max_failures),
                worker_runtime_env={"env_vars": {k: v for k, v in os.environ.items() if k.startswith("OV2_")}},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            causes = getattr(error, "worker_failures", {}) or {}
            first = next(iter(causes.values()), error)
            if isinstance(first, ValueError):
                raise first from error
            raise RuntimeError(f"training on Ray failed: {first}; the run resumes from {out} with --resume") from error
    return _result(out)


def _train(arguments: dict[str, Any]) -> None:
    """On each worker."""
    from ov2_core.train.train import train

    train(arguments["config"], arguments["options"])


def _result(out: Path) -> Any:
    from ov2_core.train.checkpoint import find_checkpoint
    from ov2_core.train.metrics import METRICS, read_lines
    from ov2_core.train.train import TrainResult

    found = find_checkpoint(out)
    losses = {fields["step"]: fields["loss"] for fields in read_lines(out / METRICS)}
    return TrainResult(step=found.step, loss=losses.get(found.step), checkpoint=found.path)
