"""Conversions on cases that can be worked out by hand; docs/spatial.md shows the same ones as pictures."""

import numpy as np
import pytest

from ov2_core.spatial.geometry import (
    bearing_radians,
    box_corners,
    direction_8,
    from_thousand,
    invert_rigid,
    look_at,
    polygon_area,
    project,
    to_thousand,
    transform,
    unproject,
    yaw_matrix,
)

INTRINSICS = [100.0, 100.0, 50.0, 40.0]


def test_a_camera_that_looks_north_has_east_to_its_right_and_the_ground_below() -> None:
    camera_from_world = invert_rigid(look_at([0, 0, 1], [0, 5, 1]))
    np.testing.assert_allclose(transform(camera_from_world, [2, 5, 1]), [2, 0, 5], atol=1e-12)  # east: right
    np.testing.assert_allclose(transform(camera_from_world, [0, 5, 0]), [0, 1, 5], atol=1e-12)  # the floor: down
    np.testing.assert_allclose(transform(camera_from_world, [0, -5, 1]), [0, 0, -5], atol=1e-12)  # behind


def test_a_camera_that_looks_west_has_north_to_its_right() -> None:
    camera_from_world = invert_rigid(look_at([0, 0, 0], [-1, 0, 0]))
    np.testing.assert_allclose(transform(camera_from_world, [-3, 2, 0]), [2, 0, 3], atol=1e-12)


def test_a_level_camera_cannot_look_straight_down() -> None:
    with pytest.raises(ValueError, match="straight"):
        look_at([0, 0, 2], [0, 0, 0])


def test_a_pose_is_a_rotation_and_its_inverse_undoes_it() -> None:
    pose = look_at([1, 2, 1.5], [4, -1, 0.5])
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(invert_rigid(pose) @ pose, np.eye(4), atol=1e-12)


def test_projection_by_hand_and_back() -> None:
    # 2 m ahead, 1 m right, half a metre down: u = 100 * 1 / 2 + 50, v = 100 * 0.5 / 2 + 40.
    np.testing.assert_allclose(project(INTRINSICS, [1.0, 0.5, 2.0]), [100.0, 65.0])
    np.testing.assert_allclose(unproject(INTRINSICS, [100.0, 65.0], 2.0), [1.0, 0.5, 2.0])
    assert np.isnan(project(INTRINSICS, [1.0, 0.5, -2.0])).all()


def test_bearings_are_positive_to_the_left() -> None:
    # Standing at the origin, facing north: west is left, east is right, south is behind.
    assert bearing_radians([0, 0], [0, 1], [-1, 0]) == pytest.approx(np.pi / 2)
    assert bearing_radians([0, 0], [0, 1], [1, 0]) == pytest.approx(-np.pi / 2)
    assert abs(bearing_radians([0, 0], [0, 1], [0, -2])) == pytest.approx(np.pi)
    # The same three, facing west instead: north is now right.
    assert bearing_radians([0, 0], [-1, 0], [0, 1]) == pytest.approx(-np.pi / 2)


EIGHT = {0: "front", 45: "front-left", 90: "left", 135: "back-left", 180: "back", -135: "back-right", -90: "right"}
EIGHT |= {-45: "front-right", 20: "front", 25: "front-left", -179: "back"}


@pytest.mark.parametrize(("degrees", "name"), EIGHT.items())
def test_eight_directions(degrees: float, name: str) -> None:
    found, margin = direction_8(np.radians(degrees))
    assert found == name
    off = abs((degrees + 22.5) % 45 - 22.5)
    assert np.degrees(margin) == pytest.approx(22.5 - off)


def test_corners_of_a_turned_box() -> None:
    corners = box_corners([1, 2, 0.5], [2.0, 1.0, 1.0], yaw_matrix(np.pi / 2))
    # Turned by 90 degrees its x edge of 2 m lies along the world's y.
    np.testing.assert_allclose(corners.min(axis=0), [0.5, 1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(corners.max(axis=0), [1.5, 3.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(corners[1] - corners[0], [0, 2, 0], atol=1e-12)  # bit 0: the box's x


def test_area_of_an_l_shaped_floor() -> None:
    assert polygon_area([[0, 0], [4, 0], [4, 2], [2, 2], [2, 5], [0, 5]]) == pytest.approx(8 + 6)


@pytest.mark.parametrize("width", [320, 640, 1000, 1920])
def test_thousandths_name_the_pixel_or_its_neighbour(width: int) -> None:
    for column in range(0, width, 7):
        x, _ = to_thousand((column + 0.5, 0.5), width, width)
        assert abs(from_thousand(x, 0, width, width)[0] - (column + 0.5)) <= width / 1000
    assert to_thousand((width, width), width, width) == (999, 999)
