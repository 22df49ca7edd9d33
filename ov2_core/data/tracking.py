"""Points over time as text, and back: the answer format of tracking.

    <tracks coords="0.0 1 520 431;0.5 1 522 430 2 77 801">target objects</tracks>

Each instant is `t id x y` with further `id x y` of the same instant behind it; t in seconds from the clip's first frame, x and
y integers 0-1000 of the frame's width and height, origin top left. Instants ascend, ids ascend within one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COORDINATE_MAX = 1000
TARGET = "target objects"
_TRACKS = re.compile(r'<tracks coords="([^"]*)">([^<]*)</tracks>')


@dataclass(frozen=True, order=True, slots=True)
class TrackPoint:
    """One point of one object at one time."""

    seconds: float
    object_id: int
    x: int
    """0-1000 of the width."""
    y: int
    """0-1000 of the height."""


def to_unit_thousand(value: float, extent: float) -> int:
    """A coordinate in [0, extent] as an integer 0-1000, halves away from zero.

    Raises:
        ValueError: outside the extent, or not a number.
    """
    if not 0 <= value <= extent or not extent > 0:
        raise ValueError(f"the coordinate {value} lies outside [0, {extent}]")
    return min(COORDINATE_MAX, int(value / extent * COORDINATE_MAX + 0.5))


def format_tracks(points: Sequence[TrackPoint], *, decimals: int = 1) -> str:
    """Points in any order to the answer; no points give `coords=""`.

    Raises:
        ValueError: two points of one object at one time as written, a negative time, a coordinate outside 0-1000.
    """
    instants: dict[str, dict[int, TrackPoint]] = {}
    for point in sorted(points):
        if not 0 <= point.seconds < float("inf") or not (
            0 <= point.x <= COORDINATE_MAX and 0 <= point.y <= COORDINATE_MAX
        ):
            raise ValueError(f"{point}: expected seconds >= 0 and coordinates in 0-{COORDINATE_MAX}")
        instant = instants.setdefault(f"{point.seconds:.{decimals}f}", {})
        if point.object_id in instant:
            raise ValueError(
                f"object {point.object_id} has two points at {point.seconds:.{decimals}f} s; "
                "write more decimals or sample fewer frames"
            )
        instant[point.object_id] = point
    return f'<tracks coords="{";".join(_instant(seconds, at) for seconds, at in instants.items())}">{TARGET}</tracks>'


def parse_tracks(text: str) -> list[TrackPoint]:
    """The points of a tracks answer, in order; blanks after ";" are allowed.

    Raises:
        ValueError: there is not exactly one tracks element, or its coords are not `t id x y ...`.
    """
    found = _TRACKS.findall(text)
    if len(found) != 1:
        raise ValueError(f"expected one <tracks coords=...> element, got {len(found)}")
    points = []
    for instant in filter(None, (part.strip() for part in found[0][0].split(";"))):
        fields = instant.split()
        if len(fields) < 4 or len(fields) % 3 != 1:
            raise ValueError(f"{instant!r}: expected 't id x y', then 'id x y' for each further object")
        try:
            seconds = float(fields[0])
            numbers = [int(field) for field in fields[1:]]
        except ValueError as error:
            raise ValueError(f"{instant!r}: {error}") from error
        for i in range(0, len(numbers), 3):
            point = TrackPoint(seconds, *numbers[i : i + 3])
            if not (
                0 <= seconds < float("inf") and max(point.x, point.y) <= COORDINATE_MAX and min(point.x, point.y) >= 0
            ):
                raise ValueError(f"{instant!r}: expected seconds >= 0 and coordinates in 0-{COORDINATE_MAX}")
            points.append(point)
    return points


def _instant(seconds: str, points: Mapping[int, TrackPoint]) -> str:
    return " ".join([seconds, *(f"{id_} {point.x} {point.y}" for id_, point in sorted(points.items()))])
