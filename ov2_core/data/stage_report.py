"""A stage on one page: mixture as asked against as built, token budget, packing, and samples of every source.

Enters: a finished stage. Leaves: one self-contained HTML file with small JPEGs inside. The page of the largest stage is no
larger than that of a toy: sums come from stage.json, and samples from a few packs, drawn until every source has shown some.
"""

import html
from collections import Counter
from collections.abc import Sequence

from ov2_core.data.order import PackOrder, Shuffle
from ov2_core.data.read_pack import BadPackError, LoadedPack, LoadedSample, Packs, open_packs
from ov2_core.data.stage import load_stage
from ov2_core.data.stage_samples import colours_of, pack_strip, sample_html, swatch
from ov2_core.storage.files import Store
from schemas.records import Modality
from schemas.stage import StageRecord, StageSource

REPORT_HTML = "stage.html"
_MAX_PACKS, _STRIPS, _SAMPLES_PER_SOURCE, _MAX_BARS = 24, 8, 2, 16
_MODALITIES: tuple[Modality, ...] = ("text", "image", "images", "video")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
body { color: #1a1a1a; background: #fff }
h2 { margin-top: 2.5rem } .note { font-size: 13px; color: #666 } .bad { color: #a33 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top }
th:first-child, td:first-child, .left { text-align: left }
td:first-child, .bars { white-space: nowrap } tr.total td { font-weight: 600 }
.bar { display: inline-block; height: .7rem; background: #47a } .bar.text { background: #ccbb44 }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px }
.strip { display: flex; height: 1.3rem; background: #e4e4e4; margin-top: .6rem; overflow: hidden }
.strip span { box-sizing: border-box; border-right: 1px solid #fff }
.sample { border: 1px solid #ddd; border-radius: 4px; padding: .75rem; margin: .75rem 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere } .role { color: #47a; font-weight: 600 }
.images { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0 } figure { margin: 0; max-width: 12rem }
figcaption { font-size: 12px; color: #666 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 }
  th, td, .sample { border-color: #444 } .strip { background: #333 } .strip span { border-color: #181818 }
  figcaption, .note { color: #aaa } .role { color: #7ad }
}
"""


def write_stage_report(store: Store, *, moved: dict[str, str] | None = None) -> str:
    """Writes STAGE/stage.html and returns its path or URL.

    Raises:
        ValueError: no finished stage stands there.
    """
    record = load_stage(store)
    packs = open_packs(store, record, moved=moved or {})
    try:
        page = _page(record, _looked_at(packs, [source.name for source in record.sources]))
    finally:
        packs.close()
    store.write_bytes(REPORT_HTML, page.encode())
    return store.url(REPORT_HTML)


def _looked_at(packs: Packs, names: Sequence[str]) -> list[LoadedPack | str]:
    """Packs drawn anew for each stage, but always the same of it: a few, and more until every source has samples to show."""
    order = PackOrder(len(packs), Shuffle(seed=0, block_packs=1))
    missing = dict.fromkeys(names, _SAMPLES_PER_SOURCE)
    looked_at: list[LoadedPack | str] = []
    for number in order.packs(0, min(_MAX_PACKS, len(packs))).tolist():
        if len(looked_at) >= _STRIPS and not any(missing.values()):
            break
        try:
            pack = packs.load(number, skip_bad=False)
        except BadPackError as error:
            looked_at.append(str(error))
            continue
        looked_at.append(pack)
        for sample in pack.samples:
            missing[sample.source] = max(0, missing.get(sample.source, 0) - 1)
    return looked_at


def _page(record: StageRecord, packs: Sequence[LoadedPack | str]) -> str:
    packing = record.packing
    title = f"Stage {record.recipe}, version {record.recipe_version}"
    num_bytes = sum(source.num_bytes for source in record.sources)
    facts = [
        ("packs", f"{packing.num_packs:,} of {packing.sequence_length:,} tokens"),
        ("fill", f"{packing.fill:.2%}"),
        ("samples", f"{packing.num_samples:,}"),
        ("samples a pack", f"{packing.num_samples / max(packing.num_packs, 1):.1f}, at most {packing.max_samples}"),
        ("tokens", f"{packing.num_tokens:,}"),
        ("bytes a token", f"{num_bytes / max(packing.num_tokens, 1):.1f} ({num_bytes / 1e9:,.3f} GB read in an epoch)"),
        ("seed", str(record.seed)),
        ("form", "an index over token shards" if record.form == "index" else "shards of its own"),
        ("slots without a source", ", ".join(record.missing_slots) or "none"),
    ]
    colours = colours_of([source.name for source in record.sources])
    loaded = [pack for pack in packs if isinstance(pack, LoadedPack)]
    strips = [
        pack_strip(pack, sequence_length=packing.sequence_length, colours=colours)
        for pack in sorted(loaded[:_STRIPS], key=lambda pack: pack.number)
    ]
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _table([[f"<b>{name}</b>", html.escape(value)] for name, value in facts], left=(1,)),
        "<h2>Mixture, asked and built</h2>",
        _mixture(record, colours),
        "<h2>Token budget</h2>",
        _budget(record.sources, colours),
        "<h2>Tokens by modality</h2>",
        _modalities(record.sources, colours),
        "<h2>Samples a pack</h2>",
        _bars(_bucketed(packing.samples_per_pack)),
        "<h2>Tokens a sample</h2>",
        _bars([(f"{2**i:,}..{2 ** (i + 1) - 1:,}", n) for i, n in enumerate(packing.sample_tokens) if n]),
        "<h2>Some packs</h2>",
        *strips,
        *(f"<p class='bad'>{html.escape(pack)}</p>" for pack in packs if isinstance(pack, str)),
        "<h2>Samples</h2>",
        *(_samples(name, loaded, colours[name]) for name in colours),
    ]
    return "\n".join(parts) + "</html>\n"


def _mixture(record: StageRecord, colours: dict[str, str]) -> str:
    total = max(record.packing.num_samples, 1)
    weights = sum(source.weight for source in record.sources if source.weight is not None)
    weighted = sum(source.num_samples for source in record.sources if source.weight is not None)
    rows = []
    for source in record.sources:
        if source.weight is not None:
            asked, share = f"weight {source.weight:,.10g}", f"{source.weight / weights * weighted / total:.2%}"
        else:
            asked, share = f"{source.count:,} samples", ""
        left = Counter(source.dropped) + Counter({"bad rows": source.num_quarantined})
        rows.append(
            [
                swatch(colours[source.name]) + html.escape(source.name),
                html.escape(source.importer),
                asked,
                share,
                f"{source.num_samples:,}",
                f"{source.num_samples / total:.2%}",
                _bar(source.num_samples / total, colours[source.name]),
                f"{source.num_available:,}",
                html.escape(", ".join(f"{reason} {n:,}" for reason, n in left.items())),
            ]
        )
    there = sum(source.num_available for source in record.sources)
    rows.append(["all", "", "", "", f"{record.packing.num_samples:,}", "100.00%", "", f"{there:,}", ""])
    head = ["source", "importer", "asked", "asked share", "built", "share", "", "available", "left out"]
    return _table(rows, head, left=(1, 6, 8), total=True)


def _budget(sources: Sequence[StageSource], colours: dict[str, str]) -> str:
    most = max((source.num_tokens for source in sources), default=1) or 1
    total = sum(source.num_tokens for source in sources) or 1
    rows = []
    for source in sources:
        text = source.num_tokens - source.num_visual_tokens
        bars = f"<span class=bars>{_bar(source.num_visual_tokens / most)}{_bar(text / most, kind='text')}</span>"
        rows.append([swatch(colours[source.name]) + html.escape(source.name), *_tokens_of([source], total), bars])
    rows.append(["all", *_tokens_of(sources, total), ""])
    head = ["source", "tokens", "share", "visual", "text", "learned", "tokens a sample", "bytes a token", "rounds cut"]
    key = "<span class='bar' style='width:.8em'></span> visual <span class='bar text' style='width:.8em'></span> text"
    return _table(rows, [*head, key], left=(9,), total=True)


def _tokens_of(sources: Sequence[StageSource], total: int) -> list[str]:
    tokens = sum(source.num_tokens for source in sources)
    visual = sum(source.num_visual_tokens for source in sources)
    return [
        f"{tokens:,}",
        f"{tokens / total:.2%}",
        f"{visual:,}",
        f"{tokens - visual:,}",
        f"{sum(source.num_supervised_tokens for source in sources):,}",
        f"{tokens / max(sum(source.num_samples for source in sources), 1):,.0f}",
        f"{sum(source.num_bytes for source in sources) / max(tokens, 1):,.1f}",
        f"{sum(source.num_rounds_cut for source in sources):,}",
    ]


def _modalities(sources: Sequence[StageSource], colours: dict[str, str]) -> str:
    rows = []
    for source in sources:
        cells = [f"{n:,}" if (n := source.tokens_by_modality.get(name, 0)) else "" for name in _MODALITIES]
        rows.append([swatch(colours[source.name]) + html.escape(source.name), *cells])
    sums = [sum(source.tokens_by_modality.get(name, 0) for source in sources) for name in _MODALITIES]
    rows.append(["all", *(f"{n:,} ({n / (sum(sums) or 1):.1%})" for n in sums)])
    return _table(rows, ["source", "text alone", "one still", "several stills", "video"], total=True)


def _samples(name: str, packs: Sequence[LoadedPack], colour: str) -> str:
    found: list[tuple[LoadedSample, str]] = [(s, pack.key) for pack in packs for s in pack.samples if s.source == name]
    head = f"<h3>{swatch(colour)}{html.escape(name)}</h3>"
    if not found:
        return head + f"<p class='note'>none in the {len(packs)} packs that were looked at</p>"
    return head + "".join(sample_html(sample, key) for sample, key in found[:_SAMPLES_PER_SOURCE])


def _bucketed(counts: Sequence[int]) -> list[tuple[str, int]]:
    """(label, number) of what is not empty: one bar a value, or a stretch of values where there are many."""
    step = max(1, -(-len(counts) // _MAX_BARS))
    made = []
    for low in range(0, len(counts), step):
        number = sum(counts[low : low + step])
        if number:
            made.append((str(low) if step == 1 else f"{low}..{low + step - 1}", number))
    return made


def _bars(counts: Sequence[tuple[str, int]]) -> str:
    most = max((n for _, n in counts), default=1)
    return _table([[name, f"{n:,}", _bar(n / most)] for name, n in counts], left=(2,))


def _bar(share: float, colour: str | None = None, *, kind: str = "") -> str:
    style = f"width:{14 * share:.2f}rem" + (f";background:{colour}" if colour else "")
    return f"<span class='bar {kind}' style='{style}'></span>"


def _table(
    rows: Sequence[Sequence[str]], head: Sequence[str] = (), *, left: Sequence[int] = (), total: bool = False
) -> str:
    """`left`: columns that are not numbers. `total`: the last row is a sum."""

    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        made = (f"<{tag}{' class=left' if i in left else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr{kind}>{''.join(made)}</tr>"

    body = [line(cells, "td", " class=total" if total and i == len(rows) - 1 else "") for i, cells in enumerate(rows)]
    return "<table>" + (line(head, "th") if head else "") + "".join(body) + "</table>"
