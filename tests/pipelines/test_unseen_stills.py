"""Stills that some nodes of a cluster do not see: the stage builder asks the others before it leaves a record out."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("torch")

from jobs.recipes import stage
from ov2_core.data import chunks, measure
from ov2_core.data.measure import Fetching, read_media
from ov2_core.data.read_pack import open_packs
from ov2_core.data.stage import load_stage
from ov2_core.data.stage_config import with_settings
from ov2_core.errors import BadItemError
from ov2_core.make_sample import NotHereError
from ov2_core.storage.files import Store
from ov2_core.storage.local_file import ReadFailedError
from pipelines import build_curriculum as builder
from pipelines.build_curriculum import CurriculumOptions, build_curriculum
from pipelines.inline import InlineExecutor
from pipelines.options import RunOptions
from pipelines.run_identity import Installation
from pipelines.tasks import Failed, Ready, Task
from schemas.stage import StageRecord

CLUSTER = RunOptions(workers=0, address="head:6379", progress="off")
NUM_SEEN = 18
GONE = ("still-20", "still-21")


class DriverKilledError(Exception):
    pass


class Nodes(InlineExecutor):
    """Workers of this process that say they are on nodes; what is read is what the node at work sees."""

    at_work = ""
    num_calls = 0
    last_call: int | None = None
    """The driver dies when more are made."""

    def start(self, worker: int) -> None:
        super().start(worker)
        self._events[-1] = Ready(worker, f"node-{worker}")

    def submit(self, worker: int, task: Task) -> None:
        Nodes.num_calls += 1
        if Nodes.last_call is not None and Nodes.num_calls > Nodes.last_call:
            raise DriverKilledError
        Nodes.at_work = f"node-{worker}"
        try:
            super().submit(worker, task)
        except NotHereError as error:
            self._events.append(Failed(worker, "not_here", str(error), True))


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Nodes that see no still; a cluster of four takes the place of Ray."""
    found: set[str] = set()

    @contextlib.contextmanager
    def open_nodes(job: Any, *_: Any) -> Iterator[tuple[Nodes, int]]:
        yield Nodes(job), 4

    def read_there(uri: str, fetching: Fetching) -> bytes:
        if Nodes.at_work in found:
            raise BadItemError("source_missing", f"{uri}: cannot be opened: no such file", stage="import")
        return read_media(uri, fetching)

    monkeypatch.setattr(builder, "open_executor", open_nodes)
    monkeypatch.setattr(measure, "read_media", read_there)
    monkeypatch.setattr(chunks, "CHUNK_RECORDS", 4)
    monkeypatch.setattr(Nodes, "num_calls", 0)
    monkeypatch.setattr(Nodes, "last_call", None)
    return found


def build(folder: Path, out: str) -> StageRecord:
    rows: list[dict[str, str]] = []
    for i in range(NUM_SEEN):
        picture = io.BytesIO()
        Image.new("RGB", (56, 28), (10 * i,) * 3).save(picture, format="PNG")
        (folder / f"still-{i}.png").write_bytes(picture.getvalue())
        rows.append({"image": str(folder / f"still-{i}.png"), "id": f"still-{i}", "caption": f"It is {i}."})
    for place, name in zip((2, 9), GONE, strict=True):
        rows.insert(place, {"image": str(folder / f"{name}.png"), "id": name, "caption": "It is gone."})
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sources.yaml").write_text(
        "sources: [{name: image-text, importer: manifest, path: images.jsonl, weight: 1}]"
    )
    config = with_settings(stage("stage1"), ["sequence_length=256", "packs_per_block=2"])
    options = CurriculumOptions(sources=str(folder / "sources.yaml"))
    return build_curriculum(Store(folder / out), config, options, CLUSTER)


def check(folder: Path, out: str) -> None:
    """All stills that are there are in the stage, once; those that are not are left out, each by its own name."""
    store = Store(folder / out)
    packs = open_packs(store, load_stage(store), moved={})
    ids = [s.id for number in range(len(packs)) for s in packs.load(number, skip_bad=False).samples]
    assert sorted(ids) == sorted(f"still-{i}" for i in range(NUM_SEEN))
    dropped = [json.loads(line) for line in (folder / out / "dropped.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped} == dict.fromkeys(GONE, "source_missing")
    assert len(dropped) == len(GONE)
    for row in dropped:
        assert f"{row['id']}.png: cannot be opened" in row["message"]
    assert not (folder / out / "work").exists()


@pytest.mark.parametrize(
    "nodes", [set(), {"node-0"}, {"node-1", "node-3"}, {"node-0", "node-1"}], ids=lambda nodes: "+".join(sorted(nodes))
)
def test_nodes_that_see_no_still_cost_no_record(tmp_path: Path, blind: set[str], nodes: set[str]) -> None:
    blind |= nodes
    build(tmp_path, "S")
    check(tmp_path, "S")


def test_a_driver_that_dies_between_seen_and_unseen(tmp_path: Path, blind: set[str]) -> None:
    """After every call in turn; the same command then goes on, with other nodes blind than before."""
    deaths = 0
    for last_call in range(1, 60):
        out = f"S{last_call}"
        blind.clear()
        blind.add("node-0")
        Nodes.num_calls, Nodes.last_call = 0, last_call
        try:
            build(tmp_path, out)
            break
        except DriverKilledError:
            deaths += 1
        blind.clear()
        blind.add("node-2")
        Nodes.last_call = None
        build(tmp_path, out)
        check(tmp_path, out)
    assert 10 < deaths < 58


def test_what_cannot_be_read_now_is_tried_again(
    tmp_path: Path, blind: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that fails for a moment is not the still's fault; a refused permission is said of the still."""
    failing = 3

    class Shaky(measure.LocalFile):
        def __init__(self, path: str) -> None:
            nonlocal failing
            failing -= 1
            if failing >= 0:
                raise ReadFailedError(f"{path}: this machine cannot read it (EIO)")
            if path.endswith("still-5.png"):
                raise PermissionError(13, "Permission denied", path)
            super().__init__(path)

    monkeypatch.setattr(measure, "LocalFile", Shaky)
    record = build(tmp_path, "S")
    assert record.sources[0].num_samples == NUM_SEEN - 1
    dropped = [json.loads(line) for line in (tmp_path / "S" / "dropped.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in dropped} == dict.fromkeys((*GONE, "still-5"), "source_missing")
    assert failing < 0


def test_those_who_write_a_stages_shards_must_see_its_token_runs(
    tmp_path: Path, token_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Installation] = []
    here = Installation.here

    def note(*arguments: Any, **named: Any) -> Installation:
        found.append(here(*arguments, **named))
        return found[-1]

    monkeypatch.setattr(Installation, "here", note)
    captions = [{"video": f"clip-{i}.mp4", "id": f"clip-{i}", "caption": f"Canary {i}."} for i in range(3)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    (tmp_path / "sources.yaml").write_text(
        f"sources: [{{name: captions-10min-codec, importer: manifest, path: captions.jsonl, shards: {token_run}, count: 3}}]"
    )
    config = with_settings(stage("stage4"), ["sequence_length=1400", "packs_per_block=2"])
    options = CurriculumOptions(sources=str(tmp_path / "sources.yaml"), materialize=True)
    build_curriculum(Store(tmp_path / "S"), config, options, RunOptions(workers=0, progress="off"))
    assert len(found) == 2, "measuring, writing"
    for installation in found:
        assert [run.root for run, _ in installation.runs] == [str(tmp_path / "S"), str(token_run)]
        assert all(digest for _, digest in installation.runs)
