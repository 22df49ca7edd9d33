"""Training recipes alignment, stage1 .. stage4: the published numbers, as far as they are published.

Published: what is trained, learning rates, global batch, weight decay and beta2 of the first four; cosine, warm-up 0.2 %, beta1 .9,
epsilon 1e-5, clipping at 1, one pack a micro-batch, bf16 for all. What is our own choice says so. Sequence lengths are the stage's.
"""

from collections.abc import Callable

from ov2_core.train.config import PartConfig, TrainConfig


def training(name: str) -> TrainConfig:
    """Raises ValueError for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"unknown training recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def alignment() -> TrainConfig:
    """The connector alone, before stage 1."""
    frozen = PartConfig(train=False)
    return TrainConfig(
        name="alignment",
        version=1,
        visual=frozen,
        connector=PartConfig(learning_rate=1e-4, min_learning_rate=1e-6),
        language=frozen,
        global_batch=8,
        weight_decay=0.0,
        beta2=0.99,
    )


def stage1() -> TrainConfig:
    """Mid-training on pairs and short captions: all parts."""
    return whole_model("stage1", learning_rate=1e-5, global_batch=128, weight_decay=0.01, beta2=0.95)


def stage2() -> TrainConfig:
    """Instructions and clips of up to 3 minutes: all parts."""
    return whole_model("stage2", learning_rate=1e-5, global_batch=132, weight_decay=0.0, beta2=0.99)


def stage3() -> TrainConfig:
    """384 frames, 10 to 15 minutes: the numbers published for a 30B variant."""
    return whole_model("stage3", learning_rate=2e-5, global_batch=32, weight_decay=0.0, beta2=0.99)


def stage4() -> TrainConfig:
    """Codec streams, 768 frames, space. Its numbers are not published: ours are stage 3's with half the packs, twice as long."""
    return whole_model("stage4", learning_rate=2e-5, global_batch=16, weight_decay=0.0, beta2=0.99)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "alignment": alignment,
    "stage1": stage1,
    "stage2": stage2,
    "stage3": stage3,
    "stage4": stage4,
}


def whole_model(
    name: str, *, learning_rate: float, global_batch: int, weight_decay: float, beta2: float
) -> TrainConfig:
    """All parts at one learning rate, down to 1e-6."""
    part = PartConfig(learning_rate=learning_rate, min_learning_rate=1e-6)
    return TrainConfig(
        name=name,
        version=1,
        visual=part,
        connector=part,
        language=part,
        global_batch=global_batch,
        weight_decay=weight_decay,
        beta2=beta2,
    )
