"""Clips of moving shapes with four questions each, whose answers only the picture tells: does a model learn to see?

Enters: a seed and a split. Leaves: video files, and a manifest whose rows carry the conversation. In every clip a coloured square
crosses a grey texture among one to four white dots, and once the whole picture flashes:

    Colour of the square?   red, green, blue, yellow        any frame tells
    Direction?              left, right, up, down           where the square starts and ends; no middle frame tells
    Number of dots?         1, 2, 3, 4
    Flash?                  early, middle, late             third of the clip

The four are drawn independently and evenly, so neither one answer nor the question's place tells another; chance is one in 4, 4,
4 and 3. Train and held-out clips differ in seeds, in the size and speed of the square and in the frames that flash.

H x W pixels.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ov2_core.evals.clips import RGB, write_clip

Split = Literal["train", "held_out"]

SIDE_PX, NUM_FRAMES, FPS = 56, 24, 8.0
FLASH_FRAMES = 4
DOT_PX, CELL_PX = 9, 14

COLOURS = {"red": (220, 30, 30), "green": (30, 190, 30), "blue": (40, 60, 230), "yellow": (230, 220, 30)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
THIRDS = ("early", "middle", "late")
QUESTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "colour": ("Colour of the square?", tuple(COLOURS)),
    "direction": ("Direction?", tuple(DIRECTIONS)),
    "count": ("Number of dots?", ("1", "2", "3", "4")),
    "event": ("Flash?", THIRDS),
}
"""Name to its text and answers; chance is one in so many."""

_SIZES_PX: dict[Split, tuple[int, ...]] = {"train": (16, 18, 20), "held_out": (17, 19)}
_SPEEDS_PX: dict[Split, tuple[float, ...]] = {"train": (1.3, 1.4, 1.5), "held_out": (1.35, 1.45)}
_FLASH_PARITY: dict[Split, int] = {"train": 0, "held_out": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a clip shows."""

    seed: int
    split: Split
    answers: dict[str, str]
    """Of each question."""
    size_px: int
    speed_px: float
    """A frame."""
    start_xy_px: tuple[float, float]
    """Upper left corner of the square in the first frame."""
    flash_frame: int
    """First frame that flashes."""
    dots_xy_px: tuple[tuple[int, int], ...]
    """Upper left corners."""


def draw_scene(seed: int, split: Split) -> Scene:
    """The scene of a seed: answers even and independent, all else from the split's own values."""
    rng = np.random.default_rng([("train", "held_out").index(split), seed])
    answers = {name: str(rng.choice(choices)) for name, (_, choices) in QUESTIONS.items()}
    third = NUM_FRAMES // 3
    first = THIRDS.index(answers["event"]) * third
    starts = [f for f in range(first, first + third - FLASH_FRAMES + 1) if f % 2 == _FLASH_PARITY[split]]
    cells = rng.choice((SIDE_PX // CELL_PX) ** 2, int(answers["count"]), replace=False)
    dots = []
    for cell in cells:
        row, column = divmod(int(cell), SIDE_PX // CELL_PX)
        x, y = rng.integers(1, CELL_PX - DOT_PX, 2)
        dots.append((column * CELL_PX + int(x), row * CELL_PX + int(y)))
    size_px, speed_px = int(rng.choice(_SIZES_PX[split])), float(rng.choice(_SPEEDS_PX[split]))
    room_px, travel_px = SIDE_PX - size_px, speed_px * (NUM_FRAMES - 1)
    step_x, step_y = DIRECTIONS[answers["direction"]]
    start = [room_px * float(rng.random()) for _ in range(2)]
    along = 0 if step_x else 1
    spare_px = (room_px - travel_px) * float(rng.random())
    start[along] = spare_px if step_x + step_y > 0 else room_px - spare_px
    return Scene(
        seed=seed,
        split=split,
        answers=answers,
        size_px=size_px,
        speed_px=speed_px,
        start_xy_px=(start[0], start[1]),
        flash_frame=int(rng.choice(starts)),
        dots_xy_px=tuple(dots),
    )


def scene_frames(scene: Scene) -> Iterator[RGB]:
    """The frames, uint8 [56, 56, 3]."""
    rng = np.random.default_rng([2, ("train", "held_out").index(scene.split), scene.seed])
    coarse = rng.integers(70, 110, (SIDE_PX // 4, SIDE_PX // 4, 1), dtype=np.uint8)
    background = np.broadcast_to(coarse.repeat(4, axis=0).repeat(4, axis=1), (SIDE_PX, SIDE_PX, 3))
    step_x, step_y = DIRECTIONS[scene.answers["direction"]]
    for index in range(NUM_FRAMES):
        frame = background.copy()
        x = round(scene.start_xy_px[0] + index * scene.speed_px * step_x)
        y = round(scene.start_xy_px[1] + index * scene.speed_px * step_y)
        frame[y : y + scene.size_px, x : x + scene.size_px] = COLOURS[scene.answers["colour"]]
        for left, top in scene.dots_xy_px:
            _dot(frame[top : top + DOT_PX, left : left + DOT_PX])
        if scene.flash_frame <= index < scene.flash_frame + FLASH_FRAMES:
            frame = 255 - (255 - frame) // 3
        yield frame


def write_shape_clips(
    folder: str | Path,
    *,
    num_clips: int,
    split: Split,
    seed: int = 0,
    questions: Sequence[str] = tuple(QUESTIONS),
    initials: bool = False,
) -> Path:
    """Clips of seeds seed x 1,000,000 onwards, and their manifest (its path is returned).

    A row's conversation asks each of the questions in an order of its own. With `initials` answers are their first letters, which
    differ: a model of random weights, which must learn to spell too, is done sooner.

    Raises:
        ValueError: an unknown question.
    """
    if unknown := set(questions) - set(QUESTIONS):
        raise ValueError(f"unknown questions {sorted(unknown)}; there are {', '.join(QUESTIONS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(seed * 1_000_000, seed * 1_000_000 + num_clips):
        scene = draw_scene(number, split)
        name = f"{split}-{number:08d}"
        write_clip(folder / f"{name}.mp4", scene_frames(scene), fps=FPS)
        order = np.random.default_rng([3, number]).permutation(len(questions))
        asked = [questions[i] for i in order]
        rows.append(
            {
                "video": f"{name}.mp4",
                "id": name,
                "messages": conversation(scene, asked, initials=initials),
                "tags": asked,
            }
        )
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def conversation(scene: Scene, questions: Sequence[str], *, initials: bool = False) -> list[dict[str, str]]:
    """Questions and answers about a scene, the clip before the first."""
    turns = []
    for number, name in enumerate(questions):
        opening = "<video>\n" if number == 0 else ""
        turns.append({"role": "user", "content": opening + QUESTIONS[name][0]})
        turns.append({"role": "assistant", "content": scene.answers[name][: 1 if initials else None]})
    return turns


def _dot(patch_HW3: npt.NDArray[np.uint8]) -> None:
    """A white disc, in place."""
    centre = (DOT_PX - 1) / 2
    rows, columns = np.indices((DOT_PX, DOT_PX))
    distance = np.hypot(rows - centre, columns - centre)
    patch_HW3[distance <= centre + 0.3] = 255
