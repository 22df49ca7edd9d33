"""Alignment and four stages in sequence on toy data, by the commands that a user gives; each starts from the last one's export."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from toy_stages import build_toy_stage, write_datasets
from typer.testing import CliRunner

from jobs.cli import app
from jobs.recipes import STAGES
from ov2_core.data.stage import PackIndex, load_stage
from ov2_core.generate import load
from ov2_core.storage.files import Store

FAST = ["connector.learning_rate=4e-3", "epsilon=1e-8", "activation_checkpointing=false"]
ALL_PARTS = [*FAST, "visual.learning_rate=4e-3", "language.learning_rate=4e-3"]
"""Random weights want larger steps than the recipes take, which start from trained ones."""


def ov2(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_four_stages_in_sequence_each_start_from_the_last_export(tmp_path: Path) -> None:
    data = write_datasets(tmp_path / "data")
    init = "tiny"
    stages = {}
    for name in STAGES:
        (tmp_path / name).mkdir()
        stages[name], _, _ = build_toy_stage(data, tmp_path / name, name)
    for recipe in ("alignment", *STAGES):
        stage = stages.get(recipe, stages["stage1"])
        run, exported = tmp_path / f"run-{recipe}", tmp_path / f"model-{recipe}"
        num_packs = load_stage(Store(stage)).packing.num_packs
        settings = ALL_PARTS if recipe in STAGES else FAST
        overrides = [x for text in [*settings, f"global_batch={num_packs}", "epochs=1000"] for x in ("--set", text)]
        ov2("train", "--stage", str(stage), "--recipe", recipe, "--init", init, "--out", str(run), "--max-steps", "6",
            "--set", "schedule_steps=6", *overrides)  # fmt: skip
        losses = [line["loss"] for line in lines(run / "metrics.jsonl")]
        assert len(losses) == 6
        assert all(map(math.isfinite, losses))
        assert losses[-1] < min(losses[:2]), losses
        random_loss = math.log(512)
        started_as_random = recipe in ("alignment", "stage1")  # alignment trains the connector alone
        assert (losses[0] > random_loss - 0.5) == started_as_random, losses  # what was learned has come along
        check_lineage(run, stage)
        ov2("export", str(run), "--out", str(exported), "--dtype", "float32")
        init = str(exported)
    chat = load(init)
    answer = chat.ask("Which?", video=data / "clips/c0.mp4", budget=8, max_new_tokens=4)
    assert isinstance(answer, str)
    assert ov2("generate", "--model", init, "--video", str(data / "clips/c0.mp4"), "--prompt", "Which?",
               "--max-new-tokens", "4", "--input", "frames", "--budget", "4")  # fmt: skip


def check_lineage(run: Path, stage: Path) -> None:
    """A step of all packs has seen all samples of the stage, each once."""
    record = load_stage(Store(stage))
    in_stage = sorted(
        (record.sources[s.source].name, s.id) for pack in PackIndex(Store(stage), record) for s in pack.samples
    )
    seen = json.loads(ov2("lineage", str(run), "--step", "3", "--json"))
    assert sorted((s["source"], s["id"]) for pack in seen["packs"] for s in pack["samples"]) == in_stage
    uris = [medium["uri"] for pack in seen["packs"] for s in pack["samples"] for medium in s["media"]]
    assert all(uris) or not uris


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
