"""Stages built of toy sources: counts, bindings, lengths, resumes."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("torch")

from feature_runs import INLINE

from jobs.recipes import STAGES, stage
from ov2_core.config import recipe
from ov2_core.data.read_pack import IndexPacks, open_packs
from ov2_core.data.source_state import SourceState
from ov2_core.data.stage import PackIndex, load_stage
from ov2_core.data.stage_config import load_sources, with_settings
from ov2_core.evals.clips import Canary, read_canary, write_canary_clip
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.patches import to_block_order
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.visual import Visual
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from pipelines.build_curriculum import CurriculumOptions, MeasureJob, build_curriculum
from pipelines.chunk_feed import ChunkFeed
from pipelines.options import RunOptions
from pipelines.progress import Counters
from pipelines.tasks import Verdict
from pipelines.tokenize_videos import tokenize_videos
from schemas.stage import StageRecord


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, run/ (six uniform canary clips), stills.parquet (FineVision, 9 rows), captions.jsonl bound to the clips by id."""
    folder = tmp_path_factory.mktemp("toy")
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    rows = []
    for i in range(6):
        path = folder / f"clip-{i}.mp4"
        write_canary_clip(path, video_id=40 + i, num_frames=12 + 4 * i, fps=10.0, columns=5, rows=4)
        rows.append({"video": str(path), "id": f"clip-{i}", "caption": f"Canary {40 + i}."})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize_videos(str(manifest), Store(folder / "run"), recipe("uniform-8"), INLINE)
    captions = [*reversed(rows), {"video": "nowhere.mp4", "id": "untokenized", "caption": "?"}, {"video": "x"}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    texts = [
        {
            "images": [{"bytes": still(i), "path": None}] * (i % 3),
            "texts": [{"user": f"Q{i}.{j}", "assistant": f"A{i}.{j} " * 40} for j in range(4)],
            "source": "toy",
        }
        for i in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(texts), folder / "stills.parquet")
    return folder


def still(seed: int) -> bytes:
    """A PNG of 56 x 28 px whose grey is 20 times its seed."""
    out = io.BytesIO()
    Image.new("RGB", (56, 28), (20 * seed,) * 3).save(out, format="PNG")
    return out.getvalue()


def canaries(video: Visual) -> list[Canary]:
    """What the blocks of all images say, in block order."""
    images = np.stack([video.image(i) for i in range(video.num_images)])
    blocks = images.reshape(len(images), 4, 28, 5, 28, 3).swapaxes(2, 3).reshape(-1, 28, 28, 3)
    return [read_canary(block) for block in blocks]


def build(
    toy: Path, out: Path, sources: str, *, name: str = "stage1", settings: list[str] | None = None, **options: Any
) -> StageRecord:
    (toy / f"{out.name}.yaml").write_text(sources)
    config = with_settings(stage(name), ["sequence_length=2048", "packs_per_block=2", *(settings or [])])
    chosen = CurriculumOptions(sources=str(toy / f"{out.name}.yaml"), model=str(toy / "model"), **options)
    return build_curriculum(Store(out), config, chosen, INLINE)


BOTH = """
sources:
  - {name: image-text, importer: finevision, path: stills.parquet, count: 7}
  - {name: captions-30s, importer: manifest, path: captions.jsonl, shards: run, count: 5}
"""


@pytest.mark.parametrize("materialize", [False, True])
def test_a_stage_reads_back_as_its_sources(toy: Path, tmp_path: Path, materialize: bool) -> None:
    record = build(toy, tmp_path / f"S{materialize}", BOTH, materialize=materialize, shard_bytes=60_000)
    assert [source.num_samples for source in record.sources] == [7, 5]
    store = Store(tmp_path / f"S{materialize}")
    packs = open_packs(store, load_stage(store), moved={})
    assert isinstance(packs, IndexPacks) is not materialize
    processor = LlavaOnevision2Processor.from_pretrained(toy / "model")
    seen: list[tuple[str, str]] = []
    for number in range(len(packs)):
        pack = packs.load(number, skip_bad=False)
        assert pack.key == f"ps_{number:08d}"
        assert sum(s.num_tokens or 0 for s in pack.samples) <= 2048
        for sample in pack.samples:
            seen.append((sample.source, sample.id))
            assert len(processor.encode(sample.media, messages=sample.messages).input_ids) == sample.num_tokens
            if sample.source == "captions-30s":
                (video,) = sample.media
                said = int(sample.messages[-1].content.split()[1].rstrip("."))
                assert {canary.video_id for canary in canaries(video)} == {said}
                positions = (
                    to_block_order(video.positions_NP3, rows=8, columns=10, merge=2).reshape(-1, 3)[::4].tolist()
                )
                assert [[c.frame, 2 * c.row, 2 * c.column] for c in canaries(video)] == positions
                with ShardReader(toy / "run") as reader:
                    stored = reader.read(sample.media_keys[0])
                np.testing.assert_array_equal(video.positions_NP3, stored.positions_NP3)
                np.testing.assert_array_equal(video.image(1), stored.image(1))
            else:
                number_ = int(sample.messages[0].content.rsplit("Q", 1)[1].split(".")[0])
                assert len(sample.media) == number_ % 3
                for visual in sample.media:
                    assert abs(float(visual.image(0).mean()) - 20 * number_) < 2
    assert len(set(seen)) == len(seen) == 12
    assert [sum(1 for s, _ in seen if s == name) for name in ("image-text", "captions-30s")] == [7, 5]


def test_the_same_seed_gives_the_same_stage_and_another_seed_another(toy: Path, tmp_path: Path) -> None:
    digests = [build(toy, tmp_path / f"s{i}", BOTH, seed=seed).digest for i, seed in enumerate([3, 3, 4])]
    assert digests[0] == digests[1] != digests[2]
    names = sorted(p.name for p in (tmp_path / "s0").iterdir())
    assert names == ["dropped.jsonl", "missing", "packs", "run.json", "stage.json", "stills", "tars.parquet"]


def test_what_is_left_out_is_named_and_can_be_tokenized(toy: Path, tmp_path: Path) -> None:
    record = build(toy, tmp_path / "S", BOTH.replace("count: 5", "count: 6"))
    source = record.sources[1]
    assert (source.num_available, source.num_quarantined, source.dropped) == (7, 1, {"unbound_media": 1})
    dropped = [json.loads(line) for line in (tmp_path / "S/dropped.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in dropped) == ["invalid_text", "unbound_media"]
    assert all("captions.jsonl" in row["file"] and row["row"] in (7, 8) for row in dropped)
    (missing,) = [json.loads(line) for line in (tmp_path / "S/missing/captions-30s.jsonl").read_text().splitlines()]
    assert missing["id"] == "untokenized"
    assert missing["video"].endswith("nowhere.mp4")


def test_counts_that_cannot_be_met_are_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"captions-30s.*7 samples asked, 6 usable"):
        build(toy, tmp_path / "S", BOTH.replace("count: 5", "count: 7"))


def test_a_refused_stage_leaves_no_stills_and_the_next_one_none_of_its_manifests(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples asked"):
        build(toy, tmp_path / "S", BOTH.replace("count: 5", "count: 7"))
    assert sorted(p.name for p in (tmp_path / "S").iterdir()) == ["dropped.jsonl", "missing"]
    build(toy, tmp_path / "S", "sources: [{name: image-text, importer: finevision, path: stills.parquet, weight: 1}]")
    names = sorted(p.name for p in (tmp_path / "S").iterdir())
    assert names == ["dropped.jsonl", "packs", "run.json", "stage.json", "stills", "tars.parquet"]


def test_weights_and_a_limit_are_met_exactly(toy: Path, tmp_path: Path) -> None:
    weighted = BOTH.replace("count: 7", "weight: 3").replace("count: 5", "weight: 2")
    record = build(toy, tmp_path / "a", weighted)
    assert [source.num_samples for source in record.sources] == [9, 6]
    record = build(toy, tmp_path / "b", weighted, limit=5)
    assert [source.num_samples for source in record.sources] == [3, 2]


def test_trailing_rounds_are_cut_and_what_still_does_not_fit_is_dropped(toy: Path, tmp_path: Path) -> None:
    text = "sources: [{name: image-text, importer: finevision, path: stills.parquet, weight: 1}]"
    record = build(toy, tmp_path / "cut", text, settings=["sequence_length=450"])
    assert record.sources[0].num_rounds_cut >= 9
    assert record.sources[0].num_samples == 9
    store = Store(tmp_path / "cut")
    for pack in PackIndex(store, record):
        for sample in pack.samples:
            assert len(sample.messages) == 2 * (4 - sample.num_rounds_cut)
    with pytest.raises(ValueError, match=r"no usable record: too_long 9"):
        build(toy, tmp_path / "drop", text, settings=["sequence_length=450", "cut_rounds=false"])


def test_a_video_of_another_input_mode_is_left_out(toy: Path, tmp_path: Path) -> None:
    text = "sources: [{name: captions-10min-codec, importer: manifest, path: captions.jsonl, shards: run, weight: 1}]"
    with pytest.raises(ValueError, match=r"no usable record: wrong_input_mode 6, unbound_media 1"):
        build(toy, tmp_path / "S", text, name="stage4")


@pytest.mark.parametrize("point", ["mid_chunk", "after_chunk", "mid_materialize", "before_stage_json"])
def test_a_stage_killed_anywhere_is_finished_by_the_same_call(
    toy: Path, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(toy, tmp_path / "whole", BOTH, materialize=True, shard_bytes=60_000)

    class Killed(BaseException):
        pass

    def die(name: str) -> None:
        if name == point:
            raise Killed

    for module in ("ov2_core.data.chunks", "pipelines.build_curriculum", "pipelines.materialize_stage"):
        monkeypatch.setattr(f"{module}.failpoint", die)
    (toy / "out.yaml").write_text(BOTH)
    with pytest.raises(Killed):
        build(toy, tmp_path / "out", BOTH, materialize=True, shard_bytes=60_000)
    assert not (tmp_path / "out/stage.json").exists()
    monkeypatch.undo()
    again = build(toy, tmp_path / "out", BOTH, materialize=True, shard_bytes=60_000)
    assert again == whole
    for path in (tmp_path / "whole/shards").iterdir():
        assert (tmp_path / "out/shards" / path.name).read_bytes() == path.read_bytes()
    assert build(toy, tmp_path / "out", BOTH, materialize=True, shard_bytes=60_000) == whole


def test_another_command_in_the_same_folder_is_refused(toy: Path, tmp_path: Path) -> None:
    build(toy, tmp_path / "S", BOTH)
    with pytest.raises(ValueError, match=r"config.seed: 0 there, 1 here"):
        build(toy, tmp_path / "S", BOTH, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [", "not YAML"),
        ("[]", "expected `sources:`"),
        ("sources: []", "at least one source"),
        ("sources: [{name: image-text}]", "expected {name, importer, path"),
        (
            "sources: [{name: nothing, importer: manifest, path: x}]",
            "has no slot 'nothing'; it has image-text, captions-30s",
        ),
        ("sources: [{name: image-text, path: x}]", "give an importer"),
        ("sources: [{name: image-text, importer: manifest, path: x, weight: much}]", "weight must be a number"),
        (
            "sources: [{name: image-text, importer: manifest, path: x, weight: 1, count: 1}]",
            "exactly one of weight and count",
        ),
        ("sources: [{name: image-text, importer: manifest, path: x, shards: 3}]", "shards must be"),
        ("sources: [{name: a/../../b, slot: image-text, importer: manifest, path: x}]", "a name is a file name too"),
        ("sources: [{name: '', slot: image-text, importer: manifest, path: x}]", "a name is a file name too"),
        ("sources: [{name: .., slot: image-text, importer: manifest, path: x}]", "a name is a file name too"),
    ],
)
def test_a_sources_file_that_fits_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("[", r"\[")):
        load_sources(str(tmp_path / "s.yaml"), stage("stage1"))


def test_recipes_mirror_what_is_published() -> None:
    counts = {name: {slot.name: slot.published_count for slot in make().slots} for name, make in STAGES.items()}
    assert counts["stage1"] == {"image-text": 85_000_000, "captions-30s": 4_200_000}
    assert counts["stage2"]["captions-60s"] == 2_700_000
    assert counts["stage3"]["llava-video-178k"] == 1_600_000
    assert counts["stage4"]["captions-10min-codec"] == counts["stage4"]["captions-10min-768"] == 350_000
    assert [make().sequence_length for make in STAGES.values()] == [32_768, 32_000, 73_728, 147_456]
    frames = {
        slot.name: slot.max_images for make in STAGES.values() for slot in make().slots if "captions" in slot.name
    }
    assert frames == {
        "captions-30s": 30,
        "captions-60s": 60,
        "captions-180s": 90,
        "captions-10min": 384,
        "captions-10min-codec": 384,
        "captions-10min-768": 768,
    }
    for make in STAGES.values():
        for slot in make().slots:
            recipe(slot.tokenize_recipe)


@pytest.mark.ray
def test_ray_workers_build_the_same_stage(toy: Path, tmp_path: Path, local_ray: None) -> None:
    inline = build(toy, tmp_path / "a", BOTH, materialize=True, shard_bytes=60_000)
    config = with_settings(stage("stage1"), ["sequence_length=2048", "packs_per_block=2"])
    options = CurriculumOptions(
        sources=str(toy / "a.yaml"), model=str(toy / "model"), materialize=True, shard_bytes=60_000
    )
    workers = RunOptions(workers=2, progress="off")
    assert build_curriculum(Store(tmp_path / "b"), config, options, workers) == inline
    for path in (tmp_path / "a/shards").iterdir():
        assert (tmp_path / "b/shards" / path.name).read_bytes() == path.read_bytes()


def test_a_record_that_kills_its_workers_is_left_out_alone(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed halves the chunk until one record is to blame, and a resume takes the halves as they are."""
    (toy / "S.yaml").write_text(BOTH.replace("count: 7", "weight: 1"))
    options = CurriculumOptions(sources=str(toy / "S.yaml"), model=str(toy / "model"))
    specs = load_sources(str(toy / "S.yaml"), stage("stage1"))
    store = Store(tmp_path / "S")
    state = SourceState(specs[0], seed=0)
    state.learn()
    for _ in range(2):  # the second time everything is committed
        state.done, state.num_drawn, state.num_rounds = {}, 0, 0
        feed = ChunkFeed(store, [(state, *state.next_round(9))], Counters("curriculum"))
        job = MeasureJob(store=store, config=stage("stage1"), options=options, specs=specs)
        job.warm_up()
        num_tasks = 0
        while not feed.finished:
            task = feed.pull()
            if task is None:
                continue
            num_tasks += 1
            assert task.divisible is (len(task.payload.candidates) > 1)
            if any("A5.0" in candidate.record.messages[1].content for candidate in task.payload.candidates):
                feed.condemned(task, Verdict("worker_died", "killed its worker", 3))
            else:
                feed.done(task, job.run(task.payload)[0], None)
        assert state.num_usable == 8
        assert sum((done.dropped for done in state.done.values()), Counter()) == {"worker_died": 1}
    assert num_tasks == 0
