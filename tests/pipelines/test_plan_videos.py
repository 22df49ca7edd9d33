import json
import random
from pathlib import Path

import pytest

from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.data.keys import IdLedger
from ov2_core.data.manifest import read_manifest, read_rows
from ov2_core.make_sample import ProbeOutcome, ProbeTask, TransientItemError, make_probe
from ov2_core.plan import PlanWriter, iter_plan_quarantine, iter_plan_rows, load_plan
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.plan_videos import PlanFeed, ProbeJob, plan_videos
from pipelines.progress import Counters
from pipelines.tasks import Verdict
from schemas.shard import PlanRecord

INLINE = RunOptions(workers=0, progress="off")
CONFIG = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2"})


@pytest.fixture
def mixed_manifest(clip_folder: Path) -> Path:
    """Good rows among every kind that falls at the plan."""
    clip = lambda i: f"clip_{i}.mp4"  # noqa: E731
    (clip_folder / "empty.mp4").write_bytes(b"")
    (clip_folder / "text.mp4").write_text("hello " * 500)
    rows = [
        json.dumps({"video": clip(0), "id": "a"}),
        "not json",
        json.dumps({"video": clip(1), "id": "a"}),
        json.dumps({"video": clip(1)}),
        json.dumps({"video": "concat:clip_0.mp4|clip_1.mp4"}),
        json.dumps({"video": "empty.mp4"}),
        json.dumps({"video": "text.mp4"}),
        json.dumps({"video": "nowhere.mp4", "id": "../../x"}),
        json.dumps({"video": clip(2), "conversations": [{"from": "human", "value": "alone"}]}),
        json.dumps({"video": clip(2), "start": 500.0}),
        json.dumps({"video": clip(3), "id": "../x"}),
    ]
    manifest = clip_folder / "mixed.jsonl"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def planned(store: Store) -> list[tuple[int, str, int]]:
    return [(row.line, row.key, row.shard) for row in iter_plan_rows(store)]


