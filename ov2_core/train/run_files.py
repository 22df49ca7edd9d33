"""CKPT/run.json: what a training run is, so that a resume is of the same run and exports and lineage find what they need."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ov2_core.train.metrics import METRICS

RUN_JSON = "run.json"
MAY_CHANGE = frozenset(
    {
        "max_steps",
        "schedule_steps",
        "world_size",
        "created_unix_seconds",
        "stage",
        "init",
        "tokenizer",
        "moved",
        "launch",
    }
)
"""Fields that a resume may change (folders may lie elsewhere: digests say what they hold); of `config` see MAY_CHANGE_CONFIG."""
MAY_CHANGE_CONFIG = frozenset(
    {
        "micro_batch",
        "schedule_steps",
        "epochs",
        "save_every",
        "keep_last",
        "eval_every",
        "compile",
        "tensor_parallel",
        "activation_checkpointing",
        "guard",
    }
)


def claim(run: Path, fields: Mapping[str, Any], *, resume: bool) -> None:
    """Writes run.json, or checks that the one there is of the same run.

    Raises:
        ValueError: the folder holds a run and resume is not asked for, or it is another run: each difference is named. One that has
            made no step is no run yet.
    """
    path = run / RUN_JSON
    if path.exists() and (run / METRICS).exists():
        there = read_run(run)
        same_launch = fields.get("launch") not in (None, "none") and fields.get("launch") == there.get("launch")
        check_new(run, resume=resume or same_launch)  # torchrun replaces a node and begins its ranks anew
        differences = list(_differences(there, fields))
        if differences:
            raise ValueError(
                f"{run} is another run:\n  "
                + "\n  ".join(differences)
                + "\nresume with what stands there, or name another folder for --out"
            )
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, fields)


def check_new(run: Path, *, resume: bool) -> None:
    """Raises ValueError where the folder holds a run that has made a step, and resume is not asked for."""
    if not resume and (run / RUN_JSON).exists() and (run / METRICS).exists():
        raise ValueError(f"{run} holds a training run already; add --resume to go on with it, or name another folder")


def read_run(run: Path) -> dict[str, Any]:
    """run.json. Raises ValueError where there is none."""
    try:
        fields: dict[str, Any] = json.loads((run / RUN_JSON).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{run} holds no {RUN_JSON}; give the folder of `ov2 train --out`") from None
    return fields


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """The file whole, and on disk."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        json.dump(dict(fields), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Any:
    may_change = MAY_CHANGE_CONFIG if prefix == "config." else MAY_CHANGE if not prefix else frozenset[str]()
    for name in sorted({*there, *here} - may_change):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {old!r} there, {new!r} here"
