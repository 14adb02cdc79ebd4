"""Codes rewritten with more bits and finer groups stand for the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.export.compressed_tensors.packers import Int8Weight, PackedWeight
from arrowquant_dist.export.compressed_tensors.rewritten import RewrittenRows, RoundedScales, in_more_bits
from tests.tensor.codes import v2_codes


@pytest.mark.parametrize(("stored", "bits"), [(2, 4), (2, 8), (3, 4), (3, 8), (4, 8)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (700, 513)], ids=str)
def test_a_code_is_the_same_number_in_more_bits(stored: int, bits: int, shape: tuple[int, int]) -> None:
    half = 1 << (stored - 1)
    codes = np.random.default_rng(1).integers(-half, half, shape, np.int8)
    found = in_more_bits(v2_codes(codes, stored).reshape(shape[0], -1), shape[1], stored, bits)
    assert np.array_equal(found, v2_codes(codes, bits))


@pytest.mark.parametrize("group_size", [64, 0])
@pytest.mark.parametrize("quant_type", ["int2", "int3", "int4"])
@pytest.mark.parametrize(
    "zeros", [{}, {"symmetric": False, "integer_zero_points": True}], ids=["symmetric", "whole"]
)
def test_what_is_packed_decodes_to_the_stored_values(
    quant_type: str, group_size: int, zeros: dict[str, bool]
) -> None:
    weight = torch.randn(24, 160, generator=torch.Generator().manual_seed(3))
    config = QuantizationConfig.from_dict(
        {"quant_type": quant_type, "per_channel": False, "group_size": group_size, **zeros}
    )
    rows = quantize_tensor(weight, config)
    finer = (group_size or 160) // 32
    packer = RewrittenRows(PackedWeight(8, 24, 32, symmetric=not zeros, scale_dtype="F32"), 8, finer)
    codes = packer.pack(0, rows).reshape(24, 160).astype(np.float32) - 128
    scales = packer.pack(1, rows).view("<f4").reshape(24, 5).repeat(32, 1)
    offsets = np.zeros((24, 160), np.float32)
    if zeros:
        words = packer.pack(3, rows).view("<u4").reshape(6, 5)
        unsigned = (words[:, None] >> (8 * np.arange(4, dtype=np.uint32))[None, :, None]) & 255
        offsets = unsigned.reshape(24, 5).astype(np.float32).repeat(32, 1) - 128
    assert np.array_equal((codes - offsets) * scales, rows.dequantize().numpy())


def test_int8_codes_by_row_come_of_fewer_bits_too() -> None:
    rows = quantize_tensor(torch.randn(6, 33), QuantizationConfig("int4"))
    packer = RewrittenRows(Int8Weight("F32"), 8, 1)
    codes = packer.pack(0, rows).view(np.int8).reshape(6, 33)
    assert np.array_equal(codes * packer.pack(1, rows).view("<f4")[:, None], rows.dequantize().numpy())


def test_rounded_scales_are_what_their_dtype_has_and_are_refused_by_the_packer_as_they_are() -> None:
    rows = quantize_tensor(torch.randn(6, 33), QuantizationConfig("int8"))
    packer = Int8Weight("BF16")
    with pytest.raises(CorruptWeights, match="scales are not exact in bfloat16"):
        packer.pack(1, rows)
    rounded = torch.from_numpy(RoundedScales(packer, "BF16").pack(1, rows).copy()).view(torch.bfloat16)
    assert torch.equal(rounded, torch.from_numpy(rows.scales).bfloat16())
    assert np.array_equal(RoundedScales(packer, "BF16").pack(0, rows), packer.pack(0, rows))
