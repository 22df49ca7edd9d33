"""Merged runs on tiny clips without Ray: every row of each, none made again, killed anywhere, refused where they must be."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, mixed
from radosgw_server import ACCESS_KEY, SECRET_KEY
from typer.testing import CliRunner

from jobs.cli import app
from ov2_core.config import RunConfig, recipe, with_overrides
from ov2_core.make_sample import SampleOutcome, make_sample, quarantine_planned
from ov2_core.run_status import read_status
from ov2_core.storage.commit import load_commits
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from pipelines.merge_runs import merge_runs
from pipelines.options import RunOptions
from pipelines.refilter import refilter_run
from pipelines.run_rounds import append_rows, replay_rows
from pipelines.tokenize_videos import tokenize_videos
from schemas.shard import PlannedRow

INLINE = RunOptions(workers=0, progress="off")
CONFIG = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2", "area_px": "12544"})
_BUCKETS = itertools.count()


def make_run(
    folder: Path,
    rows: list[dict[str, Any] | str],
    *,
    make: Callable[..., SampleOutcome] = make_sample,
    config: RunConfig = CONFIG,
) -> Store:
    folder.mkdir(parents=True)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    store = Store(folder / "run")
    tokenize_videos(str(manifest), store, config, INLINE, make=make)
    return store


def make_but_one(row: PlannedRow, config: RunConfig) -> SampleOutcome:
    """As if the worker of v4 had died."""
    if row.key == "v4":
        fallen = quarantine_planned(row, reason="worker_died", message="the worker process died")
        return SampleOutcome(line=row.line, key=row.key, quarantined=fallen)
    return make_sample(row, config)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Callable[..., dict[str, Any]]:
    def row(seed: int, id: str | None = None) -> dict[str, Any]:
        return {"video": str(clip_folder / f"clip_{seed}.mp4"), "id": id or f"v{seed}", "caption": f"Square {seed}."}

    return row


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, clip: Callable[..., dict[str, Any]]) -> Store:
    """Three clips, one source that is missing. Never written to."""
    rows: list[Any] = [clip(0), clip(1), {"video": "gone.mp4", "id": "gone"}, clip(2)]
    return make_run(tmp_path_factory.mktemp("one") / "x", rows)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, clip: Callable[..., dict[str, Any]]) -> Store:
    """Two clips, a malformed row, an id used twice, a clip that fell and was replayed, two that were appended. Never written to."""
    folder = tmp_path_factory.mktemp("other")
    store = make_run(folder / "x", ["no json", clip(3), clip(3), clip(4), clip(5)], make=make_but_one)
    replay_rows(store, INLINE)
    more = folder / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in (clip(3), clip(1, "late"), clip(2, "later"))))
    append_rows(str(more), store, INLINE)
    return store


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory, clip: Callable[..., dict[str, Any]]) -> Store:
    """(v9, v1), (v0, gone) and (v8): of `one` are one sample of the first shard, all of the second, and none of the third."""
    rows: list[Any] = [clip(3, "v9"), clip(4, "v1"), clip(5, "v0"), clip(2, "gone"), clip(1, "v8")]
    return make_run(tmp_path_factory.mktemp("overlapping") / "x", rows)


def members(store: Store) -> dict[str, str]:
    """{key: digest of the sample's members}, read through the index."""
    with ShardReader(store.root, store.storage_options) as reader:
        return {
            key: hashlib.sha256(b"".join(data for _, data in reader.read(key).members)).hexdigest()
            for key in reader.keys()  # noqa: SIM118 - a reader is no dict
        }


def tree(store: Store) -> dict[str, bytes]:
    """{path: content}, without the summaries, which hold the times of files."""
    root = Path(store.local(""))
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.parent.name != "summaries"}


