import pytest
from hypothesis import given
from hypothesis import strategies as st

from ov2_core.data.tracking import TrackPoint, format_tracks, parse_tracks, to_unit_thousand

POINTS = st.lists(
    st.builds(
        TrackPoint,
        st.integers(0, 600).map(lambda tick: tick / 10),
        st.integers(1, 5),
        st.integers(0, 1000),
        st.integers(0, 1000),
    ),
    unique_by=lambda point: (point.seconds, point.object_id),
    max_size=30,
)


def test_text_is_the_documented_one() -> None:
    points = [TrackPoint(0.5, 2, 77, 801), TrackPoint(0.0, 1, 520, 431), TrackPoint(0.5, 1, 522, 430)]
    text = format_tracks(points)
    assert text == '<tracks coords="0.0 1 520 431;0.5 1 522 430 2 77 801">target objects</tracks>'
    assert parse_tracks(f"Here: {text}.") == sorted(points)
    assert parse_tracks(text.replace(";", "; ")) == sorted(points)
    assert format_tracks([]) == '<tracks coords="">target objects</tracks>'


@given(points=POINTS)
def test_round_trip(points: list[TrackPoint]) -> None:
    assert parse_tracks(format_tracks(points)) == sorted(points)


@pytest.mark.parametrize(
    "points",
    [
        [TrackPoint(0.11, 1, 0, 0), TrackPoint(0.14, 1, 5, 5)],
        [TrackPoint(-0.1, 1, 0, 0)],
        [TrackPoint(0.0, 1, 1001, 0)],
        [TrackPoint(0.0, 1, 0, -1)],
        [TrackPoint(float("nan"), 1, 0, 0)],
    ],
)
def test_points_that_cannot_be_written_are_refused(points: list[TrackPoint]) -> None:
    with pytest.raises(ValueError, match=r"two points|expected seconds"):
        format_tracks(points)


@pytest.mark.parametrize(
    "coords", ["0.0 1 2", "0.0", "x 1 2 3", "0.0 1 2.5 3", "0.0 1 2 1001", "-1 1 2 3", "nan 1 2 3", "0.0 1 2 3 4"]
)
def test_malformed_coords_are_refused(coords: str) -> None:
    with pytest.raises(ValueError, match=r"expected|invalid|could not"):
        parse_tracks(f'<tracks coords="{coords}">target objects</tracks>')


def test_one_element_is_expected() -> None:
    one = format_tracks([])
    for text in ("", one + one):
        with pytest.raises(ValueError, match="expected one"):
            parse_tracks(text)


def test_coordinates_round_to_thousandths() -> None:
    assert [to_unit_thousand(x, 640) for x in (0, 0.32, 320, 639.9, 640)] == [0, 1, 500, 1000, 1000]
    for value in (-0.01, 640.01, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            to_unit_thousand(value, 640)
