"""An evaluation as one HTML file that opens from disk: metrics with intervals, curves, a timeline for every clip, all items.

Enters: an Evaluation, and where they are known tokens over time and curves. Leaves: the page's text. No script: all is drawn here
as SVG and escaped, and a policy in the page allows its own style alone.
"""

import html
from collections.abc import Mapping, Sequence

from ov2_core.evals.curves import CurvePoint, draw_curves
from ov2_core.evals.evaluate import Evaluation, Metric
from ov2_core.evals.item import ItemScore, Mark
from ov2_core.report.render import asset, source_hash

MAX_TIMELINES, MAX_ROWS, MAX_MARKS = 60, 2000, 2000
"""Clips, items and marks of a row that are drawn; what is left out is told."""
_PLOT_LEFT, _PLOT_WIDTH = 70, 920


def evaluation_page(
    found: Evaluation,
    *,
    durations: Mapping[str, float] | None = None,
    token_bins: Mapping[str, Sequence[int]] | None = None,
    curves: Sequence[CurvePoint] = (),
) -> str:
    """The page.

    Args:
        durations: seconds of clips by id; where unknown, up to the last mark.
        token_bins: tokens by equal parts of a clip, by id (evals/token_times.py).
    """
    num_answered = len(found.items) - len(found.missing_ids)
    parts = [
        f"<p class='dim'>Evaluation</p><h1>{_text(found.suite)}</h1>",
        f"<p class='dim'>{len(found.items)} items, {num_answered} answered; "
        f"intervals: 95 %, bootstrap over items, seed {found.seed}</p>",
        _run_facts(found),
        _tiles(found),
        *_notes(found),
    ]
    if curves:
        parts.append("<h2>Curves</h2>")
        parts.append(_figure(draw_curves(curves, title=f"{found.suite}: {curves[0].metric} against visual tokens")))
        for field in ("event_recall", "strict_event_recall"):
            if any(getattr(point, field) is not None for point in curves):
                title = f"{field.replace('_', ' ')} of the tokens, no model"
                parts.append(_figure(draw_curves(curves, title=title, field=field)))
        parts.append(_curve_table(curves))
    if found.groups:
        parts += ["<h2>By type</h2>", _group_table(found)]
    timelines = _timelines(found, durations or {}, token_bins or {})
    if timelines:
        told = f" (the first {MAX_TIMELINES} of {len(found.items)})" if len(found.items) > MAX_TIMELINES else ""
        parts += [
            f"<h2>Clips over time{told}</h2>",
            _legend(with_tokens=bool(token_bins), with_answers=found.suite != "evidence"),
            timelines,
        ]
    parts += ["<h2>All items</h2>", _item_table(found)]
    style = asset("eval.css")
    policy = f"default-src 'none'; style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(found.suite)}: {found.metrics[found.main_metric].value:.4f} {_text(found.main_metric)}</title>"
        f"<style>{style}</style></head><body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _run_facts(found: Evaluation) -> str:
    facts = [
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in found.notes.items()
        if value not in (None, {}, "")
    ]
    return f"<p class='dim path'>{_text(' · '.join(facts))}</p>" if facts else ""


def _tiles(found: Evaluation) -> str:
    tiles = []
    for name, metric in found.metrics.items():
        main = " main" if name == found.main_metric else ""
        tiles.append(
            f"<div class='tile{main}'><span class='dim'>{_text(name)}</span><b>{metric.value:.3f}</b>{_interval_bar(metric)}"
            f"<small>{metric.low:.3f} – {metric.high:.3f} · {metric.num_items} items</small></div>"
        )
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _interval_bar(metric: Metric) -> str:
    low, high, value = (min(max(v, 0.0), 1.0) * 200 for v in (metric.low, metric.high, metric.value))
    return (
        "<svg viewBox='0 0 200 10' preserveAspectRatio='none' aria-hidden='true'><line class='axis' x1='0' x2='200' y1='5' y2='5' "
        f"stroke-width='2'/><rect class='tokens' x='{low:.1f}' y='2' width='{max(high - low, 0.5):.1f}' height='6'/>"
        f"<rect class='hit' x='{min(max(value - 1, 0), 198):.1f}' y='0' width='2' height='10'/></svg>"
    )


