"""Generated clips of the kinds that a corpus holds beside rope clips: cuts, a screen, low light, sport, an orbiting camera.

Enters: the name of a scene, a seed, a size and a rate. Leaves: frames one at a time (rope clips in low light: with their truth).
Design: pictures are drawn, not filmed, so nothing is licensed and a benchmark on a fresh machine has the same clips; each scene
has the one property that it is named for and nothing else to look at. Drawn clips are cleaner than filmed ones: read numbers
on real clips beside them.

Shape letters: H x W pixels of a frame.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ov2_core.evals.clips import RGB, ClipTruth, rope_clip, texture

Scene = Literal["shots", "screen", "low-light", "sport", "orbit"]

_PAPER, _INK, _GRASS = (250, 250, 246), (30, 30, 34), (54, 118, 52)


def varied_clip(
    scene: Scene, *, seed: int, seconds: float, fps: float, width_px: int, height_px: int
) -> tuple[ClipTruth, Iterator[RGB]]:
    """Truth and frames of a scene.

    shots: hard cuts every 1 to 3 s between textures, each with its own slow camera and discs that move.
    screen: a page of text that is typed on, scrolled in bursts and covered by a window; a pointer wanders.
    low-light: a rope clip at a fifth of the light, with sensor noise; the one scene with events.
    sport: runners and a ball on a pitch, the camera follows the ball.
    orbit: three layers at different depths pass each other as a hand-held camera circles.

    Raises:
        ValueError: an unknown scene, fewer than one frame, or a frame below 64 x 64 px.
    """
    num_frames = round(seconds * fps)
    if scene not in get_args(Scene):
        raise ValueError(f"unknown scene {scene!r}; expected one of {', '.join(get_args(Scene))}")
    if num_frames < 1 or min(width_px, height_px) < 64:
        raise ValueError(f"expected at least 1 frame of at least 64x64 px, got {num_frames} of {width_px}x{height_px}")
    rng = np.random.default_rng(seed)
    if scene == "low-light":
        truth, frames = rope_clip(seed=seed, seconds=seconds, fps=fps, width_px=width_px, height_px=height_px)
        return truth, _in_low_light(rng, frames)
    truth = ClipTruth(
        width_px=width_px, height_px=height_px, pts_seconds=tuple(float(i / fps) for i in range(num_frames))
    )
    draw: dict[str, Callable[..., Iterator[RGB]]] = {
        "shots": _shots,
        "screen": _screen,
        "sport": _sport,
        "orbit": _orbit,
    }
    return truth, draw[scene](rng, num_frames, fps, width_px, height_px)


def _in_low_light(rng: np.random.Generator, frames: Iterator[RGB]) -> Iterator[RGB]:
    """A fifth of the light; noise of the photons and of the read-out, as strong as a phone's at night."""
    for frame in frames:
        dark = frame.astype(np.float32) * 0.2
        noise = rng.standard_normal(frame.shape, dtype=np.float32)
        yield np.clip(dark + noise * np.sqrt(9 + 0.6 * dark) + 8, 0, 255).astype(np.uint8)


def _shots(rng: np.random.Generator, num_frames: int, fps: float, width: int, height: int) -> Iterator[RGB]:
    left = 0
    for _ in range(num_frames):
        if left == 0:
            left = max(2, round(fps * rng.uniform(1, 3)))
            tint = rng.uniform(0.4, 1.0, 3).astype(np.float32)
            world = (texture(rng, height + 120, width + 120) * tint).astype(np.uint8)
            velocity = rng.uniform(-40, 40, 2) * (rng.random() < 0.6) / fps
            view = np.array([60.0, 60.0])
            discs = rng.uniform((0, 0, -160, -90), (width, height, 160, 90), (4, 4))
            colours = rng.integers(40, 255, (4, 3))
        left -= 1
        view = np.clip(view + velocity, 0, 119)
        x, y = (int(v) for v in view)
        picture = Image.fromarray(world[y : y + height, x : x + width])
        pen = ImageDraw.Draw(picture)
        radius = height / 14
        for disc, colour in zip(discs, colours, strict=True):
            disc[:2] += disc[2:] / fps
            cx, cy = disc[:2] % (width, height)
            pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=tuple(int(c) for c in colour))
        yield np.asarray(picture)


