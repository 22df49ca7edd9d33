"""The stage builder as a process that is killed for real, at every write and between them; the same call then leaves the bytes
of an undisturbed build, and nothing else."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("torch")

from feature_runs import INLINE

from jobs.recipes import stage
from ov2_core.data import chunks
from ov2_core.data.stage_config import with_settings
from ov2_core.data.verify_stage import verify_stage
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from pipelines import build_curriculum as builder
from pipelines.build_curriculum import CurriculumOptions, build_curriculum

PROCESSES = multiprocessing.get_context("forkserver")  # pytest's own process has threads: no fork of it
PROCESSES.set_forkserver_preload(
    ["feature_runs", "jobs.recipes", "pipelines.materialize_stage", "ov2_core.data.verify_stage"]
)

SETTINGS = ["sequence_length=1400", "packs_per_block=2"]
SHARD_BYTES = 60_000
SOURCES = """
sources:
  - {name: spatial, importer: token-shards, path: run, count: 2}
  - {name: finevision, path: stills.parquet, count: 14}
  - {name: captions-10min-codec, importer: manifest, path: captions.jsonl, shards: run, count: 3}
"""


@pytest.fixture(scope="module")
def toy(token_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sources.yaml, model/; 18 rows of stills, of which 15 fit; five captions, of which three are bound to a clip."""
    folder = tmp_path_factory.mktemp("toy")
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    (folder / "run").symlink_to(token_run)
    captions = [{"video": f"clip-{i}.mp4", "id": f"clip-{i}", "caption": f"Canary {i}."} for i in range(3)]
    captions += [{"video": f"nowhere-{i}.mp4", "id": f"nowhere-{i}", "caption": "?"} for i in range(2)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    rows = []
    for i in range(18):
        picture = io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 256, (56, 84, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture, format="PNG")
        answer = "too long " * 200 if i % 6 == 5 else f"{i} " * (20 + 9 * i)
        texts = [{"user": f"Say {i}.", "assistant": answer}]
        rows.append({"images": [{"bytes": picture.getvalue(), "path": None}], "texts": texts, "source": "toy"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "stills.parquet")
    (folder / "sources.yaml").write_text(SOURCES)
    return folder


def build(toy: str, out: str, failpoint: str = "", *, small_chunks: bool = True) -> None:
    """A build in this process; in chunks of four, and the draw without spares, so that it takes rounds."""
    os.environ["OV2_FAILPOINT"] = failpoint
    if small_chunks:
        chunks.CHUNK_RECORDS, builder.SPARE_RECORDS, builder.SPARE_SHARE = 4, 0, 0.0
    options = CurriculumOptions(
        sources=f"{toy}/sources.yaml", model=f"{toy}/model", materialize=True, shard_bytes=SHARD_BYTES
    )
    build_curriculum(Store(out), with_settings(stage("stage4"), SETTINGS), options, INLINE)


def build_apart(
    toy: Path, out: Path, failpoint: str = "", *, kill_after_seconds: float | None = None, **how: Any
) -> int | None:
    """Exit code of a process that builds; negative: the signal that ended it."""
    process = PROCESSES.Process(target=build, args=(str(toy), str(out), failpoint), kwargs=how)
    process.start()
    if kill_after_seconds is not None:
        process.join(kill_after_seconds)
        process.kill()
    process.join(timeout=120)
    return process.exitcode


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file there is, hidden ones too; of run.json and the commits without times, places and memory."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "run.json" or path.parent.name == "commits":
            told = json.loads(data)
            for name in ("created_unix_seconds", "started_unix_seconds", "finished_unix_seconds", "attempt"):
                told.pop(name, None)
            for sample in told.get("samples", []):
                del sample["cpu_seconds"], sample["peak_rss_bytes"]
            data = json.dumps(told).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def check(toy: Path, out: Path, whole: dict[str, str]) -> None:
    assert files_of(out) == whole
    assert sorted(path.name for path in out.iterdir() if path.name not in {*whole, "attempts"}) == FOLDERS
    assert not (out / "attempts").exists() or not list((out / "attempts").iterdir())
    processor = LlavaOnevision2Processor.from_pretrained(toy / "model")
    found = verify_stage(Store(out), processor=processor)
    assert found.errors == []
    assert found.num_samples == 19


FOLDERS = [".nv-meta", "commits", "missing", "packs", "shards", "stills"]


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an undisturbed build."""
    out = tmp_path_factory.mktemp("whole") / "stage"
    assert build_apart(toy, out) == 0
    files = files_of(out)
    assert sum(name.startswith("stills/") for name in files) >= 2
    assert sum(name.startswith("shards/") and name.endswith(".tar") for name in files) >= 2
    assert "missing/captions-10min-codec.jsonl" in files
    check(toy, out, files)
    return files


BUILDER = (
    "mid_chunk:3",
    "after_chunk",
    "after_chunk:3",
    "mid_packs",
    "after_packs",
    "mid_materialize:3",
    "before_stage_json",
)
SHARDS = (
    "after_tar",
    "after_upload",
    "before_commit",
    "after_commit",
    "before_publish",
    "after_sidecar",
    "before_cleanup",
)
ENDS = ("mid_tar:2", "after_publish:2", "before_index", "mid_index", "after_index", "mid_cleanup", "mid_cleanup:3")


@pytest.mark.parametrize("points", [BUILDER, SHARDS, ENDS])
def test_a_builder_killed_at_failpoints_one_after_the_other_is_mended_by_the_same_call(
    toy: Path, tmp_path: Path, whole: dict[str, str], points: tuple[str, ...]
) -> None:
    out = tmp_path / "stage"
    for point in points:
        assert build_apart(toy, out, point) == -signal.SIGKILL, point
        assert (out / "stage.json").exists() is point.startswith("mid_cleanup")
    assert build_apart(toy, out) == 0
    check(toy, out, whole)


def test_a_builder_killed_in_every_write_again_and_again_gets_there(
    toy: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    """The n-th call dies in its n-th write, at the last moment at which the file is not there yet."""
    out = tmp_path / "stage"
    num_kills = 0
    while (exit_code := build_apart(toy, out, f"mid_write:{num_kills + 1}")) == -signal.SIGKILL:
        num_kills += 1
    assert exit_code == 0
    assert num_kills >= 10
    check(toy, out, whole)


def test_a_builder_killed_at_any_moment_is_mended_by_the_same_call(
    toy: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    rng = random.Random(0)
    out = tmp_path / "stage"
    for _ in range(6):
        if build_apart(toy, out, kill_after_seconds=rng.uniform(0.02, 1.2)) == 0:
            break
    assert build_apart(toy, out) == 0
    check(toy, out, whole)


def test_a_command_that_is_interrupted_or_terminated_goes_on(toy: Path, tmp_path: Path) -> None:
    assert build_apart(toy, tmp_path / "whole", small_chunks=False) == 0
    out = tmp_path / "stage"
    command = [
        *(sys.executable, "-m", "jobs.cli", "curriculum", "--recipe", "stage4", "--sources", f"{toy}/sources.yaml"),
        *("--model", f"{toy}/model", "--out", str(out), "--materialize", "--shard-bytes", str(SHARD_BYTES)),
        *("--set", SETTINGS[0], "--set", SETTINGS[1], "--workers", "0", "--progress", "off"),
    ]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for number, there in ((signal.SIGTERM, "run.json"), (signal.SIGINT, "packs")):
        process = start()
        while not (out / there).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "the same command goes on" in error
        assert not (out / "stage.json").exists()
    last = start()
    said, error = last.communicate(timeout=120)
    assert last.returncode == 0, error
    assert "19 samples" in said
    check(toy, out, files_of(tmp_path / "whole"))
