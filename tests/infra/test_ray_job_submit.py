"""The command of infra/kuberay/rayjob.yaml, submitted with `ray job submit` to a head that runs here, as KubeRay does it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from ov2_core.evals.clips import write_canary_clip
from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run

pytest.importorskip("aiohttp_cors", reason="ray job submit needs Ray's dashboard: pip install 'ray[default]'")

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(server.getsockname()[1]) for server in held]
    for server in held:
        server.close()
    return ports


@pytest.fixture
def dashboard(tmp_path):
    """URL of the dashboard of a Ray head with one CPU and ports of its own."""
    port, url_port, client, agent, low = free_ports(5)
    workers = range(20000, 20400) if int(low) > 30000 else range(40000, 40400)
    ports = [f"--port={port}", f"--dashboard-port={url_port}", f"--ray-client-server-port={client}"]
    ports += [
        f"--dashboard-agent-listen-port={agent}",
        f"--min-worker-port={workers[0]}",
        f"--max-worker-port={workers[-1]}",
    ]
    sizes = ["--num-cpus=1", "--object-store-memory=80000000"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryDirectory(prefix="ov2ray", dir="/tmp") as ray_folder:  # Ray's sockets need a short path
        command = [BIN / "ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1", f"--temp-dir={ray_folder}"]
        log = tmp_path / "head.log"
        with log.open("w") as out:
            head = subprocess.Popen(
                [*map(str, command), *ports, *sizes], stdout=out, stderr=out, env=environment, start_new_session=True
            )
        url = f"http://127.0.0.1:{url_port}"
        try:
            wait_for(f"{url}/api/version", head, log)
            yield url
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)


def wait_for(url, head, log):
    for _ in range(240):
        assert head.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no dashboard: {log.read_text()[-2000:]}")


def test_rayjobs_command_runs_under_ray_job_submit(dashboard, tmp_path):
    for i in range(3):
        write_canary_clip(tmp_path / f"{i}.mp4", video_id=i, num_frames=12, columns=4, rows=3)
    manifest = tmp_path / "videos.jsonl"
    manifest.write_text("".join(f'{{"video": "{i}.mp4"}}\n' for i in range(3)))
    entrypoint = yaml.safe_load((ROOT / "infra/kuberay/rayjob.yaml").read_text())["spec"]["entrypoint"]
    here = {
        r"s3://BUCKET/videos.jsonl": str(manifest),
        r"s3://BUCKET/runs/first": str(tmp_path / "run"),
        r"codec-384": "uniform-4",
        r"--workers 256": "--workers 1",
        r"^ov2 ": f"{BIN}/ov2 ",
    }
    for there, local in here.items():
        entrypoint, changed = re.subn(there, local, entrypoint)
        assert changed == 1, f"{there} stands in the RayJob's command once"
    submit = [str(BIN / "ray"), "job", "submit", "--address", dashboard, "--", *shlex.split(entrypoint)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    said = subprocess.run(submit, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-2000:]
    assert "succeeded" in said.stdout
    found = verify_run(Store(tmp_path / "run"))
    assert (found.committed, found.errors) == (3, [])
