"""Answers as text: numbers, points, boxes, 3D traces, and back. Tracks: ov2_core/data/tracking.py.

Points and boxes count 0-999 of the image's width and height, traces 0-1000 with a depth in metres.
"""

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGH"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_POINT = re.compile(r"\((\d{1,3}), (\d{1,3})\)")
_POINTS = re.compile(r"\[\(\d{1,3}, \d{1,3}\)(?:, \(\d{1,3}, \d{1,3}\))*\]")
_BOX = re.compile(r"\[(\d{1,3}), (\d{1,3}), (\d{1,3}), (\d{1,3})\]")
_WAYPOINT = re.compile(r"\((\d{1,4}), (\d{1,4}), (\d+\.\d+)\)")
_TRACE = re.compile(r"\[\(\d{1,4}, \d{1,4}, \d+\.\d+\)(?:, \(\d{1,4}, \d{1,4}, \d+\.\d+\))*\]")


def number_text(value: float, step: float) -> str:
    """The value rounded to a multiple of `step` (halves up), with as many decimals as the step has."""
    decimals = len(f"{step:g}".partition(".")[2])
    return f"{int(value / step + 0.5) * step:.{decimals}f}"


def points_text(points: Sequence[tuple[int, int]]) -> str:
    """[(x1, y1), (x2, y2)]"""
    return "[" + ", ".join(f"({x}, {y})" for x, y in points) + "]"


def box_text(box: Sequence[int]) -> str:
    """[x1, y1, x2, y2]"""
    return "[" + ", ".join(map(str, box)) + "]"


def trace_text(waypoints: Sequence[tuple[int, int, float]]) -> str:
    """[(x, y, d), ...], d in metres to two decimals."""
    return "[" + ", ".join(f"({x}, {y}, {d:.2f})" for x, y, d in waypoints) + "]"


def parse_number(text: str) -> float:
    """Raises ValueError unless the text is one number."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"expected a number, got {text!r:.80}")
    return float(text)


def parse_points(text: str) -> list[tuple[int, int]]:
    """Raises ValueError unless the text is a list of points."""
    if not _POINTS.fullmatch(text.strip()):
        raise ValueError(f"expected [(x, y), ...] 0-999, got {text!r:.80}")
    return [(int(x), int(y)) for x, y in _POINT.findall(text)]


def parse_box(text: str) -> tuple[int, int, int, int]:
    """Raises ValueError unless the text is a box with x1 < x2 and y1 < y2."""
    found = _BOX.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected [x1, y1, x2, y2] 0-999, got {text!r:.80}")
    x1, y1, x2, y2 = map(int, found.groups())
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"expected x1 < x2 and y1 < y2, got {text!r}")
    return x1, y1, x2, y2


def parse_trace(text: str) -> list[tuple[int, int, float]]:
    """Raises ValueError unless the text is a trace of 5 to 10 waypoints."""
    if not _TRACE.fullmatch(text.strip()):
        raise ValueError(f"expected [(x, y, d), ...], got {text!r:.80}")
    waypoints = [(int(x), int(y), float(d)) for x, y, d in _WAYPOINT.findall(text)]
    if not 5 <= len(waypoints) <= 10 or any(max(x, y) > 1000 for x, y, _ in waypoints):
        raise ValueError(f"expected 5 to 10 waypoints within 0-1000, got {text!r:.120}")
    return waypoints