def _screen(rng: np.random.Generator, num_frames: int, fps: float, width: int, height: int) -> Iterator[RGB]:
    size = max(10, height // 45)
    font = ImageFont.load_default(size)
    line_px = round(size * 1.5)
    page_height = height * 4
    page = Image.new("RGB", (width, page_height), _PAPER)
    pen = ImageDraw.Draw(page)
    for y in range(line_px, page_height - line_px, line_px):
        if rng.random() < 0.85:
            pen.text((width // 12, y), _words(rng, int(rng.integers(4, 14))), fill=_INK, font=font)
    window = Image.fromarray(texture(rng, height // 2, width // 2))
    scroll, speed, typed, pointer = 0.0, 0.0, "", np.array([width / 2, height / 2])
    goal = pointer.copy()
    for index in range(num_frames):
        second = index / fps
        if index % round(fps * 2) == 0:
            speed = rng.uniform(200, 900) if rng.random() < 0.5 else 0.0
            goal = rng.uniform((0, 0), (width, height))
        if second % 2 < 0.6:
            scroll = min(scroll + speed / fps, page_height - height)
        if index % max(1, round(fps / 8)) == 0:
            typed = (typed + _words(rng, 1) + " ")[-60:]
        pointer += (goal - pointer) * min(1.0, 4 / fps)
        picture = page.crop((0, int(scroll), width, int(scroll) + height))
        pen = ImageDraw.Draw(picture)
        bar = height - 2 * line_px
        pen.rectangle((0, bar, width, height), fill=(225, 228, 235))
        pen.text((width // 20, bar + size // 2), typed, fill=_INK, font=font)
        if second % 5 > 3.5:
            picture.paste(window, (width // 3, height // 5))
        tip_x, tip_y = (float(v) for v in pointer)
        pen.polygon([(tip_x, tip_y), (tip_x, tip_y + 1.4 * size), (tip_x + size, tip_y + size)], fill=(0, 0, 0))
        yield np.asarray(picture)


def _words(rng: np.random.Generator, count: int) -> str:
    letters = np.array(list("etaoinshrdlucmfwyp"))
    return " ".join("".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(count))


def _sport(rng: np.random.Generator, num_frames: int, fps: float, width: int, height: int) -> Iterator[RGB]:
    pitch_width = width * 2
    pitch = (texture(rng, height, pitch_width).astype(np.float32) - 128) * 0.12 + np.array(_GRASS)
    world = Image.fromarray(np.clip(pitch, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(world)
    for x in range(0, pitch_width, pitch_width // 8):
        pen.line((x, 0, x, height), fill=(235, 240, 235), width=max(2, height // 160))
    places = rng.uniform((0, height * 0.2), (pitch_width, height * 0.95), (14, 2))
    ball = np.array([pitch_width / 2, height / 2])
    target, unit, view = 0, height / 26, pitch_width / 4
    for index in range(num_frames):
        if index % max(1, round(fps * 0.9)) == 0:
            target = int(rng.integers(len(places)))
        ball += (places[target] - ball) * min(1.0, 5 / fps)
        drawn_to_ball = (ball - places) / (np.linalg.norm(ball - places, axis=1, keepdims=True) + 40)
        places += (drawn_to_ball * height * 0.35 + rng.normal(0, height * 0.25, places.shape)) / fps
        places = np.clip(places, (0, height * 0.2), (pitch_width, height * 0.98))
        view += (np.clip(ball[0] - width / 2, 0, pitch_width - width) - view) * min(1.0, 2.5 / fps)
        left = int(view)
        picture = world.crop((left, 0, left + width, height))
        pen = ImageDraw.Draw(picture)
        for number, (x, y) in sorted(enumerate(places), key=lambda item: float(item[1][1])):
            stride = np.sin(index / fps * 2 * np.pi * 2.6 + number) * unit * 0.6
            shirt = (205, 40, 45) if number % 2 else (45, 70, 200)
            for side in (-1, 1):
                pen.line(
                    (x - left, y - unit, x - left + side * stride, y), fill=(235, 200, 170), width=int(unit * 0.35)
                )
            pen.rectangle((x - left - unit * 0.5, y - unit * 2.6, x - left + unit * 0.5, y - unit), fill=shirt)
            pen.ellipse(
                (x - left - unit * 0.4, y - unit * 3.4, x - left + unit * 0.4, y - unit * 2.6), fill=(230, 190, 160)
            )
        pen.ellipse((ball[0] - left - 5, ball[1] - 5, ball[0] - left + 5, ball[1] + 5), fill=(255, 255, 255))
        yield np.asarray(picture)


def _orbit(rng: np.random.Generator, num_frames: int, fps: float, width: int, height: int) -> Iterator[RGB]:
    margin = width // 3
    far = Image.fromarray(texture(rng, height + margin, width + 2 * margin))
    layers = [_pillars(rng, height + margin, width + 2 * margin, count) for count in (7, 4)]
    phases = rng.random(4)
    for index in range(num_frames):
        second = index / fps
        turn = np.sin(2 * np.pi * second / 9)
        shake = [0.03 * np.sin(2 * np.pi * (second * f + p)) for f, p in zip((0.7, 1.9, 0.5, 2.3), phases, strict=True)]
        picture = Image.new("RGB", (width, height))
        for depth, layer in zip((0.25, 0.55, 0.95), (far, *layers), strict=True):
            x = margin * (1 + depth * (turn + shake[0] + shake[1]) / 1.1)
            y = margin / 2 * (1 + depth * (shake[2] + shake[3]) * 2)
            view = layer.crop((int(x), int(y), int(x) + width, int(y) + height))
            picture.paste(view, (0, 0), view if view.mode == "RGBA" else None)
        yield np.asarray(picture)


def _pillars(rng: np.random.Generator, height: int, width: int, count: int) -> Image.Image:
    """Textured uprights on nothing, as RGBA."""
    picture = np.dstack([texture(rng, height, width), np.zeros((height, width), np.uint8)])
    for x in rng.integers(0, width, count):
        half = int(rng.integers(width // 60, width // 25))
        top = int(rng.integers(0, height // 2))
        picture[top:, max(0, x - half) : x + half, :3] = (
            picture[top:, max(0, x - half) : x + half, :3] * rng.uniform(0.4, 1.0, 3)
        ).astype(np.uint8)
        picture[top:, max(0, x - half) : x + half, 3] = 255
    return Image.fromarray(picture)
