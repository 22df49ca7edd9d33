"""Signs of life of a run: in the order in which the commands began."""

from pathlib import Path

from ov2_core.storage.files import Store
from ov2_core.storage.invocations import invocation_rel, load_invocations
from schemas.run import InvocationRecord


def record(stage: str, began: float) -> InvocationRecord:
    return InvocationRecord(
        stage=stage, host="h", pid=1, state="running", began_unix_seconds=began, seen_unix_seconds=began,
        num_items=1, num_done=0, num_made=0, num_filtered=0, num_tokens=0, num_shards_done=0, num_worker_deaths=0,
        cpu_seconds=0.0, video_seconds=0.0, quarantined={}, elapsed_seconds=0.0, workers=[],
    )  # fmt: skip


def test_the_order_is_that_of_their_begin_whatever_their_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, began in (("1-b", 10.25), ("1-a", 10.75), ("1-c", 10.5)):
        store.write_bytes(invocation_rel(name), record(name, began).model_dump_json().encode())
    store.write_bytes(invocation_rel("0-broken"), b"{")
    assert [one.stage for one in load_invocations(store)] == ["1-b", "1-c", "1-a"]
