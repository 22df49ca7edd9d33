"""The picture of a sample: its size, its canvases at their place, the overlay."""

import numpy as np
import pytest

from ov2_core.report.draw import draw_sample, ramp_colour


def find_tile(picture: np.ndarray, tile: np.ndarray) -> tuple[int, int] | None:
    """(y, x) where the tile's pixels stand exactly, or None."""
    corner = (picture == tile[0, 0]).all(-1)
    for y, x in np.argwhere(corner[: -tile.shape[0], : -tile.shape[1]]):
        if (picture[y : y + tile.shape[0], x : x + tile.shape[1]] == tile).all():
            return int(y), int(x)
    return None


def test_draw_without_overlay_shows_every_canvas_unchanged_in_order(stored):
    picture = np.asarray(draw_sample(stored, overlay=False, image_width_px=stored.record.image_width_px))
    places = [find_tile(picture, tile) for tile in stored.images_NHW3]
    assert None not in places
    assert places == sorted(places)
    assert len({y for y, _ in places}) == len(stored.record.groups)


def test_draw_overlay_tints_p_canvases_by_time(stored):
    plain = np.asarray(draw_sample(stored, overlay=False)).astype(int)
    tinted = np.asarray(draw_sample(stored, overlay=True)).astype(int)
    assert plain.shape == tinted.shape
    changed = (plain != tinted).any(-1).mean()
    assert 0.2 < changed < 0.9


@pytest.mark.parametrize("max_groups", [1, 3])
def test_draw_bounds_the_number_of_groups(stored_factory, max_groups):
    stored = stored_factory(num_groups=5)
    assert draw_sample(stored, max_groups=max_groups).height < draw_sample(stored).height


def test_draw_packs_single_frames_four_in_a_row(stored_factory, with_record):
    stored = stored_factory(num_groups=2)
    singles = [
        group.model_copy(update={"first_image": 4 * g + i, "num_images": 1})
        for g, group in enumerate(stored.record.groups)
        for i in range(4)
    ]
    picture = draw_sample(with_record(stored, groups=singles, mode="uniform", policy=None))
    assert picture.size == draw_sample(stored).size


def test_draw_takes_a_still_and_an_endless_id(stored_factory, with_record):
    stored = stored_factory(num_groups=1, video_id="x" * 5000 + "\nы漢字")
    picture = draw_sample(with_record(stored, fps=None, mode="still", media="image", policy=None))
    assert picture.mode == "RGB"


def test_ramp_runs_from_old_to_new():
    assert ramp_colour(-1) == ramp_colour(0) != ramp_colour(1) == ramp_colour(2)
