"""Patches and positions in block order, against loops and against the released image processor's own code in transformers."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from ov2_core.model.patches import (
    PIXEL_MEAN,
    PIXEL_STD,
    cut_patches,
    merged_times,
    normalise,
    patchify,
    to_block_order,
)


def naive_patches(image_HW3: np.ndarray, patch_px: int, merge: int) -> np.ndarray:
    """Float64 rows, by loops over the definition."""
    rows, columns = image_HW3.shape[0] // patch_px, image_HW3.shape[1] // patch_px
    out = []
    for block_row in range(rows // merge):
        for block_column in range(columns // merge):
            for i in range(merge):
                for j in range(merge):
                    y, x = (block_row * merge + i) * patch_px, (block_column * merge + j) * patch_px
                    values = []
                    for channel in range(3):
                        for dy in range(patch_px):
                            for dx in range(patch_px):
                                value = float(image_HW3[y + dy, x + dx, channel]) / 255
                                values.append((value - PIXEL_MEAN[channel]) / PIXEL_STD[channel])
                    out.append(values)
    return np.array(out)


@pytest.mark.parametrize(
    ("height", "width", "patch_px", "merge"), [(28, 56, 14, 2), (84, 56, 14, 2), (12, 18, 2, 3), (8, 12, 4, 1)]
)
def test_patchify_equals_loops(height: int, width: int, patch_px: int, merge: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    num = 2 * (height // patch_px) * (width // patch_px)
    got = patchify(images, num_patches=num, patch_px=patch_px, merge=merge)
    want = np.concatenate([naive_patches(image, patch_px, merge) for image in images])
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-6)


def test_patchify_equals_the_image_processor_of_transformers() -> None:
    from transformers import Qwen2VLImageProcessorPil

    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (84, 112, 3), dtype=np.uint8)
    released = Qwen2VLImageProcessorPil(
        patch_size=14, temporal_patch_size=1, merge_size=2, do_resize=False, image_mean=PIXEL_MEAN, image_std=PIXEL_STD
    )
    want = released(images=[image], return_tensors="pt")
    got = patchify([image], num_patches=48, patch_px=14, merge=2)
    assert want["image_grid_thw"].tolist() == [[1, 6, 8]]
    torch.testing.assert_close(got, want["pixel_values"], rtol=0, atol=1e-5)


def test_patchify_in_uint8_is_normalised_to_the_same_values() -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 28, 56, 3), dtype=np.uint8)
    raw = patchify(images, num_patches=24, patch_px=14, merge=2, dtype=torch.uint8)
    assert raw.dtype == torch.uint8
    for dtype in (torch.float32, torch.bfloat16):
        want = patchify(images, num_patches=24, patch_px=14, merge=2, dtype=dtype)
        assert torch.equal(normalise(raw, dtype=dtype), want)


def test_cut_patches_loses_and_repeats_nothing() -> None:
    image = np.random.default_rng(3).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    patches = cut_patches(image, patch_px=14, merge=2)
    assert np.array_equal(np.sort(patches, axis=None), np.sort(image, axis=None))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((30, 28, 3), np.uint8),
        np.zeros((28, 28, 4), np.uint8),
        np.zeros((28, 28, 3), np.float32),
        np.zeros((0, 28, 3), np.uint8),
    ],
)
def test_cut_patches_refuses_what_does_not_fit(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"multiples of 28|uint8 \[H, W, 3\]"):
        cut_patches(image, patch_px=14, merge=2)


@pytest.mark.parametrize("num_patches", [3, 5])
def test_patchify_counts_its_patches(num_patches: int) -> None:
    with pytest.raises(ValueError, match="patches"):
        patchify([np.zeros((28, 28, 3), np.uint8)], num_patches=num_patches, patch_px=14, merge=2)


@pytest.mark.parametrize(("rows", "columns", "merge"), [(2, 4, 2), (6, 4, 2), (3, 6, 3), (2, 3, 1)])
def test_positions_in_block_order_equal_loops(rows: int, columns: int, merge: int) -> None:
    positions = np.random.default_rng(4).integers(0, 99, (3, rows * columns, 3)).astype(np.int32)
    want = []
    for image in range(3):
        for block_row in range(rows // merge):
            for block_column in range(columns // merge):
                for i in range(merge):
                    for j in range(merge):
                        want.append(positions[image, (block_row * merge + i) * columns + block_column * merge + j])
    got = to_block_order(positions, rows=rows, columns=columns, merge=merge)
    assert np.array_equal(got.reshape(-1, 3), np.array(want))


def test_merged_times_refuse_padding_and_mixed_blocks() -> None:
    positions = np.zeros((1, 8, 3), np.int32)
    positions[0, [2, 3, 6, 7], 0] = 7
    assert merged_times(positions, rows=2, columns=4, merge=2).tolist() == [0, 7]
    positions[0, 0, 0] = 5
    with pytest.raises(ValueError, match="mixes times"):
        merged_times(positions, rows=2, columns=4, merge=2)
    with pytest.raises(ValueError, match="t < 0"):
        merged_times(np.full((1, 4, 3), -1, np.int32), rows=2, columns=2, merge=2)


def test_block_order_is_that_of_the_golden_model() -> None:
    from safetensors import safe_open

    file = Path(__file__).parents[2] / "assets" / "golden" / "onevision2_tiny.safetensors"
    with safe_open(file, framework="np") as tensors:
        raster = tensors.get_tensor("in.patch_positions_raster").reshape(10, 24, 3)
        want = tensors.get_tensor("in.patch_positions_block_order")
    assert np.array_equal(to_block_order(raster, rows=4, columns=6, merge=2).reshape(-1, 3), want)
