"""Clips of rope jumping as files: videos, a manifest whose rows carry the conversation, and truth.jsonl for `ov2 eval`.

Enters: a split, how many, a seed, sizes. Leaves: a folder. The scenes are those of jump_clips.py, one a seed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ov2_core.evals.clips import write_clip
from ov2_core.evals.jump_clips import JumpScene, Split, draw_scene, event_box, scene_frames
from ov2_core.evals.jumpscore import PROMPT, format_times


def write_jump_clips(
    folder: str | Path,
    *,
    num_clips: int,
    split: Split,
    seed: int = 0,
    timestamp_decimal: int = 2,
    on_clip: Callable[[int], None] = lambda number: None,
    **scene_options: Any,
) -> tuple[Path, Path]:
    """Clips of seeds seed x 1,000,000 onwards; returns manifest.jsonl (rows with messages) and truth.jsonl.

    Args:
        on_clip: called with the number of clips written so far.
        scene_options: as `draw_scene`.

    Raises:
        ValueError: no clips, more than 1,000,000, or as `draw_scene`.
    """
    if not 1 <= num_clips <= 1_000_000 or seed < 0:
        raise ValueError(f"expected 1 to 1,000,000 clips and a seed >= 0, got {num_clips} and {seed}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows, truths = [], []
    for number in range(seed * 1_000_000, seed * 1_000_000 + num_clips):
        scene = draw_scene(number, split, **scene_options)
        name = f"jump-{split}-{number:08d}"
        options = {"crf": str(scene.crf)}
        write_clip(folder / f"{name}.mp4", scene_frames(scene), fps=scene.fps, options=options)
        answer = format_times(scene.event_seconds, decimals=timestamp_decimal)
        messages = [
            {"role": "user", "content": f"<video>\n{PROMPT}"},
            {"role": "assistant", "content": answer},
        ]
        rows.append({"video": f"{name}.mp4", "id": name, "messages": messages, "tags": scene.tags})
        truths.append({"id": name, "video": f"{name}.mp4", "question": PROMPT, "answer": answer} | _truth_fields(scene))
        on_clip(len(rows))
    paths = folder / "manifest.jsonl", folder / "truth.jsonl"
    for path, lines in zip(paths, (rows, truths), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def _truth_fields(scene: JumpScene) -> dict[str, Any]:
    frames = scene.main.rope.event_frames
    return {
        "camera": scene.camera,
        "tags": scene.tags,
        "split": scene.split,
        "fps": str(scene.fps),
        "num_frames": scene.num_frames,
        "duration_seconds": float(scene.num_frames / scene.fps),
        "width_px": scene.width_px,
        "height_px": scene.height_px,
        "event_frames": list(frames),
        "event_seconds": [round(second, 6) for second in scene.event_seconds],
        "event_boxes_xyxy_px": [event_box(scene, frame) for frame in frames],
        "miss_frames": list(scene.main.rope.miss_frames),
    }
