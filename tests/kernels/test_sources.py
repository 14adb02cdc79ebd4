"""Codes of quantized sources are decoded as a plain float32 product, rounded by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arrowquant_dist.kernels import code_kinds, sources

_DTYPES = {torch.float32: "<i4", torch.bfloat16: "<u2", torch.float16: "<i2"}
_SCALES = np.array([[1.0], [-0.37], [2**-130], [1e-30], [3e4], [1e38]], np.float32)
_NONE = np.empty((len(_SCALES), 0), np.float32)
_E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def decode(
    kind: int, bits: int, codes: np.ndarray, columns: int, dtype: torch.dtype, zero_points: np.ndarray = _NONE
) -> torch.Tensor:
    """The same codes by each of _SCALES: [scales, columns]."""
    out = np.empty((len(_SCALES), columns), _DTYPES[dtype])
    rows = np.arange(len(_SCALES))
    many = np.broadcast_to(codes, (len(_SCALES), codes.size)).copy()
    groups, scratch = np.empty(0, np.int32), np.empty(columns, np.uint8)
    sources.decode_rows(kind, bits, many, rows, columns, groups, _SCALES, zero_points, scratch, out)
    return torch.from_numpy(out.view(np.uint8)).view(dtype)


def assert_same(found: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> None:
    expected = (values.float() * torch.from_numpy(_SCALES)).to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(found[number], expected[number])
    assert torch.equal(found[number].signbit(), expected[number].signbit())


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (code_kinds.E4M3, torch.float8_e4m3fn),
        (code_kinds.E5M2, torch.float8_e5m2),
        (code_kinds.INT8, torch.int8),
    ],
)
def test_every_byte_by_scales_that_round_underflow_and_overflow(
    kind: int, source: torch.dtype, dtype: torch.dtype
) -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert_same(decode(kind, 8, codes, 256, dtype), torch.from_numpy(codes).view(source), dtype)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("missing", [0, 1, 3])
def test_packed_codes_less_their_zero_points(bits: int, dtype: torch.dtype, missing: int) -> None:
    codes = np.arange(256, dtype=np.uint8)
    columns = 256 * 8 // bits - missing
    stream = np.unpackbits(codes, bitorder="little").reshape(-1, bits)[:columns]
    plain = stream.astype(np.int64) @ (1 << np.arange(bits)) - (1 << (bits - 1))
    zero_points = np.full((len(_SCALES), 1), -1.0, np.float32)
    found = decode(code_kinds.PACKED, bits, codes, columns, dtype, zero_points)
    assert_same(found, torch.from_numpy(plain + 1), dtype)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_affine_codes_are_unsigned_and_have_a_bias_added_to_their_product(
    bits: int, dtype: torch.dtype
) -> None:
    codes = np.arange(256, dtype=np.uint8)
    columns = 256 * 8 // bits
    stream = np.unpackbits(codes, bitorder="little")[: columns * bits].reshape(-1, bits)
    plain = (stream.astype(np.int64) @ (1 << np.arange(bits))).astype(np.float32)
    biases = np.array([[0.0], [0.7], [-(2.0**-120)], [1e-28], [-1e4], [1e38]], np.float32)
    found = decode(code_kinds.AFFINE, bits, codes, columns, dtype, biases)
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(plain * _SCALES + biases).to(dtype)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_codes_of_127_are_multiplied_as_bitsandbytes_does(dtype: torch.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    with np.errstate(over="ignore"):
        products = codes.view(np.int8).astype(np.float32) * _SCALES * np.float32(1 / 127)
    found = decode(code_kinds.INT8_OF_127, 8, codes, 256, dtype)
    assert torch.equal(found, torch.from_numpy(products).to(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (70, 16)])
def test_fields_of_words_become_rows_in_the_order_of_the_shifts(shape: tuple[int, int]) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, shape, dtype=np.uint32)
    order = (0, 4, 1, 5, 2, 6, 3, 7)
    codes = np.empty((shape[1] * 8, shape[0]), np.uint8)
    sources.turn_fields(words, np.array(order, np.uint32) * np.uint32(4), 15, codes)
    for row, column in np.ndindex(shape):
        nibbles = [int(words[row, column]) >> 4 * index & 15 for index in order]
        assert codes[column * 8 : column * 8 + 8, row].tolist() == nibbles


@pytest.mark.parametrize("dtype", _DTYPES)
def test_pairs_of_four_bit_floats_the_low_one_first(dtype: torch.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = np.array([*_E2M1, *(-value for value in _E2M1)])
    plain = np.stack([values[codes & 15], values[codes >> 4]], 1).reshape(-1)
    assert_same(decode(code_kinds.E2M1, 4, codes, 512, dtype), torch.from_numpy(plain), dtype)


def test_columns_are_the_rows_decoded_the_other_way_round() -> None:
    generator = np.random.default_rng(0)
    rows, width, skipped, taken = sources.TILE_ROWS * 2 + 5, 96, 33, 50
    codes = generator.integers(0, 256, (rows, width // 2), dtype=np.uint8)
    scales = generator.random((rows, width // 32), np.float32)
    straight, turned = np.empty((rows, width), np.uint16), np.empty((taken, rows), np.uint16)
    none, groups, scratch = np.empty((rows, 0), np.float32), np.empty(0, np.int32), np.empty(width, np.uint8)
    tile = np.empty((sources.TILE_ROWS, width + 7), np.uint16)
    sources.decode_rows(
        code_kinds.E2M1, 4, codes, np.arange(rows), 32, groups, scales, none, scratch, straight
    )
    sources.decode_columns(code_kinds.E2M1, codes, 32, scales, scratch, tile, skipped, turned)
    np.testing.assert_array_equal(turned, straight[:, skipped : skipped + taken].T)
