"""A small stage to train on: text, codec canvases, uniform frames and a still, of three sources; for `tiny` and its bytes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feature_runs import INLINE, NUM_CLIPS

from jobs.recipes import stage
from ov2_core.config import recipe, with_overrides, with_settings
from ov2_core.model.byte_tokenizer import byte_tokenizer
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.storage.files import Store
from pipelines.build_curriculum import CurriculumOptions, build_curriculum
from pipelines.tokenize_videos import tokenize_videos

NUM_TEXTS = 24
SOURCES = """
sources:
  - {{name: spatial, importer: token-shards, path: {codec}, weight: 6}}
  - {{name: captions-10min-768, importer: token-shards, path: {frames}, weight: 3}}
  - {{name: finevision, path: text.parquet, weight: 24}}
"""


def make_train_stage(folder: Path, token_run: Path, *, materialize: bool = False) -> Path:
    """STAGE, an index (or with `materialize` shards) of 33 samples in some 20 packs of up to 1400 tokens.

    Sources: `spatial` (5 clips as codec canvases and a still, of token_run), `captions-10min-768` (3 of the clips as 4 frames),
    `finevision` (24 texts).
    """
    LlavaOnevision2Processor(byte_tokenizer()).save_pretrained(folder / "model")
    make_frames_run(folder, token_run)
    rows = [
        {"images": [], "texts": [{"user": f"Say {i}.", "assistant": f"{i} " * (60 + 16 * i)}], "source": "t"}
        for i in range(NUM_TEXTS)
    ]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turn = pa.struct([("user", pa.string()), ("assistant", pa.string())])
    schema = pa.schema([("images", pa.list_(picture)), ("texts", pa.list_(turn)), ("source", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "text.parquet")
    (folder / "sources.yaml").write_text(SOURCES.format(codec=token_run, frames=folder / "frames-run"))
    config = with_settings(stage("stage4"), ["sequence_length=1400", "packs_per_block=2"])
    options = CurriculumOptions(
        sources=str(folder / "sources.yaml"), model=str(folder / "model"), materialize=materialize
    )
    build_curriculum(Store(folder / "STAGE"), config, options, INLINE)
    return folder / "STAGE"


def make_frames_run(folder: Path, token_run: Path) -> Path:
    """A token run of three of token_run's clips as 4 uniform frames each."""
    clips = [token_run.parent / f"clip-{i}.mp4" for i in range(NUM_CLIPS - 2)]
    rows = [{"video": str(clip), "id": clip.stem, "caption": f"Frames of {clip.stem}."} for clip in clips]
    manifest = folder / "frames.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = with_overrides(recipe("uniform-4"), {"shards.max_samples": "2"})
    tokenize_videos(str(manifest), Store(folder / "frames-run"), config, INLINE)
    return folder / "frames-run"
