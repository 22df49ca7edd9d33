"""The main job on an object store: manifest, sources and run at s3://, the same bytes as on local disk."""

import hashlib
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.s3


def ov2(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_run_on_s3_has_the_bytes_of_a_local_run(bucket, clip_folder, tmp_path):
    import s3fs

    fs = s3fs.S3FileSystem()
    rows = []
    for seed in range(3):
        fs.put(str(clip_folder / f"clip_{seed}.mp4"), f"{bucket}/in/clip_{seed}.mp4")
        rows.append({"video": f"{bucket}/in/clip_{seed}.mp4", "id": f"v{seed}", "caption": "A square."})
    rows.append({"video": "gone.mp4", "id": "gone"})
    manifest = "".join(json.dumps(row) + "\n" for row in rows)
    fs.pipe(f"{bucket}/in/manifest.jsonl", manifest.encode())
    command = ["--manifest", f"{bucket}/in/manifest.jsonl", "--recipe", "evidence-4", "--workers", "0"]
    for out in (f"{bucket}/run", str(tmp_path / "run")):
        done = ov2("tokenize", *command, "--out", out)
        assert done.returncode == 0, done.stderr
        assert ov2("verify", out, "--json").returncode == 0
    remote = hashlib.sha256(fs.cat(f"{bucket}/run/shards/shard-000000.tar")).hexdigest()
    local = hashlib.sha256((tmp_path / "run/shards/shard-000000.tar").read_bytes()).hexdigest()
    assert remote == local
    assert fs.find(f"{bucket}/run/attempts") == []
    report = json.loads(ov2("verify", f"{bucket}/run", "--json").stdout)
    assert (report["committed"], report["quarantined_by_reason"]) == (3, {"source_missing": 1})
    for path in fs.find(f"{bucket}/run"):
        assert b"test-secret" not in fs.cat(path), f"credentials in {path}"
    again = ov2("tokenize", *command, "--out", f"{bucket}/run")
    assert again.returncode == 0
    assert "1 of 1 shards stood already" in again.stdout
