"""Raster and block order of patches, against loops."""

import pytest

torch = pytest.importorskip("torch", reason="the model needs torch")
pytest.importorskip("transformers", reason="the model needs transformers")

import naive_model as naive  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from model_inputs import codec_positions, to_raster  # noqa: E402

from ov2_core.model.patch_order import block_order, grid_positions, positions_in_block_order  # noqa: E402


@settings(max_examples=30, deadline=None)
@given(t=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), merge=st.integers(1, 3))
def test_block_order_equals_loops(t, rows, columns, merge):
    h, w = rows * merge, columns * merge
    assert block_order([[t, h, w]], merge=merge).tolist() == naive.block_order(t, h, w, merge)


def test_block_order_of_several_rows_is_one_after_the_other():
    order = block_order([[1, 2, 4], [2, 2, 2]], merge=2).tolist()
    assert order == [0, 1, 4, 5, 2, 3, 6, 7, *range(8, 16)]


def test_block_order_of_a_side_that_does_not_merge_names_the_row():
    with pytest.raises(ValueError, match=r"row 1 .* multiples of 2"):
        block_order([[1, 2, 2], [1, 3, 2]], merge=2)


def test_grid_positions_are_places_in_the_canvas():
    assert grid_positions([[2, 2, 2]], merge=2).tolist() == [
        [t, h, w] for t in range(2) for h in range(2) for w in range(2)
    ]
    assert grid_positions([[1, 2, 4]], merge=2)[4].tolist() == [0, 0, 2]


@settings(max_examples=40, deadline=None)
@given(
    grid=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    merge=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_positions_are_told_apart_and_end_in_block_order(grid, merge, seed):
    grid = [(t, h * merge, w * merge) for t, h, w in grid]
    positions = codec_positions(grid, merge, seed=seed)
    assert torch.equal(positions_in_block_order(positions, grid, merge=merge), positions)
    if merge > 1:
        raster = to_raster(positions, grid, merge)
        assert torch.equal(positions_in_block_order(raster, grid, merge=merge), positions)


def test_positions_of_no_order_are_taken_as_they_are_with_a_warning(caplog):
    positions = torch.tensor([[0, 5, 1], [3, 2, 2], [1, 1, 1], [0, 0, 9]])
    assert torch.equal(positions_in_block_order(positions, [[1, 2, 2]], merge=2), positions)
    assert "neither order" in caplog.text
