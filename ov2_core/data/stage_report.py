"""A stage on one page: mixture as asked against as built, token budget, packing, and samples with their text and pictures.

Enters: a finished stage. Leaves: one self-contained HTML file with small JPEGs inside. The page of the largest stage is no
larger than that of a toy: sums come from stage.json, and a few packs are shown.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from ov2_core.data.order import PackOrder, Shuffle
from ov2_core.data.read_pack import BadPackError, LoadedPack, LoadedSample, Packs, open_packs
from ov2_core.data.stage import load_stage
from ov2_core.model.chatml import format_seconds
from ov2_core.model.visual import Visual
from ov2_core.storage.files import Store
from schemas.stage import StageRecord, StageSource

REPORT_HTML = "stage.html"
_THUMB_PX, _MAX_IMAGES, _MAX_SAMPLES, _MAX_TEXT = 160, 8, 6, 1500
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
body { color: #1a1a1a; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, .left { text-align: left } .bar { display: inline-block; height: .7rem; background: #47a }
.sample { border: 1px solid #ddd; border-radius: 4px; padding: .75rem; margin: .75rem 0 } .text { white-space: pre-wrap }
.images { display: flex; flex-wrap: wrap; gap: .5rem } figure { margin: 0 } figcaption { font-size: 12px; color: #555 }
.role { color: #47a; font-weight: 600 } .bad { color: #a33 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 }
  th, td, .sample { border-color: #444 }
  figcaption { color: #aaa }
}
"""


def write_stage_report(store: Store, *, moved: dict[str, str] | None = None, num_packs: int = 4) -> str:
    """Writes STAGE/stage.html and returns its path or URL.

    Raises:
        ValueError: no finished stage stands there.
    """
    record = load_stage(store)
    packs = open_packs(store, record, moved=moved or {})
    try:
        page = _page(record, _chosen(packs, num_packs))
    finally:
        packs.close()
    store.write_bytes(REPORT_HTML, page.encode())
    return store.url(REPORT_HTML)


def describe_pack(pack: LoadedPack) -> str:
    """One pack as text: samples, lengths, media with their times, messages."""
    lines = [f"{pack.key}: {len(pack.samples)} samples, {sum(s.num_tokens or 0 for s in pack.samples):,} tokens"]
    for i, sample in enumerate(pack.samples):
        lines.append(f"\n[{i}] {sample.source} / {sample.id}: {sample.num_tokens} tokens")
        lines += [
            f"    {key}: {_medium_text(visual)}" for key, visual in zip(sample.media_keys, sample.media, strict=True)
        ]
        lines += [f"    {turn.role}: {turn.content}" for turn in sample.messages]
    return "\n".join(lines)


def _chosen(packs: Packs, num: int) -> list[LoadedPack | str]:
    """A few packs, drawn anew for each stage but always the same ones of it."""
    order = PackOrder(len(packs), Shuffle(seed=0, block_packs=1))
    chosen: list[LoadedPack | str] = []
    for number in sorted(order.packs(0, min(num, len(packs))).tolist()):
        try:
            chosen.append(packs.load(number, skip_bad=False))
        except BadPackError as error:
            chosen.append(str(error))
    return chosen


def _page(record: StageRecord, packs: Sequence[LoadedPack | str]) -> str:
    packing = record.packing
    title = f"Stage {record.recipe}, version {record.recipe_version}"
    facts = [
        ("packs", f"{packing.num_packs:,} of {packing.sequence_length:,} tokens"),
        ("fill", f"{packing.fill:.2%}"),
        (
            "samples",
            f"{packing.num_samples:,}; {packing.num_samples / max(packing.num_packs, 1):.1f} a pack, at most {packing.max_samples}",
        ),
        ("tokens", f"{packing.num_tokens:,}"),
        ("bytes a token", f"{sum(s.num_bytes for s in record.sources) / max(packing.num_tokens, 1):.1f}"),
        ("seed", str(record.seed)),
        ("form", record.form),
        ("slots without a source", ", ".join(record.missing_slots) or "none"),
    ]
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        "<table>"
        + "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts)
        + "</table>",
        "<h2>Mixture, asked and built</h2>",
        _mixture(record),
        "<h2>Token budget</h2>",
        _budget(record.sources),
        "<h2>Samples a pack</h2>",
        _bars([(str(i), n) for i, n in enumerate(packing.samples_per_pack) if n]),
        "<h2>Tokens a sample</h2>",
        _bars([(f"{2**i:,}..{2 ** (i + 1) - 1:,}", n) for i, n in enumerate(packing.sample_tokens) if n]),
        "<h2>Some packs</h2>",
        *(_pack(pack) for pack in packs),
    ]
    return "\n".join(parts) + "</html>\n"


