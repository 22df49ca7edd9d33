"""Resumes of the real loader on stages on disk: all ranks, any world size, worker count, batch size, moment of death.

A case is a training that is killed once or twice. Each leg starts all ranks anew from the last checkpoint, reads on, and dies some
steps later, a few ranks further than others; what came after the checkpoint is forgotten, as training forgets it. What was
delivered up to the checkpoints must be the order of a reader with one rank and no workers, and so each pack once an epoch.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from feature_runs import INLINE

from jobs.bench_resume import stage_record
from ov2_core.data.loader import StageLoader
from ov2_core.data.stage import STAGE_JSON, pack_key, write_packs
from ov2_core.storage.files import Store
from pipelines.materialize_stage import materialize
from schemas.stage import StagePack, StageSample
from schemas.video import Message

SIZES = {"one": (1, 4), "few": (6, 2), "odd": (23, 4), "many": (48, 8)}
"""Packs, and packs of a block."""


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages of text: NAME is an index, NAME-shards has shards of its own."""
    folder = tmp_path_factory.mktemp("stages")
    for name, (num_packs, packs_per_block) in SIZES.items():
        for form in ("", "-shards"):
            write_stage(Store(folder / f"{name}{form}"), num_packs, packs_per_block, shards=bool(form))
    return folder


def write_stage(store: Store, num_packs: int, packs_per_block: int, *, shards: bool) -> None:
    turns = [Message(role="user", content="Which?"), Message(role="assistant", content="This.")]
    numbers: dict[str, Any] = {"num_visual_tokens": 0, "num_supervised_tokens": 3}
    packs = [
        StagePack(
            number=i,
            key=pack_key(i),
            num_tokens=9,
            samples=[StageSample(source=0, id=str(i), messages=turns, media=[], num_tokens=9, **numbers)],
        )
        for i in range(num_packs)
    ]
    per_part = 2 * packs_per_block
    written = write_packs(store, packs, list, packs_per_block=packs_per_block, packs_per_part=per_part)
    sizes = {"packs_per_block": packs_per_block, "packs_per_part": per_part}
    record = stage_record(num_packs, 1, digest=written.digest, **sizes)
    if shards:
        record = materialize(store, record, shard_bytes=5 * 36, run_options=INLINE)
    store.write_bytes(STAGE_JSON, record.model_dump_json().encode())


@dataclass(frozen=True)
class Order:
    """What decides the order, beside the stage."""

    seed: int
    mixed_blocks: int
    held_out: int


@dataclass(frozen=True)
class Leg:
    """One life of a training."""

    world: int
    batch: int
    workers: int
    prefetch: int | None
    steps: int
    """To the checkpoint."""
    lost_steps: tuple[int, ...]
    """That some ranks go on before they die."""


@cache
def single_process_order(path: Path, order: Order) -> list[str]:
    """Keys of as many epochs as a case can read, read by one rank without workers."""
    options = {"seed": order.seed, "mixed_blocks": order.mixed_blocks, "held_out": order.held_out}
    loader = StageLoader(path, batch_size=1, num_workers=0, **options)
    num_packs = loader.reading.num_packs
    num_epochs = 7 + -(-3 * 64 // num_packs)
    keys = [batch.keys[0] for _ in range(num_epochs) for batch in loader]
    for start in range(0, len(keys), num_packs):
        assert len(set(keys[start : start + num_packs])) == num_packs
    return keys


orders = st.builds(
    Order, seed=st.sampled_from([0, 7]), mixed_blocks=st.sampled_from([0, 1, 3, 16]), held_out=st.just(0)
)
legs = st.builds(
    Leg,
    world=st.integers(1, 8),
    batch=st.integers(1, 4),
    workers=st.integers(0, 4),
    prefetch=st.sampled_from([None, None, 1, 5]),
    steps=st.integers(0, 9),
    lost_steps=st.lists(st.integers(0, 3), max_size=4).map(tuple),
)
num_cases = 0


@given(
    name=st.sampled_from([*SIZES, "odd", "many"]),
    form=st.sampled_from(["", "-shards"]),
    order=orders,
    hold_out=st.booleans(),
    mode=st.sampled_from(["epochs", "epochs", "endless", "drop_last"]),
    lives=st.lists(legs, min_size=2, max_size=3),
)
@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def _cases(stages: Path, name: str, form: str, order: Order, hold_out: bool, mode: str, lives: list[Leg]) -> None:
    global num_cases
    num_cases += 1
    path = stages / f"{name}{form}"
    if hold_out and SIZES[name][0] >= 6:
        order = Order(order.seed, order.mixed_blocks, 3)
    num_packs = SIZES[name][0] - order.held_out
    expected = single_process_order(path, order)
    read: list[str] = []
    dropped: list[str] = []
    state: dict[str, Any] | None = None
    for number, leg in enumerate(lives):
        last = number == len(lives) - 1
        each = leg.world * leg.batch
        drop_last = mode == "drop_last" and each <= num_packs
        ranks = [
            StageLoader(
                path,
                batch_size=leg.batch,
                rank=rank,
                world_size=leg.world,
                num_workers=leg.workers,
                prefetch_packs=leg.prefetch,
                seed=order.seed,
                mixed_blocks=order.mixed_blocks,
                held_out=order.held_out,
                endless=mode == "endless",
                drop_last=drop_last,
            )
            for rank in range(leg.world)
        ]
        if state is not None:
            for loader in ranks:
                loader.load_state_dict(json.loads(json.dumps(state)))
        iterators = [iter(loader) for loader in ranks]
        num_steps = min(leg.steps, -(-2 * num_packs // each))
        if last:  # on to the end of an epoch at least
            num_steps = max(num_steps, -(-num_packs // each) + 1)
        for _ in range(num_steps):
            batches = [next(iterator, None) for iterator in iterators]
            if batches[0] is None:
                assert batches == [None] * leg.world
                at = len(read) + len(dropped)
                left = -at % num_packs
                assert left < each if drop_last else not left
                dropped += expected[at : at + left]
                if last:
                    break
                iterators = [iter(loader) for loader in ranks]
            else:
                step = [key for batch in batches for key in batch.keys]
                at = len(read) + len(dropped)
                assert step == expected[at : at + len(step)]
                assert mode != "endless" or len(step) == each
                assert max(len(b.keys) for b in batches) - min(len(b.keys) for b in batches) <= 1
                read += step
        states = [loader.state_dict() for loader in ranks]
        assert states == [states[0]] * leg.world
        assert states[0]["cursor"] == len(read) + len(dropped)
        state = states[0]
        for iterator, lost in zip(iterators, leg.lost_steps, strict=False):
            for _ in range(lost):
                next(iterator, None)
        for loader in ranks:
            loader.close()
    assert state is not None
    whole = expected[: state["cursor"]]
    if not dropped:
        assert digest(read) == digest(whole)
    for start in range(0, len(whole) - num_packs + 1, num_packs):  # each pack once an epoch, read or dropped by rule
        here = [key for key in whole[start : start + num_packs] if key not in dropped or key in read]
        assert len(set(here)) == len(here)
    assert sorted(read + dropped) == sorted(whole)


def digest(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def test_a_training_that_is_killed_anywhere_reads_what_an_undisturbed_one_reads(stages: Path) -> None:
    _cases(stages)
    assert num_cases >= 500
