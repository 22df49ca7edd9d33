"""Clips of moving shapes show what their answers say, evenly, and the two splits share nothing."""

import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ov2_core.evals.moving_shapes import (
    COLOURS,
    DIRECTIONS,
    FLASH_FRAMES,
    NUM_FRAMES,
    QUESTIONS,
    SIDE_PX,
    THIRDS,
    conversation,
    draw_scene,
    scene_frames,
    write_shape_clips,
)


def seen(frames: np.ndarray) -> dict[str, str]:
    """The answers, read from the pixels alone."""
    brightness = frames.mean(axis=(1, 2, 3))
    flashes = np.flatnonzero(brightness > np.median(brightness) + 40)
    assert len(flashes) == FLASH_FRAMES
    calm = [i for i in range(len(frames)) if i not in set(flashes.tolist())]
    spread = np.ptp(frames[calm].astype(int), axis=3)
    centres = [np.argwhere(s > 60).mean(axis=0) for s in spread]
    rise, run = (centres[-1] - centres[0]) / SIDE_PX
    axis = (0, np.sign(rise)) if abs(rise) > abs(run) else (np.sign(run), 0)
    shown = frames[calm[0]][spread[0] > 100].mean(axis=0)
    return {
        "colour": min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - shown).sum())),
        "direction": next(name for name, step in DIRECTIONS.items() if step == axis),
        "count": str(round((frames[calm].min(axis=3) > 240).sum() / len(calm) / 69)),
        "event": THIRDS[int(flashes[0]) * 3 // NUM_FRAMES],
    }


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_pixels_alone_tell_every_answer(split: str) -> None:
    for seed in range(60):
        scene = draw_scene(seed, split)
        assert seen(np.stack(list(scene_frames(scene)))) == scene.answers, seed


def test_answers_are_even_and_tell_nothing_of_each_other() -> None:
    scenes = [draw_scene(seed, "train").answers for seed in range(4000)]
    for first, second in product(QUESTIONS, QUESTIONS):
        pairs = Counter((answers[first], answers[second]) for answers in scenes)
        expected = len(scenes) / len(QUESTIONS[first][1]) / (1 if first == second else len(QUESTIONS[second][1]))
        assert max(abs(count - expected) for count in pairs.values()) < 5 * expected**0.5


def test_splits_share_no_size_no_speed_no_flash_and_no_texture() -> None:
    train, held_out = ([draw_scene(seed, split) for seed in range(200)] for split in ("train", "held_out"))
    for parameter in ("size_px", "speed_px", "flash_frame"):
        assert not {getattr(s, parameter) for s in train} & {getattr(s, parameter) for s in held_out}
    first, other = (next(iter(scene_frames(scenes[0]))) for scenes in (train, held_out))
    assert not np.array_equal(first, other)


def test_a_manifest_says_who_is_asked_what_in_an_order_of_its_own(tmp_path: Path) -> None:
    manifest = write_shape_clips(tmp_path, num_clips=6, split="held_out", seed=3)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        scene = draw_scene(3_000_000 + number, "held_out")
        assert row["messages"] == conversation(scene, row["tags"])
        assert sorted(row["tags"]) == sorted(QUESTIONS)
        assert row["messages"][0]["content"].startswith("<video>\n")
        assert (tmp_path / row["video"]).stat().st_size > 0
    assert len({tuple(row["tags"]) for row in rows}) > 1
    with pytest.raises(ValueError, match="unknown questions"):
        write_shape_clips(tmp_path, num_clips=1, split="train", questions=["size"])
