"""A run without --workers on a cluster that a node joins: it gets that node's workers too (in a process of its own)."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ov2_core.storage.files import Store
from ov2_core.storage.verify import verify_run

SCRIPT = textwrap.dedent("""
    import os, signal, sys, threading, time
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from ov2_core.config import recipe, with_overrides
    from ov2_core.make_sample import make_sample
    from ov2_core.storage.files import Store
    from pipelines import drive
    from pipelines.options import RunOptions
    from pipelines.tokenize_videos import tokenize_videos

    def slowly(planned, config, seen=sys.argv[3]):
        time.sleep(1.0)
        Path(seen, f"{os.getpid()}").touch()
        return make_sample(planned, config)

    drive.GROW_SECONDS = 1.0
    store = 100 << 20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store})
    cluster.add_node(num_cpus=1, object_store_memory=store)
    def join():
        while not os.listdir(sys.argv[3]):
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)
    # Ray starts nodes in the main thread alone.
    signal.signal(signal.SIGUSR1, lambda *_: cluster.add_node(num_cpus=1, object_store_memory=store))
    threading.Thread(target=join, daemon=True).start()
    try:
        config = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2"})
        tokenize_videos(sys.argv[1], Store(sys.argv[2]), config, RunOptions(address=cluster.address, progress="off"), make=slowly)
    finally:
        cluster.shutdown()
""")


@pytest.mark.slow
def test_a_node_that_joins_is_given_work(clip_folder: Path, tmp_path: Path) -> None:
    clip = next(clip_folder.glob("*.mp4"))
    manifest, run, seen = tmp_path / "m.jsonl", tmp_path / "run", tmp_path / "workers"
    manifest.write_text("".join(json.dumps({"video": str(clip), "id": f"v{i}"}) + "\n" for i in range(40)))
    seen.mkdir()
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", SCRIPT, str(manifest), str(run), str(seen)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(seen.iterdir())) == 2
    assert not verify_run(Store(run)).errors
