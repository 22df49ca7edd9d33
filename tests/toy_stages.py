"""Toy data for all four stages: files of every dataset that a stage recipe names, and a stage made of them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_runs import INLINE
from PIL import Image

from jobs.recipes import stage
from ov2_core.config import recipe
from ov2_core.data.stage_config import StageConfig, with_settings
from ov2_core.evals.clips import write_canary_clip
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum
from pipelines.tokenize_videos import tokenize_videos
from schemas.stage import StageRecord

CLIPS = range(4)
FPS, COLUMNS, ROWS = 10.0, 4, 3


def write_datasets(folder: Path) -> Path:
    """Clips 0..3 with video ids 60 + i, stills whose grey is 20 x their number, files of every dataset about them, and model/ with
    the processor of `tiny`."""
    (folder / "clips").mkdir(parents=True)
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


def toy_config(name: str) -> StageConfig:
    """A stage recipe in short packs."""
    return with_settings(stage(name), ["sequence_length=3000", "packs_per_block=2"])


def build_toy_stage(
    data: Path, folder: Path, name: str, *, materialize: bool = False
) -> tuple[Path, StageRecord, list[dict[str, Any]]]:
    """A stage of all slots of a recipe, from the files that write_datasets has made.

    The first attempt says which media lie in no token run and writes their manifests; they are tokenized, and the second builds.

    Returns:
        STAGE, its record, and the sources as listed.
    """
    config = toy_config(name)
    sources = []
    for slot in config.slots:
        source = SOURCES.get(slot.name) or SOURCES["captions"]
        paths = {key: str(data / source[key]) for key in ("path", "media_root") if key in source}
        sources.append({"name": slot.name, "weight": 1, **source, **paths})
    options: dict[str, Any] = {"model": str(data / "model"), "materialize": materialize, "shard_bytes": 100_000}

    def build() -> StageRecord:
        (folder / "sources.yaml").write_text(json.dumps({"sources": sources}))  # JSON is YAML
        chosen = CurriculumOptions(sources=str(folder / "sources.yaml"), **options)
        return build_curriculum(Store(folder / "stage"), config, chosen, INLINE)

    with pytest.raises(ValueError, match="media in no token run: ov2 tokenize --manifest"):
        build()
    for source in sources:
        manifest = folder / f"stage/missing/{source['name']}.jsonl"
        if manifest.exists():
            run = folder / f"run-{source['name']}"
            tokenize_videos(str(manifest), Store(run), recipe(config.slot(source["name"]).tokenize_recipe), INLINE)
            source["shards"] = str(run)
    return folder / "stage", build(), sources
