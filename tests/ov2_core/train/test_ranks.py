"""The same packs a step give the same update however they are spread over ranks, accumulation and packs at once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from rank_runs import run

from ov2_core.data.stage import load_stage
from ov2_core.model.create import open_model, open_processor
from ov2_core.storage.files import Store
from ov2_core.train.checkpoint import find_checkpoint
from ov2_core.train.checkpoint_reader import fill
from ov2_core.train.metrics import METRICS, read_lines

RATES = [f"{part}.learning_rate=1e-3" for part in ("visual", "connector", "language")]
RECIPES = {
    "whole": RATES,
    "alignment": [*RATES, "visual.train=false", "language.train=false"],
    "frozen-encoder": [*RATES, "visual.train=false"],
    "language-alone": [*RATES, "visual.train=false", "connector.train=false"],
}
ALONE = [("whole", 1), ("whole", 2), ("whole", 4), *((name, 1) for name in RECIPES if name != "whole")]
"""(recipe, packs at once) on one rank."""
PAIR = [("whole", 1), ("whole", 2), *((name, 1) for name in RECIPES if name != "whole")]
"""On two."""


def name_of(recipe: str, packs: int, ranks: int) -> str:
    return f"{recipe}-{ranks}-ranks-{packs}-packs"


@pytest.fixture(scope="module")
def runs(train_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs over one epoch of 4 packs a step, whose last step has a single pack: one rank of two has none."""
    folder = tmp_path_factory.mktemp("ranks")
    num_packs = load_stage(Store(train_stage)).packing.num_packs
    held_out = (num_packs - 1) % 4
    plans = {
        ranks: [
            {
                "stage": str(train_stage),
                "out": str(folder / name_of(recipe, packs, ranks)),
                "settings": [*RECIPES[recipe], f"micro_batch={packs}", f"held_out_packs={held_out}"],
                "max_steps": None if (recipe, packs) == ("whole", 1) else 1,
            }
            for recipe, packs in cases
        ]
        for ranks, cases in ((1, ALONE), (2, PAIR))
    }
    (folder / "pair.json").write_text(json.dumps(plans[2]))
    pair = start_ranks(folder / "pair.json", num=2)
    try:
        for one in plans[1]:
            run(**one)
        for process in pair:
            said, _ = process.communicate(timeout=200)
            assert process.returncode == 0, said[-4000:]
    finally:
        for process in pair:
            process.kill()
    return folder


def start_ranks(plan: Path, *, num: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).resolve()
    world = {"WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(here.parents[3]), str(here.parent)])
    return [
        subprocess.Popen(
            [sys.executable, str(here.with_name("rank_runs.py")), str(plan)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num)
    ]


def steps_of(run: Path) -> list[dict]:
    return list(read_lines(run / METRICS))


def weights_of(run: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(before the first step, after a step)."""
    model = open_model("tiny", open_processor("tiny"), seed=0)
    weights = model.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    path = find_checkpoint(run, step=step).path
    fill({f"weights.{name}": tensor for name, tensor in weights.items()}, path, alone=True)
    return before, weights


SPREADS = [
    (name_of("whole", packs, ranks), name_of("whole", 1, 1)) for packs, ranks in ((2, 1), (4, 1), (1, 2), (2, 2))
]
SPREADS += [(name_of(recipe, 1, 2), name_of(recipe, 1, 1)) for recipe in RECIPES if recipe != "whole"]


@pytest.mark.parametrize(("spread", "reference"), SPREADS, ids=[spread for spread, _ in SPREADS])
def test_an_update_does_not_depend_on_how_its_packs_are_spread(runs, spread, reference):
    before, want = weights_of(runs / reference, 1)
    _, got = weights_of(runs / spread, 1)
    for name, start in before.items():
        error, update = (got[name] - want[name]).norm(), (want[name] - start).norm()
        rounding = 2**-24 * start.norm()  # of a float32 weight, which may be a thousand times its update
        assert error <= 1e-5 * update + rounding, f"{name}: {error / update:.1e}"


@pytest.mark.parametrize(("spread", "reference"), SPREADS, ids=[spread for spread, _ in SPREADS])
def test_loss_curves_are_the_same(runs, spread, reference):
    got = steps_of(runs / spread)
    want = steps_of(runs / reference)[: len(got)]
    assert got
    for name in ("step", "tokens", "target_tokens", "patches", "packs", "read_bytes"):
        assert [step[name] for step in got] == [step[name] for step in want], name
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in got] == pytest.approx([step[name] for step in want], rel=1e-4), name
    for a, b in zip(got, want, strict=True):
        assert a["loss_by_source"] == pytest.approx(b["loss_by_source"], rel=1e-4)
        assert a["loss_by_input"] == pytest.approx(b["loss_by_input"], rel=1e-4)
        assert a["learning_rate"] == b["learning_rate"]


def test_the_epoch_has_what_makes_it_hard(runs):
    """A last step whose only pack leaves a rank without any, packs with pictures beside packs of text, every kind of input."""
    steps = steps_of(runs / name_of("whole", 1, 1))
    assert [step["packs"] for step in steps[:-1]] == [4] * (len(steps) - 1)
    assert steps[-1]["packs"] == 1
    assert steps[0]["patches"] > 0, "the first update must be of all parts"
    assert len(steps) >= 4
    assert {kind for step in steps for kind in step["loss_by_input"]} == {"text", "image", "frames", "codec"}
    assert abs(steps[-1]["loss"] - steps[0]["loss"]) > 0.1, "the curve must move, or its equality says nothing"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "whole"])
def test_frozen_parts_stay_as_they_were(runs, recipe, ranks):
    before, after = weights_of(runs / name_of(recipe, 1, ranks), 1)
    for name, start in before.items():
        part = "connector" if ".merger." in name else "visual" if ".visual." in name else "language"
        trained = f"{part}.train=false" not in RECIPES[recipe]
        assert torch.equal(after[name], start) != trained, name
