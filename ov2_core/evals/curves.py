"""The same questions over input modes and budgets: what each gives, against the tokens that it costs.

Enters: points, each an evaluation of one mode at one budget. Leaves: curves.json and a figure (SVG, no library), as the published
comparison of codec and uniform input is drawn: the metric against visual tokens, a line a mode, bars for 95 % intervals. Modes get
the tokens that they really cost: the mean over clips, not the budget's name.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLOURS = {"codec": "#4f46e5", "evidence": "#0f8a5f", "frames": "#d97706", "stills": "#8b5cf6"}
_OTHERS = ("#0e96dc", "#ec4899", "#84a814", "#ef5a3c")
_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 60, 58


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One mode at one budget."""

    mode: str
    budget: int
    metric: str
    value: float
    low: float
    high: float
    mean_tokens: float
    mean_seconds: float | None
    """Of a question."""
    num_items: int
    num_missing: int
    event_recall: float | None = None
    """Of the same clips' tokens, where their events are known."""
    strict_event_recall: float | None = None
    metrics: dict[str, float] | None = None
    """All metrics of the suite."""


def curves_json(suite: str, points: Sequence[CurvePoint]) -> dict[str, Any]:
    """All points, by mode and tokens."""
    return {"suite": suite, "points": [asdict(point) for point in _ordered(points)]}


def curves_text(points: Sequence[CurvePoint]) -> str:
    """A table."""
    lines = [
        f"{'mode':<10}{'budget':>7}{'tokens':>9}{'s':>8}  {points[0].metric:>8}  interval            events  strict"
    ]
    for point in _ordered(points):
        seconds = "-" if point.mean_seconds is None else f"{point.mean_seconds:.2f}"
        recall = "-" if point.event_recall is None else f"{point.event_recall:.3f}"
        strict = "-" if point.strict_event_recall is None else f"{point.strict_event_recall:.3f}"
        lines.append(
            f"{point.mode:<10}{point.budget:>7}{point.mean_tokens:>9.0f}{seconds:>8}  {point.value:>8.4f}  "
            f"[{point.low:.4f}, {point.high:.4f}]  {recall:>6}  {strict:>6}"
        )
    return "\n".join(lines)


def draw_curves(points: Sequence[CurvePoint], *, title: str, field: str = "value", y_label: str | None = None) -> str:
    """The figure as SVG text.

    Args:
        field: what is drawn: value, event_recall or strict_event_recall; points without it are left out.

    Raises:
        ValueError: nothing to draw.
    """
    drawn = [point for point in _ordered(points) if getattr(point, field) is not None]
    if not drawn:
        raise ValueError(f"no point has {field}")
    label = y_label or (drawn[0].metric if field == "value" else field.replace("_", " "))
    tokens = [max(point.mean_tokens, 1.0) for point in drawn]
    low_x, high_x = math.log2(min(tokens)), math.log2(max(tokens))
    pad = max(0.15, 0.05 * (high_x - low_x))
    low_x, high_x = low_x - pad, high_x + pad
    tops = [point.high if field == "value" else getattr(point, field) for point in drawn]
    high_y = min(1.0, _ceil_nice(max(max(tops), 0.02)))

    def x_of(value: float) -> float:
        return _LEFT + (math.log2(max(value, 1.0)) - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / high_y * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="system-ui, Segoe UI, Liberation Sans, sans-serif" font-size="12" fill="currentColor">',
        f"<title>{html.escape(title)}</title>",
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for step in range(6):
        value = high_y * step / 5
        y = y_of(value)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".14"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    last_x = -math.inf
    for value in sorted({round(token) for token in tokens}):
        x = x_of(value)
        parts.append(
            f'<line x1="{x:.1f}" y1="{_HEIGHT - _BOTTOM}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM + 5}" stroke="currentColor"/>'
        )
        if x - last_x > 44:
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 19}" text-anchor="middle">{value:,}</text>')
            last_x = x
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{centre:.0f}" y="{_HEIGHT - 18}" text-anchor="middle">visual tokens a clip (mean, log scale)</text>'
    )
    parts.append(
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">{html.escape(label)}</text>'
    )
    modes = list(dict.fromkeys(point.mode for point in drawn))
    for number, mode in enumerate(modes):
        colour = COLOURS.get(mode, _OTHERS[number % len(_OTHERS)])
        own = [point for point in drawn if point.mode == mode]
        places = [(x_of(max(point.mean_tokens, 1.0)), y_of(getattr(point, field))) for point in own]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-linejoin="round"/>'
        )
        for point, (x, y) in zip(own, places, strict=True):
            if field == "value":
                y0, y1 = y_of(min(point.high, high_y)), y_of(point.low)
                parts.append(
                    f'<path d="M{x:.1f} {y0:.1f}V{y1:.1f}M{x - 4:.1f} {y0:.1f}h8M{x - 4:.1f} {y1:.1f}h8" '
                    f'stroke="{colour}" stroke-opacity=".55" fill="none"/>'
                )
            told = f"{mode} {point.budget}: {getattr(point, field):.4f} at {point.mean_tokens:.0f} tokens"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{html.escape(told)}</title></circle>'
            )
        legend_x = _LEFT + 110 * number
        parts.append(f'<rect x="{legend_x}" y="32" width="12" height="12" rx="3" fill="{colour}"/>')
        parts.append(f'<text x="{legend_x + 18}" y="42">{html.escape(mode)}</text>')
    return "\n".join([*parts, "</svg>"])


def _ordered(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    modes = list(dict.fromkeys(point.mode for point in points))
    return sorted(points, key=lambda point: (modes.index(point.mode), point.mean_tokens, point.budget))


def _ceil_nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))
