"""How fast steps are on this machine: this trainer's, and those of transformers' Trainer on the same model and packs.

Enters: a workload. Leaves: seconds, waits and bytes of steps, beside the machine's own matrix product of the same minute. Meant to
be run in a process of its own, whose memory is then the training's. Both sides take the same packs from memory, with as many to a
step; the Trainer gets them as `model_inputs()` with pixels normalised before the clock starts, no padding, sdpa attention
(which makes a mask of positions that restart), its own loss over full logits, its fused AdamW. `loader` is this trainer fed by the
stage's loader, which tells how long steps wait for data.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ov2_core.data.loader import StageLoader
from ov2_core.data.packed_batch import PackedBatch
from ov2_core.model.create import is_preset, open_model, open_processor, preset_config
from ov2_core.model.measure import measure_peak, most_memory, reset_memory
from ov2_core.model.onevision import LlavaOnevision2ForConditionalGeneration
from ov2_core.model.patches import normalise
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.train.config import TrainConfig
from ov2_core.train.distributed import World, joined
from ov2_core.train.feed import StepFeed
from ov2_core.train.flops import micro_batch_flops
from ov2_core.train.memory import MemoryFloor, memory_floor
from ov2_core.train.optimizer import freeze, make_optimizer, set_learning_rates
from ov2_core.train.pack_inputs import PackInputs, pack_inputs
from ov2_core.train.step import Guard, run_step
from ov2_core.train.train import PEAK_SHAPES
from ov2_core.train.trainable import Trainable, add_lora, make_trainable

Side = Literal["ours", "trainer", "loader"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What both sides train."""

    stage: str
    init: str
    """A preset or a folder."""
    processor: str
    """Folder of the stage's processor."""
    steps: int
    """Timed."""
    warm_up: int
    """Before them."""
    packs: int
    """Different ones, taken in turn."""
    device: str = "cpu"
    num_workers: int = 2
    """Of the loader."""
    threads: int | None = None
    """Of torch, on a CPU."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warm_up < 1 or self.packs < 1:
            raise ValueError(f"steps, warm_up and packs must be >= 1, got {self.steps}, {self.warm_up}, {self.packs}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTiming:
    """One side."""

    seconds: tuple[float, ...]
    """Of each timed step, one end to the next."""
    cpu_seconds: tuple[float, ...]
    """Of this process, over the same spans: what a CPU that others use too leaves to be compared."""
    wait_seconds: tuple[float, ...]
    """For data, within them."""
    losses: tuple[float, ...]
    """Of all steps, the warm-up included."""
    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    patches: tuple[int, ...]
    flops: tuple[int, ...]
    """Of each timed step."""
    peak_flops: float
    """Best rate of a matrix product before and after."""
    memory_bytes: int | None
    """Most beyond what was held before the model was made."""
    floor: MemoryFloor


@dataclass(frozen=True, slots=True)
class _Moment:
    wall: float
    cpu: float


def _now() -> _Moment:
    return _Moment(time.perf_counter(), time.process_time())


def measure_training(side: Side, work: Workload, config: TrainConfig) -> TrainTiming:
    """Trains warm_up + steps steps.

    Raises:
        ValueError: a workload that does not fit together.
    """
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    with joined(work.device) as world:
        processor = open_processor(work.init, tokenizer=work.processor)
        batches = _read(work, config, processor)
        packs = [pack_inputs(batch) for batch in batches]
        dtype = _compute_dtype(config, world)
        peak = measure_peak(world.device, dtype, shapes=PEAK_SHAPES[world.device.type])
        held = reset_memory(world.device)
        model = _open(work, processor, world)
        if side == "trainer":
            ends, losses = _run_trainer(model, _plain(batches), config, work, world, dtype)
            waits = [0.0] * len(ends)
        else:
            ends, waits, losses = _run_ours(
                model, packs, config, work, world, dtype, processor, from_loader=side == "loader"
            )
        most = most_memory(world.device)
        peak = max(peak, measure_peak(world.device, dtype, shapes=PEAK_SHAPES[world.device.type]))
        steps = _steps(packs, config, world)
        taken = list(itertools.islice(steps, len(ends)))[work.warm_up :]
        return TrainTiming(
            seconds=tuple(b.wall - a.wall for a, b in itertools.pairwise(ends[work.warm_up - 1 :])),
            cpu_seconds=tuple(b.cpu - a.cpu for a, b in itertools.pairwise(ends[work.warm_up - 1 :])),
            wait_seconds=tuple(waits[work.warm_up :]),
            losses=tuple(losses),
            tokens=tuple(sum(one.num_tokens for one in step) for step in taken),
            targets=tuple(sum(one.num_targets for one in step) for step in taken),
            patches=tuple(sum(one.num_patches for one in step) for step in taken),
            flops=tuple(sum(micro_batch_flops(model.config, config, one).total for one in step) for step in taken),
            peak_flops=peak,
            memory_bytes=None if held is None or most is None else most - held,
            floor=memory_floor(
                model.config,
                config,
                world_size=world.size,
                tokens=max(one.num_tokens for one in packs),
                patches=max(one.num_patches for one in packs),
                targets=max(one.num_targets for one in packs),
                compute_dtype=dtype,
            ),
        )


def _run_ours(
    model: LlavaOnevision2ForConditionalGeneration,
    packs: Sequence[PackInputs],
    config: TrainConfig,
    work: Workload,
    world: World,
    dtype: torch.dtype,
    processor: LlavaOnevision2Processor,
    *,
    from_loader: bool,
) -> tuple[list[_Moment], list[float], list[float]]:
    """(ends, waits, losses) of all steps."""
    mesh = world.mesh() if dtype != torch.float32 or world.size > 1 else None
    made = make_trainable(
        model,
        config,
        device=world.device,
        mesh=mesh,
        compute_dtype=dtype,
        pixel_mean=processor.config.pixel_mean,
        pixel_std=processor.config.pixel_std,
    )
    optimizer, guard = make_optimizer(made, config), Guard(config.guard)
    ends, waits, losses = list[_Moment](), list[float](), list[float]()

    def step(micro_batches: Sequence[PackInputs], wait: float) -> None:
        losses.append(_one_step(made, optimizer, micro_batches, config, work, world, guard, len(ends)))
        waits.append(wait)
        ends.append(_now())

    if not from_loader:
        for micro_batches in itertools.islice(_steps(packs, config, world), work.warm_up + work.steps):
            step(micro_batches, 0.0)
        return ends, waits, losses
    loader = _loader(work, config, processor, num_workers=work.num_workers)
    with StepFeed(loader, accumulation=config.accumulation(world.size), pin=world.device.type == "cuda") as feed:
        for _ in range(work.warm_up + work.steps):
            batches = next(feed)
            step(batches.micro_batches, batches.wait_seconds)
    return ends, waits, losses


def _one_step(
    made: Trainable,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[PackInputs],
    config: TrainConfig,
    work: Workload,
    world: World,
    guard: Guard,
    number: int,
) -> float:
    set_learning_rates(optimizer, config, number, num_steps=work.warm_up + work.steps)
    return run_step(
        made,
        optimizer,
        micro_batches,
        world=world,
        guard=guard,
        sources=["bench"],
        clip_norm=config.clip_norm,
        num_packs=len(micro_batches) * config.micro_batch,
    ).loss


def _run_trainer(
    model: LlavaOnevision2ForConditionalGeneration,
    batches: Sequence[dict[str, Tensor]],
    config: TrainConfig,
    work: Workload,
    world: World,
    dtype: torch.dtype,
) -> tuple[list[_Moment], list[float]]:
    """(ends, losses) of all steps."""
    import transformers

    if config.lora.rank:
        add_lora(model, config.lora)
    freeze(model, config)
    ends: list[_Moment] = []
    losses: list[Tensor] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            ends.append(_now())

    class Trainer(transformers.Trainer):
        def training_step(self, *inputs: Any, **named: Any) -> Tensor:
            loss: Tensor = super().training_step(*inputs, **named)
            losses.append(loss)
            return loss

    num_steps, accumulation = work.warm_up + work.steps, config.accumulation(world.size)
    turns = list(itertools.islice(itertools.cycle(batches), num_steps * accumulation))
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=accumulation,
            learning_rate=config.language.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            adam_epsilon=config.epsilon,
            max_grad_norm=config.clip_norm,
            optim="adamw_torch_fused",
            gradient_checkpointing=config.activation_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if config.activation_checkpointing else None,
            bf16=dtype == torch.bfloat16,
            use_cpu=world.device.type == "cpu",
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=world.device.type == "cuda",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=turns, data_collator=lambda rows: rows[0], callbacks=[Clock()]
        )
        for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
            trainer.remove_callback(callback)
        _take_in_order(trainer)
        trainer.train()
    sums = [float(loss) for loss in losses]  # each divided by the accumulation already
    return ends, [sum(sums[at : at + accumulation]) for at in range(0, len(sums), accumulation)]


def _take_in_order(trainer: Any) -> None:
    """The Trainer shuffles; packs must come in the order that the other side takes them in."""
    trainer._get_train_sampler = lambda *_, **__: torch.utils.data.SequentialSampler(trainer.train_dataset)


def _steps(packs: Sequence[PackInputs], config: TrainConfig, world: World) -> Iterator[tuple[PackInputs, ...]]:
    """Micro-batches of one step after the other, without end."""
    turns, accumulation = itertools.cycle(packs), config.accumulation(world.size)
    while True:
        yield tuple(itertools.islice(turns, accumulation))


def _read(work: Workload, config: TrainConfig, processor: LlavaOnevision2Processor) -> list[PackedBatch]:
    with _loader(work, config, processor, num_workers=0) as loader:
        return list(itertools.islice(loader, max(1, work.packs // config.micro_batch)))


def _loader(
    work: Workload, config: TrainConfig, processor: LlavaOnevision2Processor, *, num_workers: int
) -> StageLoader:
    return StageLoader(
        work.stage,
        batch_size=config.micro_batch,
        num_workers=num_workers,
        processor=processor,
        pixel_dtype=torch.uint8,
        mixed_blocks=0,
    )


def _plain(batches: Sequence[PackedBatch]) -> list[dict[str, Tensor]]:
    """What the model itself takes, pixels normalised."""
    made = []
    for batch in batches:
        inputs = batch.model_inputs()
        if batch.pixel_values is not None:
            inputs["pixel_values"] = normalise(batch.pixel_values)
        made.append(inputs)
    return made


def _open(work: Workload, processor: LlavaOnevision2Processor, world: World) -> LlavaOnevision2ForConditionalGeneration:
    """In float32; on CUDA a preset is made there, for random weights of billions take minutes on a CPU."""
    if world.device.type == "cpu" or not is_preset(work.init):
        return open_model(work.init, processor, device=world.device)
    torch.manual_seed(0)
    with world.device:
        model = LlavaOnevision2ForConditionalGeneration(preset_config(work.init, processor))
    model.train()
    return model


def _compute_dtype(config: TrainConfig, world: World) -> torch.dtype:
    bf16 = config.precision == "bf16" or (config.precision == "auto" and world.device.type == "cuda")
    return torch.bfloat16 if bf16 else torch.float32
