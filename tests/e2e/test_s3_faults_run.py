"""The main job through the fault proxy: sources, manifest and run on a store that fails now and then, or for good for a while."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import ANYWHERE, FaultProxy, S3Request, mixed

pytestmark = [pytest.mark.s3, pytest.mark.slow]
NUM_CLIPS = 4


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


def ov2(proxy: FaultProxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    """botocore does not try again by itself: what is tested is what we and s3fs do, and in seconds."""
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_MAX_ATTEMPTS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.fixture
def manifest(bucket: str, clip_folder: Path, request: pytest.FixtureRequest) -> str:
    import s3fs

    fs, folder = s3fs.S3FileSystem(), f"{bucket}/{hashlib.md5(request.node.name.encode()).hexdigest()[:8]}"
    rows: list[dict[str, Any]] = []
    for seed in range(NUM_CLIPS):
        fs.put(str(clip_folder / f"clip_{seed}.mp4"), f"{folder}/clip_{seed}.mp4")
        rows.append({"video": f"clip_{seed}.mp4", "id": f"v{seed}", "caption": "A square."})
    rows.append({"video": "gone.mp4", "id": "gone"})
    fs.pipe(f"{folder}/manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return f"{folder}/manifest.jsonl"


def shards(proxy: FaultProxy, root: str) -> dict[str, str]:
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    return {path.rpartition("/")[2]: hashlib.sha256(fs.cat(path)).hexdigest() for path in fs.find(f"{root}/shards")}


def test_run_through_faults_has_the_bytes_of_one_without(manifest: str, proxy: FaultProxy) -> None:
    folder = manifest.rpartition("/")[0]
    command = ["tokenize", "--manifest", manifest, "--recipe", "uniform-4", "--set", "shards.max_samples=2"]
    calm = ov2(proxy, *command, "--workers", "0", "--out", f"{folder}/calm")
    assert calm.returncode == 0, calm.stderr
    proxy.schedule = mixed(5, ANYWHERE, share=0.5)
    done = ov2(proxy, *command, "--workers", "2", "--out", f"{folder}/harmed")
    assert done.returncode == 0, done.stderr
    assert len(proxy.injected) > 20
    assert shards(proxy, f"{folder}/harmed") == shards(proxy, f"{folder}/calm")
    report = json.loads(ov2(proxy, "verify", f"{folder}/harmed", "--json").stdout)
    assert (report["ok"], report["committed"], report["quarantined_by_reason"]) == (
        True,
        NUM_CLIPS,
        {"source_missing": 1},
    )


def test_run_on_a_storage_that_goes_down_stops_with_its_name_and_goes_on(manifest: str, proxy: FaultProxy) -> None:
    out = f"{manifest.rpartition('/')[0]}/run"
    command = ["tokenize", "--manifest", manifest, "--recipe", "uniform-4", "--set", "shards.max_samples=2"]
    command += ["--workers", "0", "--out", out]

    def down_for_one_commit(r: S3Request) -> str | None:
        return "503" if r.key.endswith("commits/shard-000001.json") else None

    proxy.schedule = down_for_one_commit
    stopped = ov2(proxy, *command)
    assert stopped.returncode == 4, stopped.stderr
    assert f"{out}/commits/shard-000001.json: the storage still fails" in stopped.stderr
    proxy.schedule = lambda request: "503"
    assert ov2(proxy, *command).returncode == 4
    proxy.schedule = lambda request: None
    done = ov2(proxy, *command)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 shards stood already" in done.stdout
    assert ov2(proxy, "verify", out).returncode == 0