def test_merged_run_holds_every_row_of_both(one: Store, other: Store, tmp_path: Path) -> None:
    before = tree(one), tree(other)
    store = Store(tmp_path / "merged")
    summary = merge_runs([one, other], store)
    assert (tree(one), tree(other)) == before
    assert (summary.num_shards, summary.num_shards_before) == (2 + 4, 0)
    assert [(run.first_shard, run.line_offset, run.num_left_out) for run in summary.record.runs] == [
        (0, 0, 0),
        (2, 4, 0),
    ]
    found, parts = verify_run(store), [verify_run(one), verify_run(other)]
    assert found.errors == []
    for name in ("manifest_rows", "committed", "filtered", "quarantined", "num_tokens", "num_images", "tar_bytes"):
        assert getattr(found, name) == sum(getattr(part, name) for part in parts), name
    assert (found.manifest_rows, found.committed) == (11, 8)
    assert found.quarantined_by_reason == {"duplicate_id": 1, "malformed_row": 1, "source_missing": 1}
    assert members(store) == members(one) | members(other)
    status = read_status(store)
    assert (status.left, status.num_shards, status.num_shards_committed) == (0, 6, 6)
    for shard, commit in load_commits(other).items():
        if commit.tar_name is not None:
            assert store.read_bytes(f"shards/shard-{shard + 2:06d}.tar") == other.read_bytes(
                f"shards/{commit.tar_name}"
            )
    assert store.list("attempts") == []


def test_merge_is_a_function_of_the_runs_and_resumed_by_the_same_call(one: Store, other: Store, tmp_path: Path) -> None:
    stores = [Store(tmp_path / name) for name in ("a", "b")]
    for store in stores:
        merge_runs([one, other], store)
    made = tree(stores[0])
    assert made == tree(stores[1])
    assert merge_runs([one, other], stores[0]).num_shards_before == 6
    assert tree(stores[0]) == made


def test_repeated_ids_are_refused_by_name_or_left_out_and_counted(
    one: Store, overlapping: Store, tmp_path: Path
) -> None:
    store = Store(tmp_path / "merged")
    with pytest.raises(ValueError, match=r"3 rows of .* have ids that a run before it has: gone, v0, v1; give --leave"):
        merge_runs([one, overlapping], store)
    assert store.list() == []
    summary = merge_runs([one, overlapping], store, leave_out_duplicates=True)
    assert [run.num_left_out for run in summary.record.runs] == [0, 3]
    found = verify_run(store)
    assert found.errors == []
    assert (found.manifest_rows, found.committed, found.quarantined, found.shards) == (4 + 5 - 3, 3 + 2, 1, 2 + 3)
    theirs = members(overlapping)
    assert members(store) == members(one) | {key: theirs[key] for key in ("v9", "v8")}
    assert store.list("shards") == [f"shard-00000{n}.tar{end}" for n in (0, 1, 2, 4) for end in ("", ".idx")]


def test_merged_run_is_a_run(
    one: Store, other: Store, overlapping: Store, tmp_path: Path, clip: Callable[..., dict[str, Any]]
) -> None:
    """It is merged again, rows are appended to it, what fell is replayed, a shard that is lost is made anew."""
    pair, store = Store(tmp_path / "pair"), Store(tmp_path / "all")
    merge_runs([other, one], pair)
    merge_runs([overlapping, pair], store, leave_out_duplicates=True)
    assert verify_run(store).errors == []
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps(clip(0, "new")) + "\n" + json.dumps(clip(0)) + "\n")
    appended = append_rows(str(more), store, INLINE)
    assert appended.record is not None
    assert (appended.record.num_rows, appended.record.num_left_out) == (1, 1)
    assert replay_rows(store, INLINE).record is None  # a source came with the first run, the rest cannot be replayed
    found = verify_run(store)
    assert found.errors == []
    assert found.committed == len(members(store)) == 12
    whole = members(store)
    for rel in ("commits/shard-000004.json", "shards/shard-000004.tar"):
        store.remove(rel)
    append_rows(str(more), store, INLINE)
    assert verify_run(store).errors == []
    assert members(store).keys() == whole.keys()


