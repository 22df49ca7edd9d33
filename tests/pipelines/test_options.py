"""How many workers a command has: what is asked for, or what the cluster holds, now and later."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from pipelines import options
from pipelines.options import RunOptions, open_executor
from pipelines.run_identity import Installation


class FakeRay:
    def __init__(self, job: Any, *, places: Callable[[], int] | None, **_: Any) -> None:
        self.num_places = places or (lambda: 0)

    def close(self) -> None:
        pass


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Its resources, to be changed."""
    holds = {"CPU": 8, "GPU": 2.0}
    monkeypatch.setattr(options, "session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(options, "RayExecutor", FakeRay)
    monkeypatch.setattr(options, "cluster_cpus", lambda: holds["CPU"])
    monkeypatch.setattr(options, "cluster_gpus", lambda: holds["GPU"])
    return holds


def open_with(**given: Any) -> tuple[Any, int]:
    with open_executor(None, RunOptions(**given), Installation.here()) as found:  # type: ignore[arg-type]
        return found


def test_a_run_follows_its_cluster_unless_told_a_number(cluster: dict[str, float]) -> None:
    executor, count = open_with(address="head:6379")
    assert count == 8
    cluster["CPU"] = 12
    assert executor.num_places() == 12
    executor, count = open_with(address="head:6379", workers=3)
    assert (executor.num_places(), count) == (0, 3)
    executor, count = open_with()
    assert (executor.num_places(), count) == (0, 12)


def test_a_lost_gpu_node_stops_nobody_but_none_at_the_start_does(cluster: dict[str, float]) -> None:
    executor, count = open_with(address="head:6379", gpus_per_worker=0.5)
    assert count == 4
    cluster["GPU"] = 0.0
    assert executor.num_places() == 0
    with pytest.raises(ValueError, match="Ray sees 0; take --device cpu"):
        open_with(address="head:6379", gpus_per_worker=0.5)
