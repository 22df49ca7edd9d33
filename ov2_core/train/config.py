"""What a training run is asked to do: frozen dataclasses, validated when made. Published numbers stand in jobs/train_recipes.py."""

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["auto", "bf16", "fp32"]
OnBadStep = Literal["skip", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartConfig:
    """One part of the model: encoder, connector or language model."""

    train: bool = True
    learning_rate: float = 1e-5
    """At the end of the warm-up."""
    min_learning_rate: float = 1e-6
    """At the end of the cosine."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(f"learning rates need 0 <= min_learning_rate <= learning_rate, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank updates of the language model's layers (peft) in place of its weights."""

    rank: int = 0
    """0: none."""
    alpha: int = 32
    """Updates are scaled by alpha / rank."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora.rank must be >= 0 and dropout in [0, 1), got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What happens to a step whose loss or gradient is not finite, or whose gradient is far above the usual."""

    on_not_finite: OnBadStep = "skip"
    """skip: the weights stay as they are, the packs are named. stop: an error that names them."""
    spike_ratio: float = 0.0
    """A gradient norm above so many times the median of the last 64 steps is a spike; 0: no step is."""
    on_spike: OnBadStep = "skip"
    max_in_a_row: int = 5
    """After so many skipped steps in a row the run stops."""

    def __post_init__(self) -> None:
        if self.spike_ratio != 0 and self.spike_ratio <= 1:
            raise ValueError(f"guard.spike_ratio must be 0 or > 1, got {self.spike_ratio}")
        if self.max_in_a_row < 1:
            raise ValueError(f"guard.max_in_a_row must be >= 1, got {self.max_in_a_row}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole training recipe."""

    name: str
    version: int
    """Counts up with every change that trains another model from the same stage."""
    visual: PartConfig = field(default_factory=PartConfig)
    connector: PartConfig = field(default_factory=PartConfig)
    language: PartConfig = field(default_factory=PartConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    global_batch: int = 128
    """Packs of a step, over all ranks and micro-batches."""
    micro_batch: int = 1
    """Packs that go through the model at once on one rank."""
    epochs: int = 1
    schedule_steps: int | None = None
    """Steps of the cosine; None: all epochs, or max_steps where that is more."""
    warmup_share: float = 0.002
    """Of the schedule."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-5
    weight_decay: float = 0.01
    """Of matrices; norms and biases have none."""
    clip_norm: float = 1.0
    """Of the gradient over all parts; 0: not clipped."""
    precision: Precision = "auto"
    """bf16 computes in bfloat16 with float32 weights, sums and optimizer; auto: on CUDA bf16, else fp32."""
    activation_checkpointing: bool = True
    tensor_parallel: int = 1
    """Neighbouring ranks that share every layer of the language model and read the same packs."""
    compile: bool = False
    """torch.compile of every layer."""
    held_out_packs: int = 0
    """Of the stage, left to validation."""
    eval_every: int = 0
    """Steps between validations; 0: none."""
    save_every: int = 200
    """Steps between checkpoints; one more stands at the end."""
    keep_last: int = 2
    """Checkpoints kept, besides the best by validation loss."""

    def __post_init__(self) -> None:
        for name in ("global_batch", "micro_batch", "epochs", "save_every", "keep_last", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise ValueError(f"schedule_steps must be >= 1, got {self.schedule_steps}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be in [0, 1), got {self.warmup_share}")
        if self.clip_norm < 0 or self.weight_decay < 0 or self.epsilon <= 0:
            raise ValueError(f"clip_norm and weight_decay must be >= 0 and epsilon > 0, got {self}")
        if self.eval_every and not self.held_out_packs:
            raise ValueError("eval_every needs held_out_packs >= 1: nothing is left to validate on")
        if not (self.visual.train or self.connector.train or self.language.train):
            raise ValueError("nothing is trained: set visual.train, connector.train or language.train")
        if self.lora.rank and self.tensor_parallel > 1:
            raise ValueError("lora.rank and tensor_parallel > 1 do not go together: set one of them")
        if self.lora.rank and not self.language.train:
            raise ValueError("lora.rank needs language.train: low-rank updates are of the language model")

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of a rank and step.

        Args:
            world_size: ranks that read different packs.

        Raises:
            ValueError: global_batch is no multiple of micro_batch x world_size.
        """
        each = self.micro_batch * world_size
        if self.global_batch % each:
            raise ValueError(
                f"global_batch must be a multiple of micro_batch x ranks = {self.micro_batch} x {world_size}, got "
                f"{self.global_batch}; set one of them"
            )
        return self.global_batch // each
