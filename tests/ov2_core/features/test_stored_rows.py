"""Errors of what is stored, bounded row by row as the documentation states them; bytes as the safetensors library reads them."""

import pytest

pytest.importorskip("torch")

import safetensors.torch
import torch

from ov2_core.features.layout import header_bytes, member_bytes, read_header
from ov2_core.features.stored_rows import restore_rows, store_rows


def rows(seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, one of zeros, one with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(64, 48, generator=generator) * torch.logspace(-20, 20, 64)[:, None]
    values[5] = 0
    values[6, 7] = 1e3 * values[6].abs().max()
    return values


def test_fp32_is_stored_as_it_is() -> None:
    values, scales = store_rows(rows(), "fp32")
    assert scales is None
    assert torch.equal(restore_rows(values, scales), rows())


def test_bf16_is_within_two_to_the_minus_eight_of_each_value() -> None:
    values, scales = store_rows(rows(), "bf16")
    back = restore_rows(values, scales)
    assert back.dtype == torch.bfloat16
    assert ((back.double() - rows().double()).abs() <= 2.0**-8 * rows().double().abs()).all()


def test_int8_is_within_half_a_step_of_each_row() -> None:
    values, scales = store_rows(rows(), "int8")
    assert values.dtype == torch.int8
    error = (restore_rows(values, scales).double() - rows().double()).abs()
    peak = rows().double().abs().amax(dim=1, keepdim=True)
    assert (error <= peak / 254 * (1 + 1e-6)).all()
    assert (restore_rows(values, scales)[5] == 0).all()
    assert (error.amax(dim=1) > peak[:, 0] / 1000).any(), "the bound is not met by storing more than int8"


def test_int8_keeps_a_row_that_is_not_finite_apart_by_its_scale() -> None:
    bad = rows()
    bad[3, 4] = float("nan")
    bad[9, 0] = float("inf")
    _, scales = store_rows(bad, "int8")
    assert (~torch.isfinite(scales)).nonzero().flatten().tolist() == [3, 9]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_member_is_what_the_library_reads_and_as_large_as_predicted(dtype: str) -> None:
    values, scales = store_rows(rows(), dtype)
    parts = [] if scales is None else [scales]
    data = header_bytes(64, 48, dtype) + b"".join(
        t.contiguous().view(torch.uint8).numpy().tobytes() for t in [*parts, values]
    )
    assert len(data) == member_bytes(64, 48, dtype)
    found = safetensors.torch.load(data)
    assert found["features"].dtype == values.dtype
    assert torch.equal(found["features"], values)
    assert set(found) == ({"features", "scales"} if dtype == "int8" else {"features"})
    if scales is not None:
        assert torch.equal(found["scales"], scales)
    assert {name: span.shape for name, span in read_header(data).items()} == {
        name: tuple(tensor.shape) for name, tensor in found.items()
    }


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:5],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b"[64,48]", b"[64,49]"),
        lambda data: data[:8] + b"[]" + data[10:],
    ],
)
def test_damaged_members_are_refused(spoil) -> None:
    data = header_bytes(64, 48, "bf16") + bytes(64 * 48 * 2)
    assert read_header(data)["features"].shape == (64, 48)
    with pytest.raises(ValueError, match=r"safetensors|offsets|end at"):
        read_header(spoil(data))


def test_header_is_aligned() -> None:
    for count in range(1, 40):
        assert len(header_bytes(count, 7, "int8")) % 8 == 0
