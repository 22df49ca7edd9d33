"""A cluster of two nodes of which one lacks the mount that the sources lie on (in a process of its own)."""

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
    import dataclasses, os, sys, time
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from ov2_core.config import recipe, with_overrides
    from ov2_core.make_sample import make_probe, make_sample
    from ov2_core.storage.files import Store
    from pipelines.options import RunOptions
    from pipelines.plan_videos import plan_videos
    from pipelines.tokenize_videos import tokenize_videos

    def blind(make):
        def from_here(row, config, make=make, told=sys.argv[3]):
            if "BLIND_NODE" not in os.environ:
                time.sleep(0.5)
                return make(row, config)
            Path(told, make.__name__).touch()
            uri = "/not-mounted" + row.uri
            away = dataclasses.replace(row, uri=uri) if dataclasses.is_dataclass(row) else row.model_copy(update={"uri": uri})
            return make(away, config)
        return from_here

    store = 100 << 20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store})
    cluster.add_node(num_cpus=1, object_store_memory=store, env_vars={"BLIND_NODE": "1"})
    cluster.add_node(num_cpus=1, object_store_memory=store)
    try:
        config = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2"})
        options = RunOptions(address=cluster.address, progress="off")
        plan_videos(sys.argv[1], Store(sys.argv[2]), config, options, probe=blind(make_probe))
        tokenize_videos(sys.argv[1], Store(sys.argv[2]), config, options, make=blind(make_sample))
    finally:
        cluster.shutdown()
""")


@pytest.mark.slow
def test_a_node_without_the_sources_costs_no_row(clip_manifest: Path, tmp_path: Path) -> None:
    run, told = tmp_path / "run", tmp_path / "told"
    told.mkdir()
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", SCRIPT, str(clip_manifest), str(run), str(told)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in told.iterdir()} == {"make_probe", "make_sample"}, "the blind node was given nothing"
    report = verify_run(Store(run))
    assert not report.errors
    assert (report.committed, report.quarantined) == (6, 1)
    ledger = "".join(path.read_text() for path in (run / "quarantine").glob("*.jsonl"))
    assert [(row["id"], row["reason"]) for row in map(json.loads, ledger.splitlines())] == [("gone", "source_missing")]
