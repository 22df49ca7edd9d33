"""A stored sample as one picture: its canvases group by group, every block coloured by the source time it came from.

Enters: a stored sample. Leaves: a PIL image. Under each row stands the row's time axis: the colours of the blocks, and
a bar per source time as high as the number of blocks taken from it, for "when" and "how much" to be read at one place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ov2_core.report.rebuild import block_sources, grid_blocks
from ov2_core.storage.reader import StoredSample
from schemas.tokens import GroupRecord, SampleRecord

TIME_RAMP = ((77, 107, 254), (16, 178, 190), (132, 204, 60), (250, 190, 40), (249, 86, 79))
"""Old to new; the viewer uses the same."""
GROUP_COLOURS = (
    (99, 102, 241),
    (20, 160, 150),
    (245, 158, 11),
    (236, 72, 153),
    (132, 168, 20),
    (14, 150, 220),
    (168, 85, 247),
    (239, 90, 60),
)

_BACKGROUND, _PANEL, _LINE = (13, 17, 26), (21, 27, 39), (45, 54, 72)
_TEXT, _DIM = (232, 237, 245), (148, 160, 180)
_COLUMNS = 4
_MARGIN, _PAD, _GAP = 36, 22, 10


@dataclass(frozen=True, slots=True)
class _Row:
    """Groups that share a row: one, or several where they are short (uniform frames)."""

    numbers: tuple[int, ...]
    groups: tuple[GroupRecord, ...]

    @property
    def images(self) -> range:
        return range(self.groups[0].first_image, self.groups[-1].first_image + self.groups[-1].num_images)


def ramp_colour(share: float) -> tuple[int, int, int]:
    """TIME_RAMP at 0 (oldest) .. 1 (newest), linear between its stops."""
    place = min(max(share, 0.0), 1.0) * (len(TIME_RAMP) - 1)
    index = min(int(place), len(TIME_RAMP) - 2)
    low, high = TIME_RAMP[index], TIME_RAMP[index + 1]
    red, green, blue = (round(a + (b - a) * (place - index)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def draw_sample(
    stored: StoredSample, *, overlay: bool = True, max_groups: int = 8, image_width_px: int = 560
) -> Image.Image:
    """The canvases in a grid, group by group.

    Args:
        overlay: tint and outline blocks by source time, with the time written where a run of one time starts.
        max_groups: more groups than this are thinned evenly, and the head of the picture says so.
        image_width_px: shown width of one canvas, rounded so that a block is a whole number of pixels.

    Returns:
        RGB image.
    """
    record = stored.record
    _, columns = grid_blocks(record)
    shown_px = max(8, round(image_width_px / columns))
    rows = _rows(record, max_groups)
    positions_NP3 = stored.positions_NP3
    sources = {i: block_sources(record, positions_NP3[i]) for row in rows for i in row.images}
    pixels = {i: stored.image(i) for i in sources}

    across = min(_COLUMNS, max(len(row.images) for row in rows))
    tile_w, tile_h = _tile_size(record, shown_px)
    width = 2 * _MARGIN + 2 * _PAD + across * tile_w + (across - 1) * _GAP
    heights = [_row_height(row, tile_h, record) for row in rows]
    head_px = 104
    picture = Image.new("RGB", (width, head_px + sum(heights) + (len(rows) - 1) * 18 + _MARGIN), _BACKGROUND)
    _draw_head(picture, stored, rows)
    top = head_px
    for row, height in zip(rows, heights, strict=True):
        _draw_row(picture, row, record, sources, pixels, top=top, height=height, shown_px=shown_px, overlay=overlay)
        top += height + 18
    return picture


def _rows(record: SampleRecord, max_groups: int) -> list[_Row]:
    total = len(record.groups)
    single = all(group.num_images == 1 for group in record.groups)
    limit = min(total, max_groups * (_COLUMNS if single else 1))
    chosen = [int((i + 0.5) * total / limit) for i in range(limit)]
    rows: list[_Row] = []
    for i in chosen:
        group = record.groups[i]
        # Neighbours share a row while they fit and no group between them was left out.
        if rows and single and len(rows[-1].images) < _COLUMNS and rows[-1].numbers[-1] == i:
            rows[-1] = _Row((*rows[-1].numbers, i + 1), (*rows[-1].groups, group))
        else:
            rows.append(_Row((i + 1,), (group,)))
    return rows


def _tile_size(record: SampleRecord, shown_px: int) -> tuple[int, int]:
    rows, columns = grid_blocks(record)
    return columns * shown_px, rows * shown_px


def _row_height(row: _Row, tile_h: int, record: SampleRecord) -> int:
    lines = math.ceil(len(row.images) / _COLUMNS)
    axis = 84 if record.fps else 0
    return 2 * _PAD + 34 + lines * (tile_h + 30) + (lines - 1) * _GAP + axis - 8


def _draw_head(picture: Image.Image, stored: StoredSample, rows: list[_Row]) -> None:
    record = stored.record
    draw = ImageDraw.Draw(picture)
    name = record.mode + (f" / {record.policy}" if record.policy else "")
    facts = [name, f"{len(record.image_keys)} images of {record.image_width_px} x {record.image_height_px} px"]
    facts.append(f"{record.num_tokens:,} tokens")
    if record.fps:
        facts.append(f"{record.provenance.duration_seconds:.1f} s of {record.provenance.codec}")
    shown = sum(len(row.numbers) for row in rows)
    if shown < len(record.groups):
        facts.append(f"{shown} of {len(record.groups)} groups shown")
    room = picture.width - 2 * _MARGIN
    draw.text((_MARGIN, 26), _fit(draw, stored.record.provenance.id, 30, room), _TEXT, _font(30))
    draw.text((_MARGIN, 66), _fit(draw, "   ·   ".join(facts), 18, room), _DIM, _font(18))


def _draw_row(
    picture: Image.Image,
    row: _Row,
    record: SampleRecord,
    sources: dict[int, npt.NDArray[np.int32]],
    pixels: dict[int, npt.NDArray[np.uint8]],
    *,
    top: int,
    height: int,
    shown_px: int,
    overlay: bool,
) -> None:
    draw = ImageDraw.Draw(picture)
    tile_w, tile_h = _tile_size(record, shown_px)
    colour = GROUP_COLOURS[(row.numbers[0] - 1) % len(GROUP_COLOURS)]
    draw.rounded_rectangle((_MARGIN, top, picture.width - _MARGIN, top + height), 14, _PANEL, _LINE)
    draw.rounded_rectangle((_MARGIN, top, _MARGIN + 6, top + height), 3, colour)
    x0, y0 = _MARGIN + _PAD, top + _PAD - 6
    _draw_row_title(draw, row, record, colour, x0, y0)

    t_start, t_end = row.groups[0].t_start, row.groups[-1].t_end
    y0 += 40
    for place, image in enumerate(row.images):
        x = x0 + place % _COLUMNS * (tile_w + _GAP)
        y = y0 + place // _COLUMNS * (tile_h + 30 + _GAP)
        tile = Image.fromarray(pixels[image]).resize((tile_w, tile_h), Image.Resampling.LANCZOS)
        picture.paste(_tinted(tile, record, sources[image], t_start, t_end, shown_px) if overlay else tile, (x, y))
        whole = _is_whole(sources[image])
        draw.rectangle((x - 2, y - 2, x + tile_w + 1, y + tile_h + 1), outline=colour if whole else _LINE, width=2)
        label = _tile_label(record, row, image, sources[image])
        draw.text((x, y + tile_h + 7), label, _TEXT if whole else _DIM, _font(16))
    if record.fps:
        last_line = math.ceil(len(row.images) / _COLUMNS)
        axis_y = y0 + last_line * (tile_h + 30) + (last_line - 1) * _GAP + 14
        axis_w = picture.width - 2 * (_MARGIN + _PAD)
        _draw_axis(draw, record, [sources[i] for i in row.images], t_start, t_end, x0, axis_y, axis_w)


def _draw_row_title(
    draw: ImageDraw.ImageDraw, row: _Row, record: SampleRecord, colour: tuple[int, int, int], x: int, y: int
) -> None:
    numbers = f"Group {row.numbers[0]}" if len(row.numbers) == 1 else f"Groups {row.numbers[0]}-{row.numbers[-1]}"
    draw.text((x, y), numbers, colour, _font(21))
    x += round(draw.textlength(numbers, _font(21))) + 22
    frames = sum(group.num_frames for group in row.groups)
    facts = f"{frames} source frame{'s' * (frames != 1)}"
    if record.fps:
        span = f"{row.groups[0].t_start / record.fps:.2f} to {row.groups[-1].t_end / record.fps:.2f} s"
        facts = f"{span}   ·   {facts}   ·   {sum(group.bit_cost for group in row.groups):.0%} of the clip's bits"
    draw.text((x, y + 3), facts, _DIM, _font(17))


def _is_whole(sources_B3: npt.NDArray[np.int32]) -> bool:
    return bool((sources_B3[:, 0] == sources_B3[0, 0]).all()) and len(np.unique(sources_B3, axis=0)) == len(sources_B3)


def _tile_label(record: SampleRecord, row: _Row, image: int, sources_B3: npt.NDArray[np.int32]) -> str:
    if not record.fps:
        return f"still {image}"
    first, last = sources_B3[:, 0].min() / record.fps, sources_B3[:, 0].max() / record.fps
    place = next(image - group.first_image for group in row.groups if image < group.first_image + group.num_images)
    name = "frame" if record.mode == "uniform" else f"P{place}" if place else "I-canvas"
    if _is_whole(sources_B3):
        return f"{name}, whole frame at {first:.2f} s"
    return f"{name}, {first:.2f} to {last:.2f} s, {len(np.unique(sources_B3[:, 0]))} times"


def _tinted(
    tile: Image.Image,
    record: SampleRecord,
    sources_B3: npt.NDArray[np.int32],
    t_start: int,
    t_end: int,
    shown_px: int,
) -> Image.Image:
    """The canvas with blocks tinted by time in the row, outlined where the time changes, labelled at a run's start."""
    rows, columns = grid_blocks(record)
    t_RC = sources_B3[:, 0].reshape(rows, columns)
    layer = Image.new("RGBA", tile.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    whole = _is_whole(sources_B3)
    if not whole:
        for r in range(rows):
            for c in range(columns):
                colour = _time_colour(int(t_RC[r, c]), t_start, t_end)
                x, y = c * shown_px, r * shown_px
                draw.rectangle((x, y, x + shown_px - 1, y + shown_px - 1), fill=(*colour, 48))
                _outline(draw, t_RC, r, c, x, y, shown_px, (*colour, 255))
    if record.fps:
        size = min(17, max(10, round(shown_px * 0.38)))
        starts = np.flatnonzero(np.r_[True, sources_B3[1:, 0] != sources_B3[:-1, 0]])
        ends = np.r_[starts[1:], len(sources_B3)]
        for start, end in zip(starts, ends, strict=True):
            r, c = divmod(int(start), columns)
            room = (columns if whole else min(int(end - start), columns - c)) * shown_px
            text = f"{sources_B3[start, 0] / record.fps:.2f}" + (" s" if whole else "")
            colour = _time_colour(int(sources_B3[start, 0]), t_start, t_end)
            _draw_time(draw, text, c * shown_px, r * shown_px, room, 20 if whole else size, colour)
    return Image.alpha_composite(tile.convert("RGBA"), layer).convert("RGB")


def _outline(
    draw: ImageDraw.ImageDraw,
    t_RC: npt.NDArray[np.int32],
    r: int,
    c: int,
    x: int,
    y: int,
    side: int,
    colour: tuple[int, int, int, int],
) -> None:
    rows, columns = t_RC.shape
    far = side - 1
    if r == 0 or t_RC[r - 1, c] != t_RC[r, c]:
        draw.rectangle((x, y, x + far, y + 1), fill=colour)
    if r == rows - 1 or t_RC[r + 1, c] != t_RC[r, c]:
        draw.rectangle((x, y + far - 1, x + far, y + far), fill=colour)
    if c == 0 or t_RC[r, c - 1] != t_RC[r, c]:
        draw.rectangle((x, y, x + 1, y + far), fill=colour)
    if c == columns - 1 or t_RC[r, c + 1] != t_RC[r, c]:
        draw.rectangle((x + far - 1, y, x + far, y + far), fill=colour)


def _draw_time(
    draw: ImageDraw.ImageDraw, text: str, x: int, y: int, room: int, size: int, colour: tuple[int, int, int]
) -> None:
    """A dark plate with the time in a run's first block; smaller, then left out, where the run is too short for it."""
    while size >= 9 and draw.textlength(text, _font(size)) + 8 > room:
        size -= 1
    if size < 9:
        return
    width = round(draw.textlength(text, _font(size))) + 6
    draw.rectangle((x + 2, y + 2, x + 1 + width, y + 5 + size), fill=(8, 11, 18, 205))
    draw.text((x + 5, y + 2), text, (*_lighter(colour), 255), _font(size))


def _draw_axis(
    draw: ImageDraw.ImageDraw,
    record: SampleRecord,
    sources: list[npt.NDArray[np.int32]],
    t_start: int,
    t_end: int,
    x: int,
    y: int,
    width: int,
) -> None:
    """Colour bar from t_start to t_end with a bar per source time, as high as the number of its blocks."""
    assert record.fps is not None
    span, bars_px = max(t_end - t_start, 1), 30
    partial = [s[:, 0] for s in sources if not _is_whole(s)]
    times, counts = np.unique(np.concatenate(partial), return_counts=True) if partial else (np.zeros(0), np.zeros(0))
    step = max(width / span, 1.0)
    for t, count in zip(times.tolist(), counts.tolist(), strict=True):
        left = x + (t - t_start) / span * width
        high = 3 + round((bars_px - 3) * count / counts.max())
        right = left + max(2.0, min(step - 1, 10))
        draw.rectangle((left, y + bars_px - high, right, y + bars_px), fill=_time_colour(int(t), t_start, t_end))
    for s in sources:
        if _is_whole(s):
            left = x + (s[0, 0] - t_start) / span * width
            draw.polygon([(left, y + 8), (left, y + bars_px), (left + 11, y + 8)], fill=_TEXT)
    for column in range(width):
        colour = ramp_colour(column / width)
        draw.line((x + column, y + bars_px + 2, x + column, y + bars_px + 8), fill=colour)
    low, high_s = t_start / record.fps, t_end / record.fps
    tick = _nice_step((high_s - low) / 8)
    decimals = max(0, -math.floor(math.log10(tick)))
    seconds = math.ceil(low / tick - 1e-9) * tick
    while seconds <= high_s + 1e-9:
        left = x + (seconds - low) / (high_s - low) * width
        draw.line((left, y + bars_px + 9, left, y + bars_px + 14), fill=_DIM)
        text = f"{seconds:.{decimals}f} s"
        shift = min(max(left - draw.textlength(text, _font(14)) / 2, x), x + width - draw.textlength(text, _font(14)))
        draw.text((shift, y + bars_px + 15), text, _DIM, _font(14))
        seconds += tick


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(max(raw, 1e-6)))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def _time_colour(t: int, t_start: int, t_end: int) -> tuple[int, int, int]:
    return ramp_colour((t - t_start) / max(t_end - t_start, 1))


def _lighter(colour: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (round(value + (255 - value) * 0.45) for value in colour)
    return red, green, blue


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fit(draw: ImageDraw.ImageDraw, text: str, size: int, room: int) -> str:
    """The text, its middle cut out where it is wider than the room."""
    text = " ".join(text.split())
    if len(text) > 400:
        text = text[:200] + text[-200:]
    while draw.textlength(text, _font(size)) > room and len(text) > 8:
        half = (len(text) - 3) // 2
        text = f"{text[: half - 1]}...{text[-half + 1 :]}"
    return text
