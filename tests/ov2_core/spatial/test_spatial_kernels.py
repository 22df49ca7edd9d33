"""Compiled loops of task types and checker against the same in plain numpy."""

import numpy as np
import pytest
from spatial_scenes import hand_scene

from ov2_core.spatial.checker import Evidence
from ov2_core.spatial.checker.evidence import stands_nearer
from ov2_core.spatial.scene import extent, stable_order
from ov2_core.spatial.tasks.same_object import _close_by


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (12, 9)])
def test_extent_is_least_and_greatest_of_the_pixels_around(dtype, shape) -> None:
    image = np.random.default_rng(3).integers(0, 9, shape).astype(dtype)
    if dtype is np.float32 and image.size > 1:
        image[0, 0] = np.inf
    lows, highs = extent(image)
    for row in range(shape[0]):
        for column in range(shape[1]):
            around = image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            assert (lows[row, column], highs[row, column]) == (around.min(), around.max())


@pytest.mark.parametrize("most", [0, 5, 70_000])
def test_stable_order_is_that_of_numpy(most: int) -> None:
    ids = np.random.default_rng(most).integers(0, most + 1, 500).astype(np.int32)
    np.testing.assert_array_equal(stable_order(ids), np.argsort(ids, kind="stable"))
    assert len(stable_order(ids[:0])) == 0


def test_neighbours_of_a_point_are_those_of_all_places() -> None:
    rng = np.random.default_rng(1)
    width = 40
    for _ in range(20):
        places = np.sort(rng.choice(width * 30, 300, replace=False))
        own, start = (int(x) for x in rng.integers(0, width * 30, 2))
        rows, columns = np.divmod(places, width)
        row, column = divmod(own, width)
        close = np.maximum(abs(rows - row), abs(columns - column)) <= 7.5
        less = abs(rows - start // width) < abs(row - start // width)
        found = _close_by(places, width, own, start, 7.5)
        np.testing.assert_array_equal(found[0], np.flatnonzero(close & less))
        np.testing.assert_array_equal(found[1], np.flatnonzero(close & ~less))


def test_something_stands_nearer_if_the_least_of_all_distances_says_so() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        places, cloud = rng.uniform(0, 4, (3, 2)), rng.uniform(0, 4, (20, 3))
        least = np.linalg.norm(places[:, None] - cloud[None, :, :2], axis=-1).min()
        assert stands_nearer(places, cloud, least + 1e-9)
        assert not stands_nearer(places, cloud, least)
    assert not stands_nearer(places, cloud[:0], 9.0)


def test_points_of_a_whole_frame_are_those_of_its_pixels() -> None:
    scene = hand_scene()
    scene.depth_FHW[1, 5, 6] = 0
    evidence = Evidence(scene)
    rows, columns = np.divmod(np.arange(240 * 320), 320)
    np.testing.assert_allclose(evidence.world(1).T, evidence.world_at(1, rows, columns), atol=1e-9)
    assert np.isnan(evidence.world(1)[:, 5 * 320 + 6]).all()
