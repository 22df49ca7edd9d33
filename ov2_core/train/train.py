"""A whole training run: from a stage and a model to checkpoints, and on from any of them.

    CKPT/run.json            what is trained on what, with which config
    CKPT/model/              the model's config, its tokenizer and processor: what an export needs besides weights
    CKPT/metrics.jsonl       a line a step; validation.jsonl, bad_steps.jsonl likewise
    CKPT/lineage.jsonl       the packs of each step
    CKPT/tensorboard/
    CKPT/checkpoints/        checkpoint.py

Plain torch: each process of torchrun or Ray calls `train` with the same arguments. What a step reads depends on the stage, the seed
and the step alone, so any number of ranks trains on the same packs in the same steps; what a rank computes depends on nothing else,
so a run that was killed and resumed on as many ranks joins the undisturbed one bit for bit on a CPU.
"""

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ov2_core import config as configs
from ov2_core.data.lengths import layout_digest
from ov2_core.data.loader import StageLoader
from ov2_core.data.packed_batch import OnBad
from ov2_core.features.encoder import encoder_digest
from ov2_core.features.source import FeatureSource
from ov2_core.model.create import is_preset, open_model, open_processor
from ov2_core.model.measure import measure_peak
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.failpoint import failpoint
from ov2_core.train.checkpoint import Checkpointer, find_checkpoints
from ov2_core.train.config import TrainConfig
from ov2_core.train.distributed import World, joined, restarted
from ov2_core.train.export import write_model_files
from ov2_core.train.feed import StepBatches, StepFeed
from ov2_core.train.flops import micro_batch_flops
from ov2_core.train.metrics import BAD_STEPS, LINEAGE, StepLog, cut_back
from ov2_core.train.optimizer import make_optimizer, set_learning_rates
from ov2_core.train.pack_inputs import pack_inputs
from ov2_core.train.run_files import claim
from ov2_core.train.run_lock import locked
from ov2_core.train.step import BadStep, BadStepError, Guard, StepResult, run_step, sample_sums
from ov2_core.train.trainable import Trainable, make_trainable

log = logging.getLogger(__name__)

