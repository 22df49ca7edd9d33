"""Single frames of rope jumping with where the rope stands: what a model may learn of pictures before it is asked for times.

Enters: a split, how many, sizes. Leaves: PNG files and a manifest whose rows carry the conversation. Each frame is of a scene of
its own (jump_clips.py), whose seeds no clip has. The answer is the eighth of the turn, "0" to "7", counted from the rope behind the
legs: 0 is from a sixteenth of a turn before to a sixteenth after it.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ov2_core.evals.jump_clips import JumpScene, Split, draw_scene, scene_frame

QUESTION = "Where is the rope?"
FIRST_SEED = 1_000_000_000
"""Clips have the seeds below."""
NUM_PARTS = 8


def write_jump_stills(folder: str | Path, *, num_stills: int, split: Split, **scene_options: Any) -> Path:
    """Returns manifest.jsonl.

    Args:
        scene_options: as `draw_scene`.

    Raises:
        ValueError: no stills, or as `draw_scene`.
    """
    if num_stills < 1:
        raise ValueError(f"expected at least one still, got {num_stills}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num_stills):
        scene = draw_scene(FIRST_SEED + number, split, **scene_options)
        index = int(np.random.default_rng([10, scene.seed]).integers(scene.num_frames))
        name = f"jump-still-{split}-{number:08d}"
        Image.fromarray(scene_frame(scene, index)).save(folder / f"{name}.png")
        messages = [
            {"role": "user", "content": f"<image>\n{QUESTION}"},
            {"role": "assistant", "content": str(rope_part(scene, index))},
        ]
        rows.append({"image": f"{name}.png", "id": name, "messages": messages})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def rope_part(scene: JumpScene, index: int) -> int:
    """The eighth of its turn in which the rope of the main character stands, 0 to 7; 0 is behind the legs."""
    turn = scene.main.rope.phase(index) % 1.0
    return math.floor(turn * NUM_PARTS + 0.5) % NUM_PARTS
