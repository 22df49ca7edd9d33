"""Checkpoints: copied before the next step, whole or not at all, the same on any number of ranks, read without running anything."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import checkpoint_ranks
import torch
from checkpoint_ranks import contents, make, train_step
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from ov2_core.train.checkpoint import STATE, Checkpointer, find_checkpoint, find_checkpoints
from ov2_core.train.checkpoint_reader import fill, read_table, tensor_shapes
from ov2_core.train.distributed import World, joined

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with joined("cpu") as world:
        yield world


def state(step: int, **fields: Any) -> dict[str, Any]:
    return {"step": step, "world_size": 1, **fields}


def save_one(folder: Path, world: World, *, seed: int = 1, step: int = 1) -> dict[str, list[float]]:
    net, optimizer = make(seed=seed, shard=False)
    train_step(net, optimizer)
    checkpoints = Checkpointer(folder, world, keep_last=2)
    checkpoints.save(net, optimizer, state(step))
    checkpoints.wait()
    return contents(net, optimizer)


def test_steps_taken_while_it_is_written_do_not_enter(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    write_data = FileSystemWriter.write_data

    def held_back(*arguments: Any, **options: Any) -> Any:
        assert released.wait(30)
        return write_data(*arguments, **options)

    monkeypatch.setattr(FileSystemWriter, "write_data", held_back)
    net, optimizer = make(seed=1, shard=False)
    train_step(net, optimizer)
    saved = contents(net, optimizer)
    checkpoints = Checkpointer(tmp_path, world, keep_last=2)
    checkpoints.save(net, optimizer, state(1))
    draws = torch.rand(3)
    for _ in range(3):
        train_step(net, optimizer)
    assert not find_checkpoints(tmp_path)
    released.set()
    checkpoints.wait()
    assert contents(net, optimizer) != saved
    again, its_optimizer = make(seed=2, shard=False)
    checkpoints.restore(find_checkpoint(tmp_path), again, its_optimizer)
    assert contents(again, its_optimizer) == saved
    assert torch.equal(torch.rand(3), draws)


def test_it_stands_as_soon_as_it_is_written_not_at_the_next_save(tmp_path: Path, world: World) -> None:
    net, optimizer = make(seed=1, shard=False)
    train_step(net, optimizer)
    checkpoints = Checkpointer(tmp_path, world, keep_last=2)
    checkpoints.save(net, optimizer, state(1))
    assert checkpoints._committed is not None
    checkpoints._committed.result(timeout=30)
    assert [one.step for one in find_checkpoints(tmp_path)] == [1]


def test_a_restored_run_takes_the_same_next_steps(tmp_path: Path, world: World) -> None:
    net, optimizer = make(seed=1, shard=False)
    train_step(net, optimizer)
    checkpoints = Checkpointer(tmp_path, world, keep_last=2)
    checkpoints.save(net, optimizer, state(1))
    checkpoints.wait()
    again, its_optimizer = make(seed=2, shard=False)
    checkpoints.restore(find_checkpoint(tmp_path), again, its_optimizer)
    for _ in range(3):
        train_step(net, optimizer)
        train_step(again, its_optimizer)
    assert contents(again, its_optimizer) == contents(net, optimizer)


def test_two_ranks_save_what_one_restores_and_the_other_way_round(tmp_path: Path, world: World) -> None:
    saved_by_one = save_one(tmp_path / "one", world)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, checkpoint_ranks.__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads((tmp_path / "report.json").read_text())

    assert first["saved"] == second["saved"] != saved_by_one
    net, optimizer = make(seed=2, shard=False)
    Checkpointer(tmp_path / "two", world, keep_last=2).restore(find_checkpoint(tmp_path / "two"), net, optimizer)
    assert contents(net, optimizer) == first["saved"]

    for rank in (first, second):
        assert rank["restored_from_one"] == saved_by_one
        assert rank["restored"] == rank["saved"]
        assert rank["draw_after_restore"] == rank["draw_after_save"]
    assert first["draw_after_save"] != second["draw_after_save"]


def test_what_a_kill_left_is_no_checkpoint_and_is_cleared(tmp_path: Path, world: World) -> None:
    save_one(tmp_path, world)
    for leftover, file in (("step-00000002", "__0_0.distcp"), ("step-00000003", STATE + ".part")):
        (tmp_path / "checkpoints" / leftover).mkdir()
        (tmp_path / "checkpoints" / leftover / file).write_text("{")
    assert find_checkpoint(tmp_path).step == 1
    Checkpointer(tmp_path, world, keep_last=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_last_and_the_best_are_kept(tmp_path: Path, world: World) -> None:
    net, optimizer = make(seed=1, shard=False)
    train_step(net, optimizer)
    checkpoints = Checkpointer(tmp_path, world, keep_last=2)
    for step, loss in enumerate([3.0, 1.0, None, 1.0, 2.0, None], start=1):
        checkpoints.save(net, optimizer, state(step, validation_loss=loss))
    checkpoints.wait()
    assert [one.step for one in find_checkpoints(tmp_path)] == [2, 5, 6]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert find_checkpoint(tmp_path).step == 6
    assert find_checkpoint(tmp_path, best=True).step == 2
    assert find_checkpoint(tmp_path, step=5).step == 5
    with pytest.raises(ValueError, match=r"no checkpoint of step 4; steps there: 2, 5, 6"):
        find_checkpoint(tmp_path, step=4)


def test_none_and_none_validated_are_said_so(tmp_path: Path, world: World) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint; steps there: none"):
        find_checkpoint(tmp_path)
    save_one(tmp_path, world)
    with pytest.raises(ValueError, match=r"no checkpoint of .* has a validation loss; train with eval_every"):
        find_checkpoint(tmp_path, best=True)


def test_a_full_disk_ends_training_at_the_next_checkpoint(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    net, optimizer = make(seed=1, shard=False)
    train_step(net, optimizer)
    checkpoints = Checkpointer(tmp_path, world, keep_last=2)
    checkpoints.save(net, optimizer, state(1))
    checkpoints.wait()
    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    checkpoints.save(net, optimizer, state(2))
    with pytest.raises(RuntimeError, match=r"step-00000002 cannot be written: OSError: .*No space left on device$"):
        checkpoints.save(net, optimizer, state(3))
    assert find_checkpoint(tmp_path).step == 1


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path, world: World) -> None:
    save_one(tmp_path, world)
    path = find_checkpoint(tmp_path).path
    assert tensor_shapes(path)["weights.0.weight"] == (5, 6)
    with pytest.raises(ValueError, match=r"Missing key.*weights\.nothing"):
        fill({"weights.nothing": torch.zeros(2)}, path, alone=True)
    with pytest.raises(ValueError, match=r"[Ss]ize mismatch.*weights\.0\.weight"):
        fill({"weights.0.weight": torch.zeros(2, 2)}, path, alone=True)
    rounded = torch.zeros(5, 6, dtype=torch.bfloat16)
    exact = torch.zeros(5, 6)
    fill({"weights.0.weight": rounded}, path, alone=True)
    fill({"weights.0.weight": exact}, path, alone=True)
    assert torch.equal(rounded, exact.to(torch.bfloat16))


class _Call:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_nothing_of_a_checkpoint_is_executed(tmp_path: Path, world: World) -> None:
    save_one(tmp_path, world)
    path = find_checkpoint(tmp_path).path
    (path / ".metadata").write_bytes(pickle.dumps(_Call(tmp_path / "executed")))
    with pytest.raises(ValueError, match=r"asks for .*mkdir"):
        read_table(path)
    with pytest.raises(ValueError, match=r"asks for .*mkdir"):
        fill({"weights.0.weight": torch.zeros(5, 6)}, path, alone=True)
    assert not (tmp_path / "executed").exists()
    (path / ".metadata").write_bytes(pickle.dumps(Metadata({"weights.x": BytesStorageMetadata()})))
    with pytest.raises(ValueError, match=r"weights\.x is no tensor|asks for .*BytesStorageMetadata"):
        read_table(path)
    for data in (b"", b"no pickle", pickle.dumps({})):
        (path / ".metadata").write_bytes(data)
        with pytest.raises(ValueError, match="no table of a checkpoint"):
            read_table(path)
    (path / ".metadata").unlink()
    with pytest.raises(ValueError, match="is no checkpoint"):
        read_table(path)
