"""The main job on an object store: manifest, sources and run at s3://, the same bytes as on local disk."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def s3_environment():
    """Environment of a process that reaches a moto server with a bucket `corpus`."""
    pytest.importorskip("moto")
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"], key="test", secret="test-secret").mkdir("corpus")
    yield environment
    server.stop()


def ov2(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_run_on_s3_has_the_bytes_of_a_local_run(s3_environment, clip_folder, tmp_path):
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=s3_environment["AWS_ENDPOINT_URL"], key="test", secret="test-secret")
    rows = []
    for seed in range(3):
        fs.put(str(clip_folder / f"clip_{seed}.mp4"), f"corpus/in/clip_{seed}.mp4")
        rows.append({"video": f"s3://corpus/in/clip_{seed}.mp4", "id": f"v{seed}", "caption": "A square."})
    rows.append({"video": "gone.mp4", "id": "gone"})
    manifest = "".join(json.dumps(row) + "\n" for row in rows)
    fs.pipe("corpus/in/manifest.jsonl", manifest.encode())
    command = ["--manifest", "s3://corpus/in/manifest.jsonl", "--recipe", "evidence-4", "--workers", "0"]
    for out in ("s3://corpus/run", str(tmp_path / "run")):
        done = ov2(s3_environment, "tokenize", *command, "--out", out)
        assert done.returncode == 0, done.stderr
        assert ov2(s3_environment, "verify", out, "--json").returncode == 0
    remote = hashlib.sha256(fs.cat("corpus/run/shards/shard-000000.tar")).hexdigest()
    local = hashlib.sha256((tmp_path / "run/shards/shard-000000.tar").read_bytes()).hexdigest()
    assert remote == local
    assert fs.find("corpus/run/attempts") == []
    report = json.loads(ov2(s3_environment, "verify", "s3://corpus/run", "--json").stdout)
    assert (report["committed"], report["quarantined_by_reason"]) == (3, {"source_missing": 1})
    for path in fs.find("corpus/run"):
        assert b"test-secret" not in fs.cat(path), f"credentials in {path}"
    again = ov2(s3_environment, "tokenize", *command, "--out", "s3://corpus/run")
    assert again.returncode == 0
    assert "1 of 1 shards stood already" in again.stdout
