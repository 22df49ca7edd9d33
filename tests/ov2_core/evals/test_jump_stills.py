"""Stills of the rope: their answers are those of the scene, their scenes those of no clip."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ov2_core.evals.jump_clips import draw_scene, scene_frame, scene_frames
from ov2_core.evals.jump_stills import FIRST_SEED, rope_part, write_jump_stills

SCENE = {"seconds": 2.0, "width_px": 96, "height_px": 96, "plain": True, "turns_per_second": (0.7, 1.4)}


def test_a_frame_alone_is_that_of_the_clip() -> None:
    scene = draw_scene(3, "train", **SCENE)
    frames = list(scene_frames(scene))
    for index in (0, 7, scene.num_frames - 1):
        assert np.array_equal(scene_frame(scene, index), frames[index])
    with pytest.raises(IndexError, match="expected a frame of 0 to"):
        scene_frame(scene, scene.num_frames)


def test_an_event_is_in_part_zero_and_parts_go_round() -> None:
    scene = draw_scene(5, "train", **SCENE)
    first, second = scene.main.rope.event_frames[:2]
    assert rope_part(scene, first) == rope_part(scene, second) == 0
    parts = [rope_part(scene, index) for index in range(first, second + 1)]
    assert set(parts) == set(range(8))
    assert all((b - a) % 8 in (0, 1) for a, b in itertools.pairwise(parts))


def test_rows_name_their_picture_and_its_part(tmp_path: Path) -> None:
    manifest = write_jump_stills(tmp_path, num_stills=6, split="train", **SCENE)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 6
    for number, row in enumerate(rows):
        scene = draw_scene(FIRST_SEED + number, "train", **SCENE)
        picture = np.asarray(Image.open(tmp_path / row["image"]))
        shown = [index for index in range(scene.num_frames) if np.array_equal(scene_frame(scene, index), picture)]
        assert int(row["messages"][1]["content"]) in {rope_part(scene, index) for index in shown}
    with pytest.raises(ValueError, match="at least one still"):
        write_jump_stills(tmp_path, num_stills=0, split="train", **SCENE)
