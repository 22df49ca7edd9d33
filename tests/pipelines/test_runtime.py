"""Workers on Ray: what is reported, and in which order."""

import time
from dataclasses import replace
from typing import Any

import pytest

from pipelines.drive import drive
from pipelines.run_identity import Installation
from pipelines.scheduling import Scheduler
from pipelines.tasks import DeadlinePolicy, RunStoppedError, Task, Verdict


class EchoFeed:
    """Tasks whose result must be their own name."""

    def __init__(self, names: list[str]) -> None:
        self.names = list(names)
        self.found: dict[str, str] = {}
        self._num_open = len(names)

    @property
    def finished(self) -> bool:
        return len(self.found) == self._num_open

    def pull(self) -> Task | None:
        return Task(self.names[0], self.names.pop(0), 0.0) if self.names else None

    def done(self, task: Task, info: Any, payload: Any) -> None:
        self.found[task.name] = info

    def condemned(self, task: Task, verdict: Verdict) -> None:
        raise AssertionError(f"{task.name}: {verdict}")


@pytest.mark.ray
@pytest.mark.parametrize("few_waiting", [8, 0], ids=["one at a time", "all at once"])
def test_every_task_gets_its_own_result_whichever_ray_tells_of_first(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, few_waiting: int
) -> None:
    """Of two calls of a worker that end in one moment Ray now and then reports the second first: here always."""
    import ray

    from pipelines import runtime

    class Echo:
        """A job that gives back what it gets; see runtime.Job. In here, since workers cannot import this module."""

        def warm_up(self) -> None:
            """Nothing."""

        def run(self, payload: str) -> tuple[str, None]:
            return payload, None

    wait = ray.wait

    def last_first(references: list[Any], *, num_returns: int, timeout: float, fetch_local: bool) -> Any:
        ready, _ = wait(references, num_returns=len(references), timeout=max(timeout, 0.2), fetch_local=fetch_local)
        told = ready[::-1][:num_returns]
        return told, [reference for reference in references if reference not in told]

    monkeypatch.setattr(runtime.ray, "wait", last_first)
    monkeypatch.setattr(runtime, "FEW_WAITING", few_waiting)
    feed = EchoFeed([f"v{number}" for number in range(12)])
    executor = runtime.RayExecutor(Echo(), installation=Installation.here())
    scheduler = Scheduler(feed, num_workers=2, deadlines=DeadlinePolicy())
    try:
        drive(executor, scheduler, clock=time.monotonic, on_tick=lambda: None)
    finally:
        executor.close()
    assert feed.found == {name: name for name in feed.found}


@pytest.mark.ray
def test_a_worker_with_another_installation_is_given_nothing(local_ray: None) -> None:
    from pipelines import runtime

    class Untouchable:
        """A job that must not even be unpickled, and cannot be."""

        def __reduce__(self) -> Any:
            return exec, ("raise AssertionError('the job was unpickled')",)

        def warm_up(self) -> None:
            """Never called."""

        def run(self, payload: str) -> tuple[str, None]:
            raise AssertionError

    here = Installation.here()
    other = replace(here, library_versions={**here.library_versions, "numpy": "0.1"})
    executor = runtime.RayExecutor(Untouchable(), installation=other)
    scheduler = Scheduler(EchoFeed(["v0"]), num_workers=1, deadlines=DeadlinePolicy())
    expected = r"workers fail to start; .* node [\d.]+ has another installation .*numpy: '[\d.]+' there, '0\.1' here"
    try:
        with pytest.raises(RunStoppedError, match=expected):
            drive(executor, scheduler, clock=time.monotonic, on_tick=lambda: None)
    finally:
        executor.close()