def _notes(found: Evaluation) -> list[str]:
    notes = []
    for title, named in (
        ("Missing answers, counted as wrong", found.missing_ids),
        ("Unreadable answers, counted as wrong", found.unreadable_ids),
        ("Answers to unknown ids, not counted", found.unknown_ids),
        ("Ids answered more than once; the first counts", found.duplicate_ids),
        ("Lines that are no prediction", found.bad_lines),
    ):
        if named:
            more = f" and {len(named) - 12} more" if len(named) > 12 else ""
            notes.append(f"<p class='note'>{title}: {len(named)} ({_text(', '.join(named[:12]))}{more})</p>")
    return notes


def _legend(*, with_tokens: bool, with_answers: bool) -> str:
    tones = [
        ("truth", "truth, found"),
        ("miss", "truth, not found"),
        *([("hit", "answer, right"), ("false", "answer, false")] if with_answers else []),
        *([("tokens", "tokens over time")] if with_tokens else []),
    ]
    entries = (
        f"<span><svg viewBox='0 0 12 12' aria-hidden='true'><rect class='{tone}' width='12' height='12' rx='3'/></svg>{told}</span>"
        for tone, told in tones
    )
    return f"<p class='legend'>{''.join(entries)}</p>"


def _timelines(found: Evaluation, durations: Mapping[str, float], token_bins: Mapping[str, Sequence[int]]) -> str:
    if not token_bins and not any(item.truth_marks or item.predicted_marks for item in found.items.values()):
        return ""
    clips = []
    has_answers = found.suite != "evidence"  # tokens are scored there, not answers
    for id_, item in found.items.items():
        marks = [*item.truth_marks, *item.predicted_marks]
        shown = max((mark.end_seconds for mark in item.truth_marks), default=0.0) * 1.05
        duration = durations.get(id_) or shown or max((mark.end_seconds for mark in marks), default=1.0) or 1.0
        main = item.metrics.get(found.main_metric)
        score = f"{_text(found.main_metric)} {main:.3f}" if main is not None else ""
        status = "" if item.status == "read" else f"<span class='bad'>{item.status}</span>"
        late = sum(mark.start_seconds > duration for mark in item.predicted_marks)
        told = f"{len(item.truth_marks)} true"
        told += f", {len(item.predicted_marks)} answered" if has_answers else ""
        told += f", {late} of them behind the end" if late else ""
        if max(len(item.truth_marks), len(item.predicted_marks) - late) > MAX_MARKS:
            told += f"; the first {MAX_MARKS} are drawn"
        clips.append(
            f"<div class='clip'><header><b>{_text(id_)}</b><span>{score}</span>{status}<span class='dim'>{told}</span></header>"
            f"{_timeline(item, duration, token_bins.get(id_), has_answers=has_answers)}</div>"
        )
        if len(clips) == MAX_TIMELINES:
            break
    return "\n".join(clips)


def _timeline(item: ItemScore, duration: float, bins: Sequence[int] | None, *, has_answers: bool) -> str:
    rows = [("truth", item.truth_marks), ("answer", item.predicted_marks)][: 2 if has_answers else 1]
    parts, y = [], 4
    for name, marks in rows:
        parts.append(f"<text x='{_PLOT_LEFT - 8}' y='{y + 13}' text-anchor='end'>{name}</text>")
        parts.append(
            f"<line class='axis' x1='{_PLOT_LEFT}' x2='{_PLOT_LEFT + _PLOT_WIDTH}' y1='{y + 18}' y2='{y + 18}'/>"
        )
        parts += [_mark(mark, duration, y) for mark in marks if mark.start_seconds <= duration][:MAX_MARKS]
        y += 24
    if bins is not None:
        highest = max(max(bins, default=0), 1)
        width = _PLOT_WIDTH / len(bins)
        parts.append(f"<text x='{_PLOT_LEFT - 8}' y='{y + 20}' text-anchor='end'>{sum(bins):,} tok.</text>")
        for index, count in enumerate(bins):
            if count:
                height = max(1.0, 28 * count / highest)
                x = _PLOT_LEFT + index * width
                parts.append(
                    f"<rect class='tokens' x='{x:.1f}' y='{y + 30 - height:.1f}' "
                    f"width='{max(width - 0.6, 0.6):.1f}' height='{height:.1f}'/>"
                )
        y += 34
    for step in range(6):
        x = _PLOT_LEFT + _PLOT_WIDTH * step / 5
        anchor = "start" if step == 0 else "end" if step == 5 else "middle"
        parts.append(
            f"<text x='{x:.0f}' y='{y + 12}' text-anchor='{anchor}'>{_clock(duration * step / 5, duration)}</text>"
        )
    return f"<svg viewBox='0 0 {_PLOT_LEFT + _PLOT_WIDTH + 6} {y + 18}' role='img' aria-label='timeline'>{''.join(parts)}</svg>"