def _mixture(record: StageRecord) -> str:
    rows = [
        "<tr><th>source</th><th>asked</th><th>share</th><th>samples</th><th>share</th><th>there</th><th>left out</th></tr>"
    ]
    weights = {source.name: source.weight for source in record.sources if source.weight is not None}
    weighted = sum(s.num_samples for s in record.sources if s.name in weights)
    total = max(record.packing.num_samples, 1)
    for source in record.sources:
        asked = f"{source.count:,} samples" if source.count is not None else f"weight {source.weight:,.10g}"
        share = ""
        if source.weight is not None:
            share = f"{source.weight / sum(weights.values()) * weighted / total:.3%}"
        left = Counter(source.dropped) + Counter({"bad rows": source.num_quarantined})
        cells = [
            html.escape(source.name),
            asked,
            share,
            f"{source.num_samples:,}",
            f"{source.num_samples / total:.3%}",
            f"{source.num_available:,}",
            html.escape(", ".join(f"{reason} {n:,}" for reason, n in left.items())),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>" + "".join(rows) + "</table>"


def _budget(sources: Sequence[StageSource]) -> str:
    rows = [
        "<tr><th>source</th><th>tokens</th><th>visual</th><th>text</th><th>learned</th><th>by modality</th><th>rounds cut</th></tr>"
    ]
    for source in sources:
        by_modality = ", ".join(f"{name} {n:,}" for name, n in source.tokens_by_modality.items())
        cells = [
            html.escape(source.name),
            f"{source.num_tokens:,}",
            f"{source.num_visual_tokens:,}",
            f"{source.num_tokens - source.num_visual_tokens:,}",
            f"{source.num_supervised_tokens:,}",
            by_modality,
            f"{source.num_rounds_cut:,}",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>" + "".join(rows) + "</table>"


def _bars(counts: Sequence[tuple[str, int]]) -> str:
    most = max((n for _, n in counts), default=1)
    rows = [
        f"<tr><td>{name}</td><td>{n:,}</td><td class='left'>"
        f"<span class='bar' style='width:{20 * n / most:.2f}rem'></span></td></tr>"
        for name, n in counts
    ]
    return "<table>" + "".join(rows) + "</table>"


def _pack(pack: LoadedPack | str) -> str:
    if isinstance(pack, str):
        return f"<p class='bad'>{html.escape(pack)}</p>"
    shown = pack.samples[:_MAX_SAMPLES]
    head = f"<h3>{pack.key}: {len(pack.samples)} samples, {sum(s.num_tokens or 0 for s in pack.samples):,} tokens</h3>"
    more = len(pack.samples) - len(shown)
    return head + "".join(_sample(s) for s in shown) + (f"<p>and {more} more samples</p>" if more else "")


def _sample(sample: LoadedSample) -> str:
    turns = "".join(
        f"<div class='text'><span class='role'>{turn.role}</span> {html.escape(turn.content[:_MAX_TEXT])}</div>"
        for turn in sample.messages
    )
    media = "".join(_media(visual) for visual in sample.media)
    name = html.escape(f"{sample.source} / {sample.id}")
    return f"<div class='sample'><b>{name}</b>, {sample.num_tokens} tokens{media}{turns}</div>"


def _media(visual: Visual) -> str:
    step = max(1, -(-visual.num_images // _MAX_IMAGES))
    figures = []
    for i in range(0, visual.num_images, step):
        try:
            image = Image.fromarray(visual.image(i))
        except ValueError as error:
            figures.append(f"<p class='bad'>{html.escape(str(error))}</p>")
            continue
        image.thumbnail((_THUMB_PX, _THUMB_PX))
        out = io.BytesIO()
        image.save(out, format="JPEG", quality=80)
        data = base64.b64encode(out.getvalue()).decode()
        picture = f"<img alt='image {i}' src='data:image/jpeg;base64,{data}'>"
        figures.append(f"<figure>{picture}<figcaption>{html.escape(_times(visual, i))}</figcaption></figure>")
    return f"<p>{html.escape(_medium_text(visual))}</p><div class='images'>{''.join(figures)}</div>"


def _times(visual: Visual, image: int) -> str:
    """Source times of an image: one of a frame, a span of a canvas."""
    if visual.fps is None:
        return "still"
    ticks = visual.positions_NP3[image, :, 0]
    first, last = (format_seconds(int(t) / visual.fps, visual.timestamp_decimal) for t in (ticks.min(), ticks.max()))
    return first if first == last else f"{first} to {last}"


def _medium_text(visual: Visual) -> str:
    size = f"{visual.columns * visual.patch_px} x {visual.rows * visual.patch_px} px, {visual.num_tokens:,} tokens"
    if visual.fps is None:
        return f"still, {size}"
    return (
        f"video, {visual.num_images} images in groups of {sorted(set(visual.group_images))}, {size}, fps {visual.fps:g}"
    )
