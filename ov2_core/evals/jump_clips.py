"""Scenes like JumpScore's with truth exact to a frame: people who jump a rope before many cameras.

Enters: a seed, a split, sizes. Leaves: a scene, its frames and events; jump_dataset.py writes them as files.
One turn of the rope: behind the legs (phase 0), up behind the back, over the head (1/2), down in front, under the feet, behind the
legs again (1). A jump starts in the frame in which the rope, having passed under the feet, first stands behind the legs: phases
are whole there, linear in between, and event frames are drawn first, so truth has no rounding. In a miss the rope stops at the
shins, is taken back over the head and comes again: it never passes, and there is no event. Some clips have none at all.

Tempo changes every few turns. Cameras stand, pan, shake or zoom; poles and passers-by cover the jumper, who jumps on; a ball, a
passer-by or a second, smaller jumper with a rope of their own distract. Train and held-out clips differ in seeds, clothes, rope
colours, sizes of the figure, frame rates and grain of the background; tempi and events are of one distribution.

H x W pixels of a frame; world coordinates are pixels of the unmoved camera's frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ov2_core.evals.clips import RGB, texture

Split = Literal["train", "heldout"]
Camera = Literal["static", "panning", "shaking", "zooming"]
Colour = tuple[int, int, int]
Shape = tuple[Literal["line", "disc"], list[tuple[float, float]], float, Colour]
"""Kind, points in world pixels, thickness (a disc's radius), colour."""

RATES: dict[Split, tuple[Fraction, ...]] = {
    "train": (Fraction(24), Fraction(25), Fraction(30), Fraction(60)),
    "heldout": (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(50)),
}
_HEIGHTS: dict[Split, tuple[float, ...]] = {"train": (0.62, 0.70, 0.78), "heldout": (0.66, 0.74)}
_CLOTHES: dict[Split, tuple[Colour, ...]] = {
    "train": ((200, 40, 40), (40, 90, 200), (240, 240, 240), (40, 40, 44), (40, 150, 70)),
    "heldout": ((230, 120, 30), (120, 60, 170), (30, 150, 160), (190, 180, 150)),
}
_ROPES: dict[Split, tuple[Colour, ...]] = {
    "train": ((250, 250, 90), (250, 250, 250), (20, 20, 20)),
    "heldout": ((255, 120, 200), (120, 255, 120)),
}
_SKINS: tuple[Colour, ...] = ((230, 190, 160), (150, 105, 75), (95, 65, 48))
_GRAINS_PX: dict[Split, tuple[int, ...]] = {"train": (1, 3), "heldout": (2,)}
NO_JUMP_SHARE, MISS_SHARE = 0.04, 0.06
_MISS_PHASE, _RETREAT_PHASE = 0.92, 0.45
_MARGIN = 0.25
"""Of the frame on each side: how far the camera may look past it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """How a rope turns: (frame, phase) between which phases are linear, and the frames in which its jumper stays down."""

    knots: tuple[tuple[float, float], ...]
    event_frames: tuple[int, ...]
    miss_frames: tuple[int, ...]
    """In which the rope stops at the shins."""
    grounded: tuple[tuple[float, float], ...]
    """Half-open spans of frames."""

    def phase(self, frame: float) -> float:
        """Turns since the first event; constant outside the knots."""
        frames, phases = zip(*self.knots, strict=True)
        return float(np.interp(frame, frames, phases))


@dataclass(frozen=True, kw_only=True, slots=True)
class Jumper:
    """One person with a rope."""

    rope: Rope
    x: float
    ground_y: float
    height_px: float
    cloth: Colour
    trousers: Colour
    skin: Colour
    rope_colour: Colour


@dataclass(frozen=True, kw_only=True, slots=True)
class JumpScene:
    """What a clip shows."""

    seed: int
    split: Split
    fps: Fraction
    num_frames: int
    width_px: int
    height_px: int
    camera: Camera
    main: Jumper
    second: Jumper | None
    ball_period_frames: float | None
    walker_frames: tuple[float, float] | None
    """When a passer-by behind the jumper enters and leaves."""
    passers: tuple[tuple[float, float], ...]
    """The same of those who pass before the jumper."""
    pole_x: float | None
    crf: int

    @property
    def event_seconds(self) -> tuple[float, ...]:
        """Starts of the jumps of the main character."""
        return tuple(float(frame / self.fps) for frame in self.main.rope.event_frames)

    @property
    def tags(self) -> list[str]:
        """What is special about it."""
        found = {
            "distractor:jumper": self.second is not None,
            "distractor:ball": self.ball_period_frames is not None,
            "distractor:walker": self.walker_frames is not None,
            "occluded:passer": bool(self.passers),
            "occluded:pole": self.pole_x is not None,
            "misses": bool(self.main.rope.miss_frames),
            "no_jump": not self.main.rope.event_frames,
        }
        return [f"camera:{self.camera}", *(name for name, there in found.items() if there)]


def draw_scene(
    seed: int,
    split: Split,
    *,
    seconds: float = 8.0,
    width_px: int = 640,
    height_px: int = 360,
    fps: Fraction | None = None,
    turns_per_second: tuple[float, float] = (1.4, 3.2),
    plain: bool = False,
) -> JumpScene:
    """The scene of a seed.

    Args:
        fps: by default one of the split's rates.
        turns_per_second: tempi are drawn evenly from here.
        plain: one figure, no occlusion, no distraction, no miss, a standing camera: the smallest task that still is one.

    Raises:
        ValueError: an unknown split, a clip of less than two frames, a frame below 48 x 48 px or of odd sides, or a tempo whose
            turn has fewer than four frames.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    rng = np.random.default_rng([get_args(Split).index(split), seed])
    rate = fps if fps is not None else RATES[split][int(rng.integers(len(RATES[split])))]
    num_frames = round(seconds * rate)
    if width_px % 2 or height_px % 2:
        raise ValueError(f"width and height must be even, as H.264 wants them, got {width_px}x{height_px}")
    if num_frames < 2 or min(width_px, height_px) < 48:
        raise ValueError(f"expected >= 2 frames of >= 48x48 px, got {num_frames} of {width_px}x{height_px}; raise them")
    if not 0 < turns_per_second[0] <= turns_per_second[1] <= rate / 4:
        raise ValueError(
            f"turns_per_second must ascend within (0, fps / 4 = {float(rate / 4):g}], got {turns_per_second}"
        )

    def chance(share: float) -> bool:
        return bool(rng.random() < share) and not plain

    frames = float(num_frames)
    camera: Camera = "static" if plain else get_args(Camera)[int(rng.integers(len(get_args(Camera))))]
    main = _draw_jumper(
        rng, split, num_frames, rate, turns_per_second,
        x=width_px * rng.uniform(0.42, 0.58), ground_y=height_px * 0.9,
        height_px=height_px * float(rng.choice(_HEIGHTS[split])), miss_share=0.0 if plain else MISS_SHARE,
        stands=chance(NO_JUMP_SHARE),
    )  # fmt: skip
    second = None
    if chance(0.25):
        side = rng.choice((-1, 1))
        second = _draw_jumper(
            rng, split, num_frames, rate, turns_per_second,
            x=main.x + side * width_px * rng.uniform(0.27, 0.33), ground_y=height_px * 0.72,
            height_px=main.height_px * 0.45, miss_share=0.0, stands=False,
        )  # fmt: skip
    passers = []
    if chance(0.3):
        for _ in range(int(rng.integers(1, 3))):
            begin = rng.uniform(0, frames)
            passers.append((begin, begin + float(rate) * rng.uniform(1.0, 2.5)))
    walker_begin = rng.uniform(-0.3, 0.7) * frames
    return JumpScene(
        seed=seed,
        split=split,
        fps=rate,
        num_frames=num_frames,
        width_px=width_px,
        height_px=height_px,
        camera=camera,
        main=main,
        second=second,
        ball_period_frames=float(rate) / rng.uniform(0.9, 2.0) if chance(0.25) else None,
        walker_frames=(walker_begin, walker_begin + float(rate) * rng.uniform(2.0, 5.0)) if chance(0.3) else None,
        passers=tuple(passers),
        pole_x=main.x + width_px * rng.uniform(-0.12, 0.12) if chance(0.2) else None,
        crf=int(rng.integers(18, 29)),
    )


def scene_frames(scene: JumpScene) -> Iterator[RGB]:
    """The frames, uint8 [H, W, 3]."""
    draw = _painter(scene)
    for index in range(scene.num_frames):
        yield draw(index)


def scene_frame(scene: JumpScene, index: int) -> RGB:
    """One of the frames, uint8 [H, W, 3]. Raises IndexError outside the clip."""
    if not 0 <= index < scene.num_frames:
        raise IndexError(f"expected a frame of 0 to {scene.num_frames - 1}, got {index}")
    return _painter(scene)(index)


def _painter(scene: JumpScene) -> Callable[[int], RGB]:
    rng = np.random.default_rng([9, get_args(Split).index(scene.split), scene.seed])
    width, height = scene.width_px, scene.height_px
    grain = int(rng.choice(_GRAINS_PX[scene.split]))
    margin_x, margin_y = round(width * _MARGIN), round(height * _MARGIN)
    world = texture(rng, (height + 2 * margin_y) // grain + 1, (width + 2 * margin_x) // grain + 1)
    background = Image.fromarray(world).resize((width + 2 * margin_x, height + 2 * margin_y), Image.Resampling.BICUBIC)
    camera = camera_path(scene)
    fine = 2 if height <= 240 else 1  # PIL does not smooth edges; small frames are drawn twice as large

    def draw(index: int) -> RGB:
        x, y, zoom = camera[index]
        box = (margin_x + x, margin_y + y, margin_x + x + width / zoom, margin_y + y + height / zoom)
        picture = background.resize((width * fine, height * fine), Image.Resampling.BILINEAR, box=box)
        _paint(picture, scene_shapes(scene, index), x, y, zoom * fine)
        return np.asarray(picture.reduce(fine) if fine > 1 else picture)

    return draw


def scene_shapes(scene: JumpScene, index: int) -> Iterator[Shape]:
    """All shapes of a frame, those behind first."""
    height = scene.height_px
    if scene.walker_frames is not None:
        yield from _walker(scene, scene.walker_frames, index, ground_y=height * 0.74, height_px=height * 0.4)
    if scene.second is not None:
        yield from jumper_shapes(scene.second, index)
    if scene.ball_period_frames is not None:
        bounce = abs(np.sin(np.pi * index / scene.ball_period_frames))
        place = (
            scene.width_px * (0.12 if scene.main.x > scene.width_px / 2 else 0.88),
            height * (0.86 - 0.35 * bounce),
        )
        yield "disc", [place], height * 0.035, (235, 110, 40)
    yield from jumper_shapes(scene.main, index)
    if scene.pole_x is not None:
        yield "line", [(scene.pole_x, -height), (scene.pole_x, 2 * height)], height * 0.035, (70, 72, 76)
    for span in scene.passers:
        yield from _walker(scene, span, index, ground_y=height * 1.08, height_px=height * 0.95)


def jumper_shapes(jumper: Jumper, index: int) -> Iterator[Shape]:
    """A person with a rope; the rope stands before the person's shapes while it is behind the legs."""
    phase = jumper.rope.phase(index)
    turn = phase - np.floor(phase + 1e-9)
    lift = 0.0 if any(a <= index < b for a, b in jumper.rope.grounded) else max(0.0, np.cos(2 * np.pi * phase))
    unit = jumper.height_px / 8
    x, feet_y = jumper.x, jumper.ground_y - 0.9 * unit * lift
    hip_y, neck_y, hand_y = feet_y - 3.4 * unit, feet_y - 6.3 * unit, feet_y - 3.9 * unit
    bend = 0.25 * unit * (1 - lift)
    swing = 0.3 * unit * np.sin(2 * np.pi * phase)
    hands = [(x + side * 1.75 * unit, hand_y + swing) for side in (-1, 1)]
    rope = _rope_shape(jumper, hands, turn, unit)
    if turn < 0.5:
        yield rope
    for side in (-1, 1):
        knee = (x + side * (0.45 * unit + bend), (hip_y + feet_y) / 2)
        yield (
            "line",
            [(x + side * 0.3 * unit, hip_y), knee, (x + side * 0.4 * unit, feet_y)],
            0.7 * unit,
            jumper.trousers,
        )
        yield "line", [(x + side * 0.4 * unit, feet_y), (x + side * 0.8 * unit, feet_y)], 0.35 * unit, (25, 25, 25)
    yield "line", [(x, neck_y + 0.3 * unit), (x, hip_y)], 1.7 * unit, jumper.cloth
    for side, hand in zip((-1, 1), hands, strict=True):
        elbow = (x + side * 1.45 * unit, (neck_y + hip_y) / 2)
        yield "line", [(x + side * 0.7 * unit, neck_y + 0.4 * unit), elbow, hand], 0.45 * unit, jumper.skin
    yield "disc", [(x, neck_y - 0.75 * unit)], 0.75 * unit, jumper.skin
    if turn >= 0.5:
        yield rope


def event_box(scene: JumpScene, frame: int) -> tuple[int, int, int, int]:
    """Half-open pixel box around the main character and the rope in a frame and its neighbours, cut to the frame."""
    boxes = []
    camera = camera_path(scene)
    for index in range(max(0, frame - 1), min(scene.num_frames, frame + 2)):
        left, top, zoom = camera[index]
        for _, points, thickness, _ in jumper_shapes(scene.main, index):
            for x, y in points:
                boxes.append(((x - thickness - left) * zoom, (y - thickness - top) * zoom))
                boxes.append(((x + thickness - left) * zoom, (y + thickness - top) * zoom))
    xs, ys = zip(*boxes, strict=True)
    x0, x1 = (int(np.clip(v, 0, scene.width_px)) for v in (np.floor(min(xs)), np.ceil(max(xs))))
    y0, y1 = (int(np.clip(v, 0, scene.height_px)) for v in (np.floor(min(ys)), np.ceil(max(ys))))
    return x0, y0, x1, y1


# -------------------------------------------------------------------------------- drawing of lots


def _draw_jumper(
    rng: np.random.Generator,
    split: Split,
    num_frames: int,
    fps: Fraction,
    turns_per_second: tuple[float, float],
    *,
    x: float,
    ground_y: float,
    height_px: float,
    miss_share: float,
    stands: bool,
) -> Jumper:
    cloth, trousers = rng.choice(len(_CLOTHES[split]), 2, replace=False)
    return Jumper(
        rope=_draw_rope(rng, num_frames, float(fps), turns_per_second, miss_share=miss_share, stands=stands),
        x=float(x),
        ground_y=ground_y,
        height_px=height_px,
        cloth=_CLOTHES[split][int(cloth)],
        trousers=_CLOTHES[split][int(trousers)],
        skin=_SKINS[int(rng.integers(len(_SKINS)))],
        rope_colour=_ROPES[split][int(rng.integers(len(_ROPES[split])))],
    )


def _draw_rope(
    rng: np.random.Generator,
    num_frames: int,
    fps: float,
    turns_per_second: tuple[float, float],
    *,
    miss_share: float,
    stands: bool,
) -> Rope:
    """Events on whole frames, drawn until the clip is over; one knot at each, three more in a miss."""
    if stands:  # the rope hangs in front
        return Rope(knots=((0.0, 0.78),), event_frames=(), miss_frames=(), grounded=((0.0, float(num_frames)),))
    period = fps / rng.uniform(*turns_per_second)
    back = rng.uniform(0.3, 0.9)
    events = [max(1, round(back * period))]
    knots = [(0.0, -back), (float(events[0]), 0.0)]
    misses: list[int] = []
    grounded: list[tuple[float, float]] = []
    turns_left = int(rng.integers(2, 7))
    while events[-1] < num_frames:
        if turns_left == 0:
            period, turns_left = fps / rng.uniform(*turns_per_second), int(rng.integers(3, 10))
        turns_left -= 1
        here, whole = float(events[-1]), float(len(events) - 1)
        if rng.random() < miss_share:
            stop = here + _MISS_PHASE * period
            held = stop + fps * rng.uniform(0.3, 1.0)
            back_up = held + fps * rng.uniform(0.3, 0.5)
            again = back_up + fps * rng.uniform(0.1, 0.3)
            knots += [(stop, whole + _MISS_PHASE), (held, whole + _MISS_PHASE)]
            knots += [(back_up, whole + _RETREAT_PHASE), (again, whole + _RETREAT_PHASE)]
            grounded.append((here + 0.3 * period, again))
            misses.append(int(np.ceil(stop)))
            events.append(max(events[-1] + 4, round(again + (1 - _RETREAT_PHASE) * period)))
        else:
            events.append(events[-1] + max(4, round(period * rng.uniform(0.97, 1.03))))
        knots.append((float(events[-1]), whole + 1))
    return Rope(
        knots=tuple(knots),
        event_frames=tuple(frame for frame in events if frame < num_frames),
        miss_frames=tuple(frame for frame in misses if frame < num_frames),
        grounded=tuple(grounded),
    )


def camera_path(scene: JumpScene) -> list[tuple[float, float, float]]:
    """(x, y, zoom) for each frame: where in the world the view's corner lies, and how much larger all is."""
    own = np.random.default_rng([8, get_args(Split).index(scene.split), scene.seed])
    seconds = np.arange(scene.num_frames) / float(scene.fps)
    zero = np.zeros(scene.num_frames)
    x, y, zoom = zero.copy(), zero.copy(), zero + 1
    start = own.uniform(0, 2 * np.pi)
    if scene.camera == "panning":
        x = np.sin(seconds * 2 * np.pi / own.uniform(5, 9) + start) * 0.16 * scene.width_px
    elif scene.camera == "shaking":
        for frequency in (0.5, 1.1, 2.7, 5.3):
            x += np.sin(2 * np.pi * (seconds * frequency + own.random())) * 0.012 * scene.width_px
            y += np.sin(2 * np.pi * (seconds * frequency + own.random())) * 0.012 * scene.height_px
    elif scene.camera == "zooming":
        zoom = 1 + 0.14 * (1 + np.sin(seconds * 2 * np.pi / own.uniform(4, 8) + start)) / 2
        x = (scene.width_px - scene.width_px / zoom) * scene.main.x / scene.width_px
        y = (scene.height_px - scene.height_px / zoom) * 0.75
    return [(float(a), float(b), float(c)) for a, b, c in zip(x, y, zoom, strict=True)]


# -------------------------------------------------------------------------------- shapes


def _rope_shape(jumper: Jumper, hands: Sequence[tuple[float, float]], turn: float, unit: float) -> Shape:
    """A quadratic curve from hand to hand; its middle is at the ground at whole phases and over the head between them."""
    (left_x, left_y), (right_x, right_y) = hands
    down = np.cos(2 * np.pi * turn)
    middle_y = left_y + down * ((jumper.ground_y + 0.15 * unit - left_y) if down > 0 else 5.2 * unit)
    control_y = 2 * middle_y - (left_y + right_y) / 2
    widest = 0.9 * unit
    curve = []
    for s in np.linspace(0, 1, 21):
        x = (1 - s) ** 2 * left_x + 2 * s * (1 - s) * jumper.x + s**2 * right_x - widest * np.sin(2 * np.pi * s) * 0.5
        y = (1 - s) ** 2 * left_y + 2 * s * (1 - s) * control_y + s**2 * right_y
        curve.append((float(x), float(y)))
    return "line", curve, 0.22 * unit, jumper.rope_colour


def _walker(
    scene: JumpScene, span: tuple[float, float], index: int, *, ground_y: float, height_px: float
) -> Iterator[Shape]:
    """Somebody who crosses the picture while the span lasts, from left to right if it begins in an even frame."""
    share = (index - span[0]) / (span[1] - span[0])
    if not 0 <= share <= 1:
        return
    along = share if int(span[0]) % 2 == 0 else 1 - share
    unit, x = height_px / 8, (along * 1.4 - 0.2) * scene.width_px
    step = np.sin(share * (span[1] - span[0]) / float(scene.fps) * 2 * np.pi * 0.9) * 0.9 * unit
    hip_y, neck_y = ground_y - 3.4 * unit, ground_y - 6.3 * unit
    for side in (-1, 1):
        yield "line", [(x, hip_y), (x + side * step, ground_y)], 0.7 * unit, (52, 54, 70)
    yield "line", [(x, neck_y), (x, hip_y)], 1.6 * unit, (96, 104, 88)
    yield "disc", [(x, neck_y - 0.75 * unit)], 0.75 * unit, _SKINS[int(span[1]) % len(_SKINS)]


def _paint(picture: Image.Image, shapes: Iterator[Shape], left: float, top: float, scale: float) -> None:
    draw = ImageDraw.Draw(picture)
    for kind, points, thickness, colour in shapes:
        placed = [((x - left) * scale, (y - top) * scale) for x, y in points]
        size = thickness * scale
        if kind == "line":
            draw.line(placed, fill=colour, width=max(1, round(size)), joint="curve")
            if size >= 6:  # round ends
                for x, y in (placed[0], placed[-1]):
                    draw.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=colour)
        else:
            (x, y) = placed[0]
            draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)


def rope_pixels(frame_HW3: npt.NDArray[np.uint8], colour: Colour, *, tolerance: int = 40) -> npt.NDArray[np.bool_]:
    """[H, W] pixels near a colour: for tests that look for the rope in decoded frames."""
    near = np.abs(frame_HW3.astype(np.int16) - np.array(colour, np.int16)) <= tolerance
    return np.asarray(near.all(axis=2), np.bool_)