def _clock(seconds: float, duration: float) -> str:
    """Of an axis: 0.08 s, 1.6 s, 12:00."""
    if duration >= 600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
    return f"{seconds:.{1 if duration >= 5 else 2}f} s"


def _mark(mark: Mark, duration: float, y: int) -> str:
    x0 = _PLOT_LEFT + min(max(mark.start_seconds / duration, 0.0), 1.0) * _PLOT_WIDTH
    x1 = _PLOT_LEFT + min(max(mark.end_seconds / duration, 0.0), 1.0) * _PLOT_WIDTH
    width = max(x1 - x0, 3.0)
    told = (
        f"{mark.start_seconds:.2f} s"
        if mark.end_seconds == mark.start_seconds
        else f"{mark.start_seconds:.2f} – {mark.end_seconds:.2f} s"
    )
    x = x0 - 1.5 if x1 - x0 < 3 else x0
    return f"<rect class='{mark.tone}' x='{x:.1f}' y='{y}' width='{width:.1f}' height='17' rx='1'><title>{told}</title></rect>"


def _figure(svg: str) -> str:
    return f"<div class='card figure'>{svg}</div>"


def _curve_table(curves: Sequence[CurvePoint]) -> str:
    rows = []
    for point in curves:
        seconds = "–" if point.mean_seconds is None else f"{point.mean_seconds:.2f}"
        recalls = [
            "–" if value is None else f"{value:.3f}" for value in (point.event_recall, point.strict_event_recall)
        ]
        cells = [
            point.mode, str(point.budget), f"{point.mean_tokens:.0f}", seconds, f"{point.value:.4f}",
            f"{point.low:.4f} – {point.high:.4f}", *recalls, str(point.num_missing),
        ]  # fmt: skip
        rows.append("".join(f"<td>{_text(cell)}</td>" for cell in cells))
    names = ("input", "budget", "tokens", "seconds", curves[0].metric, "95 %", "event recall", "strict", "missing")
    return _table(names, rows)


def _group_table(found: Evaluation) -> str:
    names = list(dict.fromkeys(name for metrics in found.groups.values() for name in metrics))
    rows = []
    for group, metrics in found.groups.items():
        num_items = max(metric.num_items for metric in metrics.values())
        cells = [f"{metrics[name].value:.3f}" if name in metrics else "–" for name in names]
        rows.append("".join(f"<td>{_text(cell)}</td>" for cell in [group, num_items, *cells]))
    return _table(["type", "items", *names], rows)


def _item_table(found: Evaluation) -> str:
    names = list(found.metrics)[:5]
    rows = []
    for id_, item in list(found.items.items())[:MAX_ROWS]:
        cells = [f"{item.metrics[name]:.3f}" if name in item.metrics else "–" for name in names]
        answer = found.answers.get(id_, "")
        status = f"<span class='bad'>{item.status}</span>" if item.status != "read" else "read"
        rows.append(
            f"<td class='id'>{_text(id_)}</td><td>{status}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td class='text'>{_text(answer[:400])}</td>"
        )
    more = f"<p class='dim'>and {len(found.items) - MAX_ROWS} more</p>" if len(found.items) > MAX_ROWS else ""
    return _table(["id", "status", *names, "answer"], rows) + more


def _table(names: Sequence[object], rows: Sequence[str]) -> str:
    head = "".join(f"<th{' class=text' if name == 'answer' else ''}>{_text(name)}</th>" for name in names)
    return f"<div class='table'><table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>"
