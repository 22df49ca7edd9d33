"""Packs and samples as HTML: which sources share a sequence, and samples with their text, pictures and source times.

Enters: loaded packs. Leaves: pieces of the page that stage_report.py puts together. Stills are shown whole; of a video of frames
some at equal steps; of a video of canvases the first group and the middle one whole, because a canvas is read beside its group.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from ov2_core.data.read_pack import LoadedPack, LoadedSample
from ov2_core.model.visual import Visual

COLOURS = ("#4477aa", "#cc6677", "#ccbb44", "#228833", "#66ccee", "#aa3377", "#ee7733", "#888888")
"""Of sources in the order of the stage, again from the first where there are more (Tol's bright scheme)."""
_THUMB_PX, _MAX_IMAGES, _MAX_TEXT = 160, 8, 1500


def describe_pack(pack: LoadedPack) -> str:
    """One pack as text: samples, lengths, media with their times, messages."""
    lines = [f"{pack.key}: {len(pack.samples)} samples, {_num_tokens(pack):,} tokens"]
    for i, sample in enumerate(pack.samples):
        lines.append(f"\n[{i}] {sample.source} / {sample.id}: {sample.num_tokens} tokens")
        lines += [
            f"    {key}: {_medium_text(visual)}" for key, visual in zip(sample.media_keys, sample.media, strict=True)
        ]
        lines += [f"    {turn.role}: {turn.content}" for turn in sample.messages]
    return "\n".join(lines)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour a source."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def swatch(colour: str) -> str:
    """A small square of it."""
    return f"<span class='swatch' style='background:{colour}'></span>"


def pack_strip(pack: LoadedPack, *, sequence_length: int, colours: Mapping[str, str]) -> str:
    """One sequence as a strip: a piece a sample in its source's colour, what is left of it empty."""
    pieces = []
    for sample in pack.samples:
        tokens = sample.num_tokens or 0
        title = html.escape(f"{sample.source} / {sample.id}: {tokens:,} tokens", quote=True)
        width = 100 * tokens / sequence_length
        colour = colours.get(sample.source, COLOURS[-1])
        pieces.append(f"<span title='{title}' style='width:{width:.3f}%;background:{colour}'></span>")
    text = f"{pack.key}, {len(pack.samples)} samples, {_num_tokens(pack) / sequence_length:.2%} full"
    return f"<div class='strip'>{''.join(pieces)}</div><div class='note'>{text}</div>"


def sample_html(sample: LoadedSample, pack_key: str) -> str:
    """Name, pictures, text."""
    turns = "".join(
        f"<div class='text'><span class='role'>{turn.role}</span> {_cut(turn.content)}</div>"
        for turn in sample.messages
    )
    name = f"<b>{html.escape(sample.id)}</b>, {sample.num_tokens} tokens, {pack_key}"
    videos = "".join(_video(visual) for visual in sample.media if visual.fps is not None)
    stills = [visual for visual in sample.media if visual.fps is None]
    shown = "".join(_figure(visual, 0, _medium_text(visual)) for visual in stills[:_MAX_IMAGES])
    more = f"<p class='note'>and {len(stills) - _MAX_IMAGES} more stills</p>" if len(stills) > _MAX_IMAGES else ""
    pictures = f"<div class='images'>{shown}</div>{more}" if stills else ""
    return f"<div class='sample'>{name}{videos}{pictures}{turns}</div>"


def _video(visual: Visual) -> str:
    chosen = _chosen_images(visual)
    figures = "".join(_figure(visual, i, f"{i + 1} of {visual.num_images}: {_times(visual, i)}") for i in chosen)
    return f"<p class='note'>{html.escape(_medium_text(visual))}</p><div class='images'>{figures}</div>"


def _chosen_images(visual: Visual) -> list[int]:
    """Numbers of the images that are shown, ascending."""
    num = visual.num_images
    if not _is_packed(visual) or num <= _MAX_IMAGES:
        step = max(1, -(-num // _MAX_IMAGES))
        return list(range(0, num, step))
    first = visual.group_images[0]
    middle = len(visual.group_images) // 2
    start = sum(visual.group_images[:middle])
    both = [*range(first), *range(start, start + visual.group_images[middle])]
    return sorted(set(both))[: 2 * _MAX_IMAGES]


def _is_packed(visual: Visual) -> bool:
    """Whether some image is a canvas of blocks of several frames."""
    ticks = visual.positions_NP3[:, :, 0]
    return bool((ticks.min(axis=1) != ticks.max(axis=1)).any())


def _figure(visual: Visual, index: int, caption: str) -> str:
    try:
        image = Image.fromarray(visual.image(index))
    except ValueError as error:
        return f"<p class='bad'>{html.escape(str(error))}</p>"
    image.thumbnail((_THUMB_PX, _THUMB_PX))
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    picture = f"<img alt='image {index}' src='data:image/jpeg;base64,{data}'>"
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _times(visual: Visual, image: int) -> str:
    """Source times of a video's image: one of a frame, a span of a canvas."""
    assert visual.fps is not None
    ticks = visual.positions_NP3[image, :, 0]
    first, last = (f"{int(t) / visual.fps:.{visual.timestamp_decimal}f}" for t in (ticks.min(), ticks.max()))
    return f"{first} s" if first == last else f"{first} to {last} s"


def _medium_text(visual: Visual) -> str:
    size = f"{visual.columns * visual.patch_px} x {visual.rows * visual.patch_px} px, {visual.num_tokens:,} tokens"
    if visual.fps is None:
        return f"still, {size}"
    kind = "canvases of blocks" if _is_packed(visual) else "images"
    groups = " or ".join(str(n) for n in sorted(set(visual.group_images), reverse=True))
    return f"video, {visual.num_images} {kind} in groups of {groups}, {size}, {visual.fps:g} ticks a second"


def _num_tokens(pack: LoadedPack) -> int:
    return sum(sample.num_tokens or 0 for sample in pack.samples)


def _cut(text: str) -> str:
    more = len(text) - _MAX_TEXT
    return html.escape(text[:_MAX_TEXT]) + (
        f"<span class='note'> and {more:,} more characters</span>" if more > 0 else ""
    )
