"""All four stages of toy data, from every importer's files: what lies in no token run is tokenized from the manifests that the
first attempt writes, and each sample's text, times and pixels are held against its source."""

import io
import json
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
from ov2_core.data.importers import open_importer
from ov2_core.data.loader import StageLoader
from ov2_core.data.read_pack import LoadedSample
from ov2_core.data.stage_config import with_settings
from ov2_core.evals.clips import read_canary, write_canary_clip
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.patches import to_block_order
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum
from pipelines.tokenize_videos import tokenize_videos

CLIPS = range(4)
FPS, COLUMNS, ROWS = 10.0, 4, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips 0..3 with video ids 60 + i, stills whose grey is 20 x their number, and files of every dataset about them."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "clips").mkdir()
    for i in CLIPS:
        path = folder / f"clips/c{i}.mp4"
        write_canary_clip(path, video_id=60 + i, num_frames=12 + 4 * i, fps=FPS, columns=COLUMNS, rows=ROWS)
    for i in range(1, 4):
        Image.new("RGB", (56, 28), (20 * i,) * 3).save(folder / f"clips/s{i}.png")
    says = [(f"c{i}.mp4", f"Clip {60 + i}.") for i in CLIPS]
    turns = [[{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": text}] for _, text in says]
    lines(folder / "split.jsonl", [{"video": name, "caption": text} for name, text in says])
    (folder / "llava.json").write_text(
        json.dumps([{"id": i, "video": name, "conversations": turns[i]} for i, (name, _) in enumerate(says)])
    )
    lines(folder / "flash.jsonl", [{"video": name, "conversations": turns[i]} for i, (name, _) in enumerate(says)])
    (folder / "flash.yaml").write_text("- {json_path: flash.jsonl, data_root: clips}")
    tracks = [
        {
            "id": f"t{i}",
            "video": f"c{i}",
            "clip": f"c{i}",
            "video_dataset": "toy",
            "fps": 2,
            "start_frame": 0,
            "end_frame": 2,
            "w": 100,
            "h": 100,
            "exp": f"clip {60 + i}",
            "mask_id": ["1"],
            "points": [{"object_id": "1", "points": [[10.0 * i, 50.0]] * 3}],
        }
        for i in CLIPS
    ]
    lines(folder / "track.jsonl", tracks)
    points = [
        {
            "video_id": f"c{i}",
            "clip_start": 0.0,
            "clip_end": 1.0,
            "label": f"clip {60 + i}",
            "question": f"Point to clip {60 + i}.",
            "count": 1,
            "points": [[{"x": 50.0, "y": 25.0}]],
            "two_fps_timestamps": [0.5],
        }
        for i in CLIPS
    ]
    lines(folder / "point.jsonl", points)
    spatial = [
        {"scene_id": "a", "type": "count", "question": f"Grey {i}?", "answer": i, "frames": [f"clips/s{i}.png"] * 2}
        for i in range(1, 4)
    ]
    lines(folder / "spatial.jsonl", spatial)
    instruct = [
        {
            "id": f"i{i}",
            "image": {"bytes": grey(i), "path": None},
            "conversations": [
                {"from": "human", "value": "<image>\nWhich grey?"},
                {"from": "gpt", "value": f"Grey {i}."},
            ],
            "data_source": "toy",
        }
        for i in range(1, 6)
    ]
    pq.write_table(pa.Table.from_pylist(instruct), folder / "instruct.parquet")
    fine = [
        {
            "images": [{"bytes": grey(i + j), "path": None} for j in range(i % 3)],
            "texts": [{"user": "Which greys?", "assistant": f"From grey {i}."}],
            "source": "toy",
        }
        for i in range(1, 7)
    ]
    pq.write_table(pa.Table.from_pylist(fine), folder / "fine.parquet")
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def grey(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (56, 28), (20 * number,) * 3).save(out, "PNG")
    return out.getvalue()


SOURCES: dict[str, dict[str, Any]] = {
    "image-text": {"importer": "finevision", "path": "fine.parquet"},
    "llava-onevision-instruct": {"path": "instruct.parquet"},
    "finevision": {"path": "fine.parquet"},
    "captions": {"importer": "captions", "path": "split.jsonl", "media_root": "clips"},
    "llava-video-178k": {"path": "llava.json", "media_root": "clips"},
    "videochat-flash": {"path": "flash.yaml"},
    "molmo2-videotrack": {"path": "track.jsonl", "media_root": "clips", "media_template": "{clip}.mp4"},
    "molmo2-videopoint": {"path": "point.jsonl", "media_root": "clips", "media_template": "{video_id}.mp4"},
    "spatial": {"path": "spatial.jsonl"},
}


@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_of_every_source_reads_back_as_its_sources(
    data: Path, tmp_path: Path, name: str, materialize: bool
) -> None:
    config = with_settings(stage(name), ["sequence_length=3000", "packs_per_block=2"])
    sources = []
    for slot in config.slots:
        source = SOURCES.get(slot.name) or SOURCES["captions"]
        paths = {key: str(data / source[key]) for key in ("path", "media_root") if key in source}
        sources.append({"name": slot.name, "weight": 1, **source, **paths})
    options: dict[str, Any] = {"model": str(data / "model"), "materialize": materialize, "shard_bytes": 100_000}

    def build() -> Any:
        (tmp_path / "sources.yaml").write_text(json.dumps({"sources": sources}))  # JSON is YAML
        chosen = CurriculumOptions(sources=str(tmp_path / "sources.yaml"), **options)
        return build_curriculum(Store(tmp_path / "stage"), config, chosen, INLINE)

    with pytest.raises(ValueError, match="media in no token run: ov2 tokenize --manifest"):
        build()
    for source in sources:
        manifest = tmp_path / f"stage/missing/{source['name']}.jsonl"
        if manifest.exists():
            run = tmp_path / f"run-{source['name']}"
            tokenize_videos(str(manifest), Store(run), recipe(config.slot(source["name"]).tokenize_recipe), INLINE)
            source["shards"] = str(run)
    record = build()
    assert [source.name for source in record.sources] == [slot.name for slot in config.slots]
    assert record.missing_slots == []
    assert {source.num_samples for source in record.sources} == {3 if name == "stage4" else 4}

    texts = texts_of(sources)
    loader = StageLoader(tmp_path / "stage", batch_size=2, num_workers=1)
    seen = []
    for batch in loader:
        for sample in (sample for pack in batch.packs for sample in pack.samples):
            seen.append((sample.source, sample.id))
            assert [(turn.role, turn.content) for turn in sample.messages] == texts[seen[-1]]
            check_pixels(sample)
    assert len(seen) == len(set(seen)) == record.packing.num_samples


def texts_of(sources: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(source, id) -> turns, from the importers."""
    found = {}
    for source in sources:
        extra = {key: source[key] for key in ("media_root", "media_template") if key in source}
        importer = source.get("importer") or stage_importer(source["name"])
        for item in open_importer(importer, source["path"], source=source["name"], **extra):
            if item.record is not None:
                found[source["name"], item.record.id] = [(t.role, t.content) for t in item.record.messages]
    return found


def stage_importer(slot: str) -> str:
    return next(s.importers[0] for make in STAGES.values() for s in make().slots if s.name == slot)


def check_pixels(sample: LoadedSample) -> None:
    """What the text says of the media is what they show, at the times that the positions say."""
    text = " ".join(turn.content for turn in sample.messages)
    words = text.replace(".", " ").replace("<", " ").split()
    for number, visual in enumerate(sample.media):
        if visual.kind == "image":
            said = sample.messages[-1].content.rstrip(".").split()[-1]
            expected = int(said) + (number if "From grey" in text else 0)
            assert abs(float(visual.image(0).mean()) - 20 * expected) < 2
            continue
        position = [word.lower() for word in words].index("clip")
        said_id = int("".join(c for c in words[position + 1] if c.isdigit()))
        images = np.stack([visual.image(i) for i in range(visual.num_images)])
        blocks = images.reshape(len(images), ROWS, 28, COLUMNS, 28, 3).swapaxes(2, 3).reshape(-1, 28, 28, 3)
        shown = [read_canary(block) for block in blocks]
        assert {canary.video_id for canary in shown} == {said_id}
        places = to_block_order(visual.positions_NP3, rows=2 * ROWS, columns=2 * COLUMNS, merge=2)
        assert [[c.frame, 2 * c.row, 2 * c.column] for c in shown] == places.reshape(-1, 3)[::4].tolist()
        assert visual.fps == FPS
        assert list(visual.runs().seconds_R) == sorted({t / FPS for t in places[..., 0].reshape(-1).tolist()})