PEAK_SHAPES = {"cuda": ((8192, 8192, 8192),), "cpu": ((1024, 1024, 1024),)}
"""Products that MFU is measured against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """Where a run reads and writes."""

    stage: str
    """STAGE, a path or URL."""
    init: str
    """Folder of a model, or a preset's name."""
    out: str
    """CKPT, a folder that all ranks see."""
    resume: bool = False
    """Go on from the newest checkpoint, if there is one."""
    max_steps: int | None = None
    seed: int = 0
    """Of the order of packs, a preset's weights and dropout."""
    tokenizer: str | None = None
    """Folder whose processor is taken in place of the model's."""
    features: tuple[str, ...] = ()
    """RUN2s of `ov2 encode --unmerged`: the encoder's outputs are read in place of pixels."""
    num_workers: int = 2
    """Threads of the loader on each rank."""
    on_bad: OnBad = "raise"
    """Samples that cannot be read."""
    device: str | None = None
    moved: tuple[tuple[str, str], ...] = ()
    """(old, new) of token runs that lie elsewhere than when the stage was built."""
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        if "://" in self.out:
            raise ValueError(
                f"--out must be a folder on a file system that all ranks share, got {self.out}: logs and checkpoints are "
                "written in place; train into a folder and copy that"
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be >= 1, got {self.max_steps}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended."""

    step: int
    """Steps done, of all calls."""
    loss: float | None
    """Of the last step; None where nothing was left to do."""
    checkpoint: Path


def train(config: TrainConfig, options: TrainOptions) -> TrainResult:
    """Trains, or goes on, until all epochs or max_steps are done, and leaves a checkpoint of the last step.

    Raises:
        ValueError: a stage, model, config or folder that do not fit together.
        BadPackError, BadStepError: a sample that cannot be read, a step that the guard stops.
    """
    with joined(options.device) as world, ExitStack() as held:
        return _Run(config, options, world, held).go()


class _Run:
    """One process of a run."""

    def __init__(self, config: TrainConfig, options: TrainOptions, world: World, held: ExitStack) -> None:
        world = replace(world, tensor=config.tensor_parallel)
        self.config, self.options, self.world = config, options, world
        self.folder = Path(options.out)
        self.processor = open_processor(options.init, tokenizer=options.tokenizer)
        accumulation = config.accumulation(world.data_size)
        if options.features and config.visual.train:
            raise ValueError("features are of a frozen encoder: set visual.train=false with --features")
        self.loader = open_loader(config, options, self.processor, world=world)
        self.steps_per_epoch = -(-self.loader.reading.num_packs // config.global_batch)
        whole = config.epochs * self.steps_per_epoch
        self.num_steps = options.max_steps or whole
        self.schedule_steps = config.schedule_steps or max(whole, self.num_steps)
        resume = restarted(world) or options.resume
        world.on_first(lambda: held.enter_context(locked(self.folder)))
        world.on_first(lambda: claim(self.folder, self._identity(), resume=resume))
        self.model = open_model(options.init, self.processor, seed=options.seed)
        world.on_first(lambda: write_model_files(self.folder, self.model, self.processor))
        self.trainable = self._prepare(self.model)
        self.optimizer = make_optimizer(self.trainable, config)
        self.guard = Guard(config.guard)
        self.checkpoints = Checkpointer(self.folder, world, keep_last=config.keep_last)
        self.step = 0
        self.best: float | None = None
        self.validation_loss: float | None = None
        self.peak_flops = measure_peak(
            world.device, self.compute_dtype, shapes=PEAK_SHAPES[world.device.type], repeats=3
        )
        self._restore()  # last: what is drawn above must not count
        self.accumulation = accumulation
        self.sources = _sources(self.loader)

    def go(self) -> TrainResult:
        """To the last step."""
        result: StepResult | None = None
        log_steps = StepLog(
            self.folder,
            active=self.world.is_first,
            first_step=self.step + 1,
            wandb_project=self.options.wandb_project,
            run_name=self.folder.name,
        )
        try:
            if self.step < self.num_steps:
                pin = self.world.device.type == "cuda"
                with StepFeed(self.loader, accumulation=self.accumulation, pin=pin) as feed:
                    while self.step < self.num_steps:
                        result = self._one_step(feed, log_steps)
            self.checkpoints.wait()
        finally:
            log_steps.close()
            self.loader.close()
        newest = find_checkpoints(self.folder)[-1]
        return TrainResult(step=self.step, loss=None if result is None else result.loss, checkpoint=newest.path)

    def _one_step(self, feed: StepFeed, log_steps: StepLog) -> StepResult:
        began = time.perf_counter()
        batches = next(feed)
        failpoint("train_before_step")
        rates = set_learning_rates(self.optimizer, self.config, self.step, num_steps=self.schedule_steps)
        flops = sum(micro_batch_flops(self.model.config, self.config, inputs).total for inputs in batches.micro_batches)
        try:
            result = run_step(
                self.trainable,
                self.optimizer,
                batches.micro_batches,
                world=self.world,
                guard=self.guard,
                sources=self.sources,
                clip_norm=self.config.clip_norm,
                num_packs=batches.last - batches.first,
            )
        except BadStepError as error:
            self._note_bad(error.bad, self.step + 1, log_steps)
            raise
        self.step += 1
        self._report(batches, result, rates, flops, time.perf_counter() - began, log_steps)
        every = self.config.eval_every
        self.validation_loss = None
        if every and (self.step % every == 0 or self.step == self.num_steps):
            self.validation_loss = self._validate(log_steps)
        if self.step % self.config.save_every == 0 or self.step == self.num_steps:
            failpoint("train_before_checkpoint")
            self.checkpoints.save(self.trainable, self.optimizer, self._state(batches.state))
            failpoint("train_after_checkpoint")
        return result

    def _report(
        self,
        batches: StepBatches,
        result: StepResult,
        rates: dict[Any, float],
        flops: int,
        seconds: float,
        log_steps: StepLog,
    ) -> None:
        waited, skipped, num_bytes, all_flops = self.world.sum(
            [batches.wait_seconds, sum(batches.skipped.values()), batches.num_bytes, flops]
        )
        waited /= self.world.data_size
        fields = {
            "step": self.step,
            "epoch": batches.epoch,
            "loss": result.loss,
            "tokens": result.num_tokens,
            "target_tokens": result.num_targets,
            "patches": result.num_patches,
            "packs": result.num_packs,
            "seconds": seconds,
            "data_wait_seconds": waited,
            "data_wait_share": waited / seconds,
            "tokens_per_second": result.num_tokens / seconds,
            "mfu": all_flops / seconds / (self.peak_flops * self.world.size),
            "grad_norm": result.grad_norm,
            "learning_rate": rates,
            "loss_by_source": result.loss_by_source,
            "loss_by_input": result.loss_by_input,
            "read_bytes": int(num_bytes),
            "skipped_samples": int(skipped),
            "applied": result.bad is None,
            **_memory(self.world.device),
        }
        log_steps.step(
            fields,
            text=f"step {self.step}/{self.num_steps}: loss {result.loss:.4f}, {result.num_tokens:,} tokens, {seconds:.2f} s "
            f"(data {waited / seconds:.0%}), {result.num_tokens / seconds:,.0f} tokens/s, MFU {fields['mfu']:.1%}, "
            f"gradient {result.grad_norm:.3g}",
        )
        log_steps.line(
            LINEAGE,
            {
                "step": self.step,
                "epoch": batches.epoch,
                "packs": list(batches.packs),
                "skipped_samples": int(skipped),
                "skipped_tars": sum(self.world.gather(batches.skipped), start=Counter[str]()) if skipped else {},
            },
        )
        if result.bad is not None:
            self._note_bad(result.bad, self.step, log_steps)

    def _note_bad(self, bad: BadStep, step: int, log_steps: StepLog) -> None:
        """What a step that was not applied held, in the log and in bad_steps.jsonl."""
        if self.world.is_first:
            log.warning("step %d was not applied: %s", step, bad.text())
        samples = [
            {"pack": sample.pack, "source": sample.source, "id": sample.id, "loss": loss}
            for loss, sample in bad.samples
        ]
        log_steps.line(BAD_STEPS, {"step": step, "reason": bad.reason, "samples": _jsonable(samples)})

    def _validate(self, log_steps: StepLog) -> float:
        """Mean loss over the packs held out."""
        held_out = open_loader(self.config, self.options, self.processor, world=self.world, part="held_out")
        self.trainable.eval()
        totals = [0.0, 0.0]
        with held_out, torch.no_grad():
            for batch in held_out:
                inputs = pack_inputs(batch)
                _, losses = self.trainable(inputs.to(self.world.device), 1.0)
                sums = (
                    sample_sums(inputs.to(self.world.device), losses).sum(0).tolist() if inputs.samples else [0.0, 0.0]
                )
                totals = [a + b for a, b in zip(totals, sums, strict=True)]
        self.trainable.train()
        loss, count = self.world.sum(totals)
        mean = loss / max(count, 1)
        log_steps.validation({"step": self.step, "loss": mean, "target_tokens": int(count)})
        return mean

    def _prepare(self, model: LlavaOnevision2ForConditionalGeneration) -> Trainable:
        precision, cuda = self.config.precision, self.world.device.type == "cuda"
        bf16 = precision == "bf16" or (precision == "auto" and cuda)
        self.compute_dtype = torch.bfloat16 if bf16 else torch.float32
        mesh = self.world.mesh() if bf16 or self.world.size > 1 else None
        torch.manual_seed(self.options.seed)  # low-rank updates begin the same on all ranks
        trainable = make_trainable(
            model,
            self.config,
            device=self.world.device,
            mesh=mesh,
            compute_dtype=self.compute_dtype,
            from_features=bool(self.options.features),
            pixel_mean=self.processor.config.pixel_mean,
            pixel_std=self.processor.config.pixel_std,
        )
        torch.manual_seed(self.options.seed * 1_000_003 + self.world.rank)  # dropout differs
        return trainable

    def _state(self, loader_state: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": self.step,
            "world_size": self.world.size,
            "loader": loader_state,
            "guard": self.guard.state_dict(),
            "validation_loss": self.validation_loss,
        }

    def _restore(self) -> None:
        found = find_checkpoints(self.folder)
        self.world.barrier()
        if self.world.is_first:
            cut_back(self.folder, found[-1].step if found else 0)
        if found:
            newest = found[-1]
            self.checkpoints.restore(newest, self.trainable, self.optimizer)
            self.loader.load_state_dict(newest.state["loader"])
            self.guard.load_state_dict(newest.state["guard"])
            self.step = newest.step
            if self.world.is_first:
                log.info("goes on after step %d of %s", self.step, newest.path)

    def _identity(self) -> dict[str, Any]:
        state = self.loader.state_dict()
        return {
            "version": 1,
            "recipe": self.config.name,
            "recipe_version": self.config.version,
            "config": configs.to_dict(self.config),
            "stage": _absolute(self.options.stage),
            "stage_digest": state["stage"],
            "init": self.options.init,
            "init_digest": _init_digest(self.options.init),
            "tokenizer": self.options.tokenizer,
            "processor_digest": layout_digest(self.processor),
            "moved": [list(pair) for pair in self.options.moved],
            "features": list(self.options.features),
            "seed": self.options.seed,
            "order": {name: state[name] for name in sorted(state) if name not in ("cursor", "stage", "version")},
            "max_steps": self.options.max_steps,
            "schedule_steps": self.schedule_steps,
            "world_size": self.world.size,
            "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
            "created_unix_seconds": round(time.time(), 3),
        }


def open_loader(
    config: TrainConfig,
    options: TrainOptions,
    processor: LlavaOnevision2Processor,
    *,
    world: World,
    part: Any = "training",
) -> StageLoader:
    """The stage, by micro-batches of this rank."""
    return StageLoader(
        options.stage,
        batch_size=config.micro_batch,
        rank=world.data_rank,
        world_size=world.data_size,
        num_workers=options.num_workers,
        seed=options.seed,
        processor=processor,
        held_out=config.held_out_packs,
        part=part,
        pixel_dtype=torch.uint8,
        on_bad=options.on_bad,
        moved=dict(options.moved),
        features=_features(options),
    )


def _features(options: TrainOptions) -> FeatureSource | None:
    """Of the encoder of `init`; a preset's encoder has no name, so nothing is asked of its features."""
    if not options.features:
        return None
    digest = None if is_preset(options.init) else encoder_digest(options.init, stage="unmerged")
    return FeatureSource(options.features, encoder_digest=digest)


def _absolute(place: str) -> str:
    """A path that holds in any working directory; a URL as it is."""
    return place if "://" in place else os.path.abspath(place)


def _sources(loader: StageLoader) -> Sequence[str]:
    return [] if loader.record is None else [source.name for source in loader.record.sources]


def _init_digest(init: str) -> str | None:
    """sha256 of a folder's config and of the names and sizes of its weights; None of a preset."""
    folder = Path(init)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 16))
    return digest.hexdigest()


def _memory(device: torch.device) -> dict[str, int]:
    """Peak of this rank, in bytes."""
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}
    import resource

    return {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _jsonable(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: str(value) if isinstance(value, float) and value - value != 0 else value
            for name, value in sample.items()
        }
        for sample in samples
    ]