@pytest.mark.parametrize(
    "point",
    ["before_round", "after_round:2", "before_commit:3", "after_commit:2", "before_publish", "before_cleanup:4", "mid_index"],
)  # fmt: skip
def test_merge_killed_anywhere_ends_like_one_in_a_piece(
    one: Store, overlapping: Store, other: Store, tmp_path: Path, point: str
) -> None:
    runs = [one, other, overlapping]
    store, whole = Store(tmp_path / "run"), Store(tmp_path / "whole")
    child = (
        "import sys; from ov2_core.storage.files import Store; from pipelines.merge_runs import merge_runs;"
        "merge_runs([Store(run) for run in sys.argv[2:]], Store(sys.argv[1]), leave_out_duplicates=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, store.root, *(run.root for run in runs)],
        env=os.environ | {"OV2_FAILPOINT": point}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr.decode()
    merge_runs(runs, store, leave_out_duplicates=True)
    merge_runs(runs, whole, leave_out_duplicates=True)
    assert tree(store) == tree(whole)
    assert verify_run(store).errors == []


def test_rows_that_a_filter_left_out_are_merged_with_their_thresholds(
    tmp_path: Path, clip: Callable[..., dict[str, Any]]
) -> None:
    strict = with_overrides(CONFIG, {"filter.min_duration_seconds": "1.7"})
    runs = [
        make_run(tmp_path / str(n), [clip(seed, f"{n}-{seed}") for seed in (0, 1, 5)], config=strict) for n in (0, 1)
    ]
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    merge_runs(runs, first)
    found = verify_run(first)
    assert (found.errors, found.committed, found.filtered) == ([], 2, 4)
    refilter_run(runs[0], ["filter.min_duration_seconds=1.1"], INLINE)
    with pytest.raises(ValueError, match=r"thresholds that `ov2 refilter` set: .* there, None here"):
        merge_runs(runs, second)
    refilter_run(runs[1], ["filter.min_duration_seconds=1.1"], INLINE)
    merge_runs(runs, second)
    found = verify_run(second)
    assert (found.errors, found.committed, found.filtered) == ([], 4, 2)


def test_what_cannot_be_merged_is_refused(one: Store, other: Store, overlapping: Store, tmp_path: Path) -> None:
    def copy(name: str) -> Store:
        shutil.copytree(one.local(""), tmp_path / name)
        return Store(tmp_path / name)

    out = Store(tmp_path / "out")
    unfinished = copy("unfinished")
    unfinished.remove("commits/shard-000001.json")
    torn = copy("torn")
    torn.write_bytes("shards/shard-000001.tar", b"cut")
    differs = copy("differs")
    record = json.loads(differs.read_bytes("run.json"))
    record["config"]["tokenizer"]["jpeg_quality"] = 1
    record["code_version"] = "0"
    differs.write_bytes("run.json", json.dumps(record).encode())
    features = copy("features")
    features.write_bytes("run.json", json.dumps(record | {"recipe": "features", "config": {}}).encode())
    for runs, text in (
        ([one], "at least two runs"),
        ([one, Store(one.root + "/")], "given twice"),
        ([one, out], "given twice"),
        ([one, Store(tmp_path / "nothing")], "holds no run"),
        ([other, unfinished], "1 of 2 shards to make; finish it first: ov2 tokenize"),
        ([other, torn], r"shard-000001\.tar is missing or not of \d+ bytes"),
        (
            [other, differs],
            r"differ in:\n  config.tokenizer.jpeg_quality: 95 there, 1 here\n  code_version: .*never mixed",
        ),
        ([other, features], "is a run of 'features'; only token runs"),
    ):
        with pytest.raises(ValueError, match=f"(?s){text}"):
            merge_runs(runs, out)
        assert out.list() == []
    with pytest.raises(ValueError, match="holds a run that was not merged"):
        merge_runs([other, one], overlapping)
    merge_runs([one, other], out)
    with pytest.raises(ValueError, match=r"was merged of other runs, or these have grown since: .*merge\.json"):
        merge_runs([other, one], out)


def test_command_merges_and_tells_what_became_of_the_rows(one: Store, overlapping: Store, tmp_path: Path) -> None:
    command = ["merge", one.root, overlapping.root, "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    done = CliRunner().invoke(app, [*command, "--leave-out-duplicates"])
    assert done.exit_code == 0, done.output
    assert f"{overlapping.root}: 5 rows, 3 left out: known before; 3 shards from 2" in done.output
    assert (tmp_path / "run" / "report.html").exists()


def test_features_of_a_merged_run_are_verified(one: Store, other: Store, tmp_path: Path, tiny_model: Path) -> None:
    from pipelines.extract_features import EncodeOptions, extract_features

    merged, store = Store(tmp_path / "merged"), Store(tmp_path / "features")
    merge_runs([one, other], merged)
    extract_features(merged, store, EncodeOptions(model=str(tiny_model), tokens_per_batch=100), INLINE)
    found = verify_run(store)
    assert found.errors == []
    assert found.committed == 8


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def on_s3(one: Store, other: Store, proxy: FaultProxy, s3_endpoint: str) -> tuple[Store, Store, Store]:
    """(`one`, `other`, nothing yet) in a bucket, behind the proxy."""
    import s3fs

    bucket = f"merged-{next(_BUCKETS)}"
    options = {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": {"region_name": "us-east-1"}}
    s3fs.S3FileSystem(**options, endpoint_url=s3_endpoint).call_s3("create_bucket", Bucket=bucket)
    options |= {"endpoint_url": proxy.endpoint, "config_kwargs": {"retries": {"max_attempts": 0}}}
    first, second, merged = (Store(f"s3://{bucket}/{name}", options) for name in ("one", "other", "merged"))
    for run, there in ((one, first), (other, second)):
        for rel, data in tree(run).items():
            there.write_bytes(rel, data)
    proxy.requests.clear()
    return first, second, merged


def check_like_local(merged: Store, one: Store, other: Store, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    merge_runs([one, other], local)
    for rel, data in tree(local).items():
        if rel.startswith(("shards/", "quarantine/", ".nv-meta/", "plan/plan.json", "run.json")):
            assert merged.read_bytes(rel) == data, rel
    assert verify_run(merged).errors == []


@pytest.mark.s3
def test_tars_of_one_object_store_are_copied_by_the_server(
    one: Store, other: Store, on_s3: tuple[Store, Store, Store], proxy: FaultProxy, tmp_path: Path
) -> None:
    first, second, merged = on_s3
    merge_runs([first, second], merged)
    of_tars = {r.operation for r in proxy.requests if r.key.endswith(".tar")}
    assert of_tars == {"CopyObject", "HeadObject", "DeleteObject"}
    check_like_local(merged, one, other, tmp_path)


@pytest.mark.s3
@pytest.mark.slow
def test_merge_on_an_object_store_holds_through_faults_and_between_kinds_of_storage(
    one: Store, other: Store, overlapping: Store, on_s3: tuple[Store, Store, Store], proxy: FaultProxy, tmp_path: Path
) -> None:
    first, second, merged = on_s3
    proxy.schedule = mixed(3, ["503", "reset_after", "twice", "reset_before"], share=0.5)
    merge_runs([first, second], merged)
    assert len({fault for fault, _ in proxy.injected}) == 4
    proxy.schedule = lambda request: None
    check_like_local(merged, one, other, tmp_path)
    for sources, target in (
        ([first, overlapping], Store(f"{merged.root}-2", merged.storage_options)),
        ([overlapping, second], Store(tmp_path / "fetched")),
    ):
        merge_runs(sources, target, leave_out_duplicates=True)
        assert verify_run(target).errors == []
