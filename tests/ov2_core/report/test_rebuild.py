"""Hold reconstruction against a block-by-block loop, and the checks on positions."""

import dataclasses

import numpy as np
import pytest

from ov2_core.report.rebuild import UNSEEN_GREY, block_sources, rebuild_frames
from ov2_core.storage.reader import StoredSample


def rebuild_naively(stored, seconds):
    record = stored.record
    side = record.patch_px * record.merge
    frame = np.full((record.image_height_px, record.image_width_px, 3), UNSEEN_GREY, np.uint8)
    best = {}
    for image, positions in zip(stored.images_NHW3, stored.positions_NP3, strict=True):
        for patch, (t, h, w) in enumerate(positions):
            py, px = divmod(patch, record.image_width_px // record.patch_px)
            if t <= seconds * record.fps and t >= best.get((h, w), -1):
                best[h, w] = t
                p = record.patch_px
                frame[h * p : h * p + p, w * p : w * p + p] = image[py * p : py * p + p, px * p : px * p + p]
    assert side % record.patch_px == 0
    return frame


@pytest.mark.parametrize("seed", [0, 1])
def test_rebuild_agrees_with_a_naive_loop(stored_factory, seed):
    stored = stored_factory(seed=seed)
    times = [0.0, 0.05, 0.7, 1.9, 2.0, 3.3, 99.0]
    rebuilt = rebuild_frames(stored, times)
    for frame, seconds in zip(rebuilt, times, strict=True):
        np.testing.assert_array_equal(frame, rebuild_naively(stored, seconds))


def test_rebuild_is_grey_where_nothing_was_given_yet(make_tokenized, make_encoded):
    tokenized = make_tokenized(num_groups=1)
    late = dataclasses.replace(tokenized, positions_NP3=tokenized.positions_NP3 + np.array([5, 0, 0], np.int32))
    shifted = StoredSample(key="late", tar_name="", members=make_encoded(late).members)
    assert (rebuild_frames(shifted, [0.4]) == UNSEEN_GREY).all()
    assert (rebuild_frames(shifted, [0.5]) != UNSEEN_GREY).any()


def test_rebuild_takes_times_in_any_order(stored):
    forward = rebuild_frames(stored, [0.3, 1.2, 3.0])
    np.testing.assert_array_equal(rebuild_frames(stored, [3.0, 0.3, 1.2]), forward[[2, 0, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:-1], "expected shape"),
        (lambda p: p + np.eye(len(p), 3, dtype=np.int32), "mixes sources"),
        (lambda p: p + np.array([0, 1, 0], np.int32), "mixes sources"),
        (lambda p: p + np.array([0, 2, 0], np.int32), "outside the source frame"),
        (lambda p: p - np.array([100, 0, 0], np.int32), "outside the source frame"),
    ],
)
def test_block_sources_refuses_positions_that_are_not_blocks(stored, change, message):
    with pytest.raises(ValueError, match=message) as error:
        block_sources(stored.record, change(stored.positions_NP3[0]))
    assert "'clip 0'" in str(error.value)
