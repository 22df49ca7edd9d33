"""What a run is: resumes of the same run go on, others are refused with each difference; one process at a time."""

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from torch._C._distributed_c10d import TCPStore

from jobs.train_recipes import training
from ov2_core.config import with_settings
from ov2_core.train.checkpoint import find_checkpoint
from ov2_core.train.rendezvous import PLACE, generation_store
from ov2_core.train.run_lock import LOCK, locked
from ov2_core.train.train import TrainOptions, TrainResult, train

PROCESSES = multiprocessing.get_context("forkserver")


def run(stage: Path, out: Path, *settings: str, recipe: str = "stage1", **options: Any) -> TrainResult:
    config = with_settings(training(recipe), ["global_batch=4", *settings])
    fields = {"max_steps": 1, "num_workers": 0, "device": "cpu", **options}
    return train(config, TrainOptions(stage=str(stage), init="tiny", out=str(out), **fields))


@pytest.fixture(scope="module")
def begun(train_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has made a step."""
    out = tmp_path_factory.mktemp("begun") / "run"
    run(train_stage, out)
    return out


def test_a_folder_with_a_run_asks_for_resume(train_stage: Path, begun: Path) -> None:
    with pytest.raises(ValueError, match="holds a training run already; add --resume"):
        run(train_stage, begun)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (["clip_norm=0.5"], {}, r"config\.clip_norm: 1\.0 there, 0\.5 here"),
        (["language.learning_rate=0.1"], {}, r"config\.language\.learning_rate: 1e-05 there, 0\.1 here"),
        ([], {"recipe": "stage2"}, "recipe: 'stage1' there, 'stage2' here"),
        ([], {"seed": 1}, "\n  seed: 0 there, 1 here"),
        (["held_out_packs=2"], {}, r"order\.num_packs: 18 there, 16 here"),
    ],
)
def test_another_run_is_refused_and_named(
    train_stage: Path, begun: Path, settings: list[str], options: dict[str, Any], message: str
) -> None:
    before = (begun / "run.json").read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        run(train_stage, begun, *settings, resume=True, **options)
    assert "resume with what stands there, or name another folder" in str(caught.value)
    assert (begun / "run.json").read_bytes() == before


def test_another_stage_is_refused(train_stage: Path, begun: Path, tmp_path: Path) -> None:
    fields = json.loads((begun / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**fields, "stage_digest": "0" * 64}))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"stage_digest: '0{64}' there"):
        run(train_stage, tmp_path, resume=True)


def test_sizes_and_lengths_may_change_on_resume(train_stage: Path, tmp_path: Path) -> None:
    run(train_stage, tmp_path / "run")
    changed = ["micro_batch=2", "save_every=1", "keep_last=1", "activation_checkpointing=false", "epochs=3"]
    assert run(train_stage, tmp_path / "run", *changed, resume=True, max_steps=3).step == 3
    assert find_checkpoint(tmp_path / "run").step == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert run(train_stage, tmp_path / "run", *changed, resume=True, max_steps=3).loss is None  # nothing left to do


def test_a_run_that_made_no_step_is_begun_anew(train_stage: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"seed": 7}))
    assert run(train_stage, tmp_path).step == 1


def test_an_url_is_no_folder_for_a_run(train_stage: Path) -> None:
    with pytest.raises(ValueError, match=r"--out must be a folder on a file system .* got s3://bucket/run"):
        TrainOptions(stage=str(train_stage), init="tiny", out="s3://bucket/run")


def test_ranks_begun_again_by_the_same_torchrun_need_no_resume(
    train_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(train_stage, tmp_path / "by-hand")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(train_stage, tmp_path / "by-hand", max_steps=2).step == 2
    with pytest.raises(ValueError, match="is another run"):
        run(train_stage, tmp_path / "by-hand", seed=1)


def _hold(folder: Path, ready: Any) -> None:
    with locked(folder):
        ready.set()
        signal.pause()


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    ready = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(60)
    try:
        with (
            pytest.raises(ValueError, match=rf"another process trains in .*\"process\": {holder.pid}"),
            locked(tmp_path, wait_seconds=0.2),
        ):
            pytest.fail("two hold it")
        threading.Timer(0.3, holder.kill).start()
        with locked(tmp_path, wait_seconds=30):  # gone with its process
            assert f'"process": {holder.pid}' not in (tmp_path / LOCK).read_text()
    finally:
        holder.kill()
        holder.join()
    with locked(tmp_path), locked(tmp_path / "other"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_ranks_end_with_the_launcher(tmp_path: Path) -> None:
    child = f"""
import pathlib, time
from ov2_core.train.run_lock import end_with_parent
end_with_parent()
beats = pathlib.Path({str(tmp_path / "beats")!r})
while True:
    beats.write_text(str(time.time()))
    time.sleep(0.01)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    launcher = subprocess.Popen([sys.executable, "-c", parent], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    while not (tmp_path / "beats").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    launcher.kill()
    launcher.wait()
    time.sleep(0.2)
    last = (tmp_path / "beats").read_text()
    time.sleep(0.3)
    assert (tmp_path / "beats").read_text() == last


def test_generations_of_ranks_do_not_see_each_others_keys() -> None:
    wait = timedelta(seconds=20)
    torchruns = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    base = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(torchruns.port), "WORLD_SIZE": "2"}
    alive = []
    for generation in range(
        3
    ):  # the first finds nothing, the second a store that still answers, the third one that is gone
        found: list[Any] = []
        second = threading.Thread(
            target=lambda found=found: found.append(generation_store(wait, {**base, "RANK": "1"})), daemon=True
        )
        if generation == 2:
            torchruns.set(PLACE, "1 of-the-dead")
        if generation != 1:
            second.start()
            time.sleep(0.3)
        first = generation_store(wait, {**base, "RANK": "0"})
        if generation == 1:
            second.start()
        second.join(30)
        assert found
        assert not first.check(["address"])
        first.set("address", str(generation))
        assert found[0].get("address").decode() == str(generation)
        alive.append(first)