def test_every_row_is_planned_or_falls_with_its_reason(mixed_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    record = plan_videos(str(mixed_manifest), store, CONFIG, INLINE)
    assert [(line, shard) for line, _, shard in planned(store)] == [(1, 0), (4, 0), (11, 1)]
    assert [(row.line, row.reason) for row in iter_plan_quarantine(store)] == [
        (2, "malformed_row"),
        (3, "duplicate_id"),
        (5, "refused_uri"),
        (6, "source_empty"),
        (7, "not_media"),
        (8, "source_missing"),
        (9, "invalid_text"),
        (10, "empty_range"),
    ]
    assert record == load_plan(store)
    assert (record.manifest_rows, record.num_planned, record.num_quarantined, record.num_shards) == (11, 3, 8, 2)
    first = next(iter_plan_rows(store))
    assert record.predicted_tokens == sum(row.predicted_tokens for row in iter_plan_rows(store))
    assert first.probe.num_frames == 10
    assert first.uri == str(mixed_manifest.parent / "clip_0.mp4")


def test_plan_of_the_ledger_replays_what_fell(mixed_manifest: Path, tmp_path: Path) -> None:
    first, replay = Store(tmp_path / "run"), Store(tmp_path / "replay")
    ledger = plan_videos(str(mixed_manifest), first, CONFIG, INLINE).fallen
    plan_videos(first.url(ledger), replay, CONFIG, INLINE)
    fallen = {row.id: row.reason for row in iter_plan_quarantine(first) if row.row is not None and row.id != "a"}
    again = {row.id: row.reason for row in iter_plan_quarantine(replay) if row.row is not None and row.id != "a"}
    assert again == fallen
    assert [key for _, key, _ in planned(replay)] == ["a"], "the duplicate is alone now"


def drive_by_hand(
    manifest: Path, store: Store, config: RunConfig, *, seed: int, window_rows: int, keep: int
) -> PlanRecord:
    """Ends probes in random order, at most `keep` at a time."""
    shuffle = random.Random(seed)
    with IdLedger() as ledger, PlanWriter(store) as writer:
        feed = PlanFeed(
            read_rows(str(manifest)),
            str(manifest),
            config,
            writer,
            ledger,
            Counters("plan"),
            window_rows=window_rows,
        )
        open_tasks = []
        while not feed.finished:
            while len(open_tasks) < keep and (task := feed.pull()) is not None:
                open_tasks.append(task)
            assert sum(len(task.payload) for task in open_tasks) <= window_rows
            if open_tasks:
                task = open_tasks.pop(shuffle.randrange(len(open_tasks)))
                job = ProbeJob(config, str(manifest))
                feed.done(task, (job.run(task.payload)[0][0], shuffle.choice([1e-3, 10.0])), None)
        return writer.finish(feed.record(manifest_digest="x"))


@pytest.mark.parametrize(("seed", "window_rows", "keep"), [(0, 100, 100), (1, 3, 2), (2, 1, 9), (3, 7, 3)])
def test_plan_does_not_depend_on_the_order_of_finishing(
    mixed_manifest: Path, tmp_path: Path, seed: int, window_rows: int, keep: int
) -> None:
    inline, shuffled = Store(tmp_path / "inline"), Store(tmp_path / "shuffled")
    plan_videos(str(mixed_manifest), inline, CONFIG, INLINE)
    record = drive_by_hand(mixed_manifest, shuffled, CONFIG, seed=seed, window_rows=window_rows, keep=keep)
    for name in (record.rows, record.fallen):
        assert inline.read_bytes(name) == shuffled.read_bytes(name)


def test_probe_that_kills_its_worker_falls_alone(mixed_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    condemned: list[int] = []
    with IdLedger() as ledger, PlanWriter(store) as writer:
        feed = PlanFeed(
            read_manifest(str(mixed_manifest)), str(mixed_manifest), CONFIG, writer, ledger, Counters("plan")
        )
        while (task := feed.pull()) is not None:
            if 1 in [raw.line for _, raw in task.payload]:
                condemned.append(len(task.payload))
                feed.condemned(task, Verdict("worker_died", "SIGSEGV", 3))
            else:
                feed.done(task, ProbeJob(CONFIG, str(mixed_manifest)).run(task.payload)[0], None)
        writer.finish(feed.record(manifest_digest="x"))
    assert [line for line, _, _ in planned(store)] == [4, 11]
    first = next(iter_plan_quarantine(store))
    assert (first.line, first.reason, first.stage, first.attempts) == (1, "worker_died", "probe", 3)
    assert condemned == [5, 1], "the task is taken apart, then the row is tried alone"


def test_a_transient_error_is_tried_alone(mixed_manifest: Path, tmp_path: Path) -> None:
    tried: list[list[int]] = []

    def flaky(task: ProbeTask, config: RunConfig) -> ProbeOutcome:
        if task.line == 4 and len(tried[-1]) > 1:
            raise TransientItemError("503")
        return make_probe(task, config)

    plain, store = Store(tmp_path / "plain"), Store(tmp_path / "run")
    plan_videos(str(mixed_manifest), plain, CONFIG, INLINE)
    job = ProbeJob(CONFIG, str(mixed_manifest), flaky)
    with IdLedger() as ledger, PlanWriter(store) as writer:
        feed = PlanFeed(read_rows(str(mixed_manifest)), str(mixed_manifest), CONFIG, writer, ledger, Counters("plan"))
        while (task := feed.pull()) is not None:
            tried.append([raw.line for _, raw in task.payload])
            feed.done(task, job.run(task.payload)[0], None)
        writer.finish(feed.record(manifest_digest="x"))
    assert [4] in tried
    assert planned(store) == planned(plain)


def test_rows_alone_end_as_transient_errors_do(mixed_manifest: Path) -> None:
    def down(task: ProbeTask, config: RunConfig) -> ProbeOutcome:
        raise TransientItemError("503")

    first = next(read_rows(str(mixed_manifest)))
    with pytest.raises(TransientItemError):
        ProbeJob(CONFIG, str(mixed_manifest), down).run(((0, first),))


def test_plan_is_not_there_before_it_is_finished(mixed_manifest: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    plan_videos(str(mixed_manifest), store, CONFIG, INLINE)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        plan_videos(str(broken), store, CONFIG, INLINE)
    assert load_plan(store) is None
