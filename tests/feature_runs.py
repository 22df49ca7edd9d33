"""Small models and token runs for the tests of features: clips whose pixels name them, encoders whose outputs can be read."""

import json
from pathlib import Path

import numpy as np
import torch

from ov2_core.config import recipe, with_overrides
from ov2_core.evals.clips import write_canary_clip
from ov2_core.model import LlavaOnevision2Config, LlavaOnevision2ForConditionalGeneration
from ov2_core.model.weights import save_weights
from ov2_core.storage.files import Store
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos

INLINE = RunOptions(workers=0, progress="off")
NUM_FRAMES = (55, 22, 66, 33, 44)
"""Of each clip: so that shards cut in the manifest's order are of about one cost, and stay in that order."""
NUM_CLIPS = len(NUM_FRAMES)
COLUMNS, ROWS = 5, 4
IMAGE_TOKEN = 500


def make_token_run(folder: Path) -> Path:
    """RUN of clips "clip-0" .. "clip-4" (video id 100 + i, each of its own length) and one still, two samples a shard."""
    rows = []
    for i in range(NUM_CLIPS):
        path = folder / f"clip-{i}.mp4"
        write_canary_clip(path, video_id=100 + i, num_frames=NUM_FRAMES[i], fps=10.0, columns=COLUMNS, rows=ROWS)
        rows.append({"video": str(path), "id": f"clip-{i}", "caption": f"Canary {i}."})
    from PIL import Image

    still = folder / "still.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)).save(still)
    rows.insert(2, {"image": str(still), "id": "still", "caption": "Noise."})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = with_overrides(recipe("codec-8"), {"shards.max_samples": "2"})
    tokenize_videos(str(manifest), Store(folder / "run"), config, INLINE)
    return folder / "run"


def make_model(folder: Path, *, seed: int = 0, **vision: int) -> Path:
    """A folder with a tiny model of random weights, large enough that a slip shows."""
    config = LlavaOnevision2Config.from_preset(
        "tiny", text_config={"vocab_size": 512}, vision_config=vision, image_token_id=IMAGE_TOKEN
    )
    torch.manual_seed(seed)
    model = LlavaOnevision2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    save_weights(model, folder)
    config.save_pretrained(folder)
    return folder
