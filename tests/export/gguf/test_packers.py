"""The gguf package decodes GGUF's blocks to exactly the dataset's codes, with scales in fp16."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.export.gguf.packers import CodeBlocks, FloatValues, in_turns
from arrowquant_dist.export.gguf.scales import Fp16, fate_of, half_minima, half_scales
from arrowquant_dist.tensor import QuantizedTensor
from tests.export.gguf.stored import Stored, stored
from tests.kernels.weights import numerics


def decoded(packer: CodeBlocks | FloatValues, rows: QuantizedTensor) -> np.ndarray:
    """What gguf makes of the bytes, float32 [rows, columns]."""
    count, columns = rows.matrix_shape
    (tensor,) = packer.tensors("t", rows.shape)
    data = packer.pack(0, rows)
    assert data.dtype == np.uint8
    assert data.size == tensor.nbytes
    values: np.ndarray = gguf.dequantize(data.reshape(count, -1), GGMLQuantizationType[tensor.dtype])
    return values.reshape(count, columns)


def halved(values: np.ndarray) -> np.ndarray:
    halves: np.ndarray = values.astype(np.float16).astype(np.float32)
    return halves


def symmetric_values(made: Stored) -> np.ndarray:
    values: np.ndarray = (made.codes * halved(made.scales)).astype(np.float32)
    return values


@pytest.mark.parametrize(
    ("dtype", "bits", "columns", "group"),
    [
        *[
            ("Q8_0", 8, columns, group)
            for columns, group in ((64, 32), (192, 64), (160, 128), (96, 0), (96, -1))
        ],
        *[
            ("Q4_0", 4, columns, group)
            for columns, group in ((64, 32), (256, 128), (160, 128), (96, 0), (96, -1))
        ],
        *[("TQ2_0", 2, columns, group) for columns, group in ((512, 256), (768, 512), (256, 0), (512, -1))],
    ],
)
def test_symmetric_codes_are_what_they_were_with_scales_in_fp16(
    dtype: str, bits: int, columns: int, group: int
) -> None:
    made = stored(np.random.default_rng(columns + group), (7, columns), bits, group)
    assert np.array_equal(decoded(CodeBlocks(dtype, "w"), made.rows), symmetric_values(made))


@pytest.mark.parametrize("group", [32, 128, 0, -1])
def test_real_zero_points_become_minima(group: int) -> None:
    made = stored(np.random.default_rng(5), (6, 160), 4, group, symmetric=False)
    minima = ((-8 - made.zero_points) * made.scales).astype(np.float16).astype(np.float32)
    expected = (made.codes + 8).astype(np.float32) * halved(made.scales) + minima
    assert np.array_equal(decoded(CodeBlocks("Q4_1", "w"), made.rows), expected)
    true = (made.codes - made.zero_points) * made.scales
    assert np.abs(expected - true).max() < made.scales.max() / 2


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("columns", [32, 96])
def test_codes_of_fewer_bits_keep_their_values_in_blocks_of_four(bits: int, columns: int) -> None:
    rng = np.random.default_rng(bits)
    made = stored(rng, (9, columns), bits, 32)
    assert np.array_equal(decoded(CodeBlocks("Q4_0", "w", widened=True), made.rows), symmetric_values(made))
    made = stored(rng, (9, columns), bits, 32, symmetric=False)
    got = decoded(CodeBlocks("Q4_1", "w", widened=True), made.rows)
    true = (made.codes - made.zero_points) * made.scales
    assert np.abs(got - true).max() < made.scales.max() / 2
    first = 1 << (bits - 1)
    minima = ((-first - made.zero_points) * made.scales).astype(np.float16).astype(np.float32)
    assert np.array_equal(got, (made.codes + first).astype(np.float32) * halved(made.scales) + minima)


@dataclass(frozen=True)
class Matrix:
    packer: CodeBlocks
    made: Stored
    values: np.ndarray  # as they have to be decoded, float32


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    """Of each type of blocks, with groups that end anywhere, and rows of heads or of none."""
    dtype, bits = draw(
        st.sampled_from(
            [("Q8_0", 8), ("Q4_0", 4), ("Q4_1", 4), ("TQ2_0", 2)]
            + [(dtype, bits) for dtype in ("Q4_0", "Q4_1") for bits in (2, 3)]
        )
    )
    values = 256 if dtype == "TQ2_0" else 32
    columns = values * draw(st.integers(1, 7))
    group = draw(st.sampled_from([-1, 0, *range(values, columns + values, values)]))
    head_rows = draw(st.sampled_from([0, 2, 6, 8]))
    count = (head_rows or 1) * draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = stored(rng, (count, columns), bits, group, symmetric=dtype != "Q4_1")
    packer = CodeBlocks(dtype, "w", head_rows, widened=dtype.startswith("Q4") and bits < 4)
    expected = symmetric_values(made)
    if dtype == "Q4_1":
        first = 1 << (bits - 1)
        minima = halved((-first - made.zero_points) * made.scales)
        expected = (made.codes + first).astype(np.float32) * halved(made.scales) + minima
    order = [
        head + half * (head_rows // 2) + i
        for head in range(0, count, head_rows or count)
        for i in range((head_rows or count) // 2)
        for half in range(2)
    ]
    return Matrix(packer, made, expected[order] if head_rows else expected)


@numerics
@given(matrices())
def test_any_matrix_is_decoded_to_what_it_was(matrix: Matrix) -> None:
    assert np.array_equal(decoded(matrix.packer, matrix.made.rows), matrix.values)


@pytest.mark.parametrize("dtype", ["Q4_0", "F32", "F16"])
def test_what_is_packed_lies_in_the_memory_that_was_given_for_it(dtype: str) -> None:
    made = stored(np.random.default_rng(8), (8, 64), 4, 32)
    taken: list[np.ndarray] = []

    def take(nbytes: int) -> np.ndarray:
        taken.append(np.full(nbytes, 0xA5, np.uint8))
        return taken[-1]

    for head_rows in (0, 4):
        packer = CodeBlocks(dtype, "w", head_rows) if dtype == "Q4_0" else FloatValues(dtype, head_rows)
        packed = packer.pack(0, made.rows, take)
        assert packed is taken[-1]
        assert np.array_equal(packed, packer.pack(0, made.rows))


def test_values_that_are_stored_as_they_are_written_are_not_copied() -> None:
    none = np.zeros(0, np.float32)
    for quant_type, dtype, written in (("none", "bfloat16", "BF16"), ("fp16", "float32", "F16")):
        rows = QuantizedTensor((4, 8), dtype, quant_type, np.arange(64, dtype=np.uint8), none, none, -1, 0)
        assert FloatValues(written).pack(0, rows) is rows.codes


def test_rows_packed_in_runs_are_those_packed_at_once() -> None:
    made = stored(np.random.default_rng(1), (2048, 256), 4, 64)
    packer = CodeBlocks("Q4_0", "w", head_rows=8)
    runs = [packer.pack(0, made.rows.rows(start, start + 512)) for start in range(0, 2048, 512)]
    assert np.array_equal(np.concatenate(runs), packer.pack(0, made.rows))


def test_rows_of_a_head_s_halves_take_turns() -> None:
    heads, head_rows = 3, 8
    rows = np.arange(heads * head_rows)
    turned = np.empty_like(rows)
    in_turns(turned, head_rows)[...] = rows.reshape(heads, 2, 4)
    expected = [head * 8 + half * 4 + i for head in range(heads) for i in range(4) for half in range(2)]
    assert turned.tolist() == expected
    made = stored(np.random.default_rng(2), (24, 64), 8, 32)
    packer = CodeBlocks("Q8_0", "q_proj", head_rows=head_rows)
    assert np.array_equal(decoded(packer, made.rows), symmetric_values(made)[expected])
    none = np.zeros(0, np.float32)
    bias = QuantizedTensor((24,), "float32", "none", rows.astype("<f4").view(np.uint8), none, none, -1, 0)
    assert FloatValues("F32", head_rows).pack(0, bias).view("<f4").tolist() == expected


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_are_the_dataset_s(dtype: str) -> None:
    made = stored(np.random.default_rng(3), (5, 48), 8, 0)
    true = (made.codes.astype(np.float32) * made.scales.astype(np.float32)).astype(np.float32)
    got = decoded(FloatValues(dtype), made.rows)
    if dtype == "F32":
        assert np.array_equal(got, true)
    elif dtype == "F16":
        assert np.array_equal(got, halved(true))
    else:
        assert np.abs(got - true).max() <= np.abs(true).max() * 2**-8


@pytest.mark.parametrize(
    ("scale", "bits", "fate"),
    [
        (7e4, 4, Fp16.BEYOND),
        (1e-9, 2, Fp16.ROUNDS),  # 0 in fp16
        (3e-7, 8, Fp16.ROUNDS),  # 5 of fp16's smallest steps: too few for 128 codes, enough for 8
        (3e-7, 4, Fp16.HOLDS),
        (1e-5, 8, Fp16.HOLDS),
        (0.0, 4, Fp16.HOLDS),
    ],
)
def test_what_fp16_does_to_a_scale_is_known(scale: float, bits: int, fate: Fp16) -> None:
    scales = np.array([0.01, scale], np.float32)
    halves = half_scales(scales)
    assert fate_of(scales, scales[:0], bits) is fate
    moved = abs(float(halves[1]) - scale) * 2 ** (bits - 1)
    assert (moved <= scale / 2) == (fate is Fp16.HOLDS)


@pytest.mark.parametrize(
    ("zero_point", "fate"), [(7.0, Fp16.HOLDS), (-8000.0, Fp16.ROUNDS), (1e8, Fp16.BEYOND)]
)
def test_what_fp16_does_to_a_minimum_is_known(zero_point: float, fate: Fp16) -> None:
    scales, points = np.array([0.01], np.float32), np.array([zero_point], np.float32)
    halves, minima = half_scales(scales), half_minima(scales, points, 4)
    assert fate_of(scales, points, 4) is fate
    first = (-8 - zero_point) * float(scales[0])
    moved = max(abs(u * (float(halves[0]) - float(scales[0])) + float(minima[0]) - first) for u in range(16))
    assert (moved <= float(scales[0]) / 2) == (fate is Fp16.HOLDS)


def moves_further(scale: float, zero_point: float | None, bits: int) -> bool:
    """Whether fp16 moves a value by more than half a step, by what the packers write."""
    scales = np.array([scale], np.float32)
    points = np.array([] if zero_point is None else [zero_point], np.float32)
    half, first = float(half_scales(scales)[0]), 1 << (bits - 1)
    if zero_point is None:
        return abs(half - float(scales[0])) * first > abs(float(scales[0])) / 2
    true = (-first - float(points[0])) * float(scales[0])
    minimum = float(half_minima(scales, points, bits)[0])
    ends = (u * half + minimum - (u * float(scales[0]) + true) for u in (0, 2**bits - 1))
    return any(not abs(moved) <= abs(float(scales[0])) / 2 for moved in ends)


@numerics
@given(
    st.floats(-24, 16).map(lambda power: 2.0**power),
    st.sampled_from([1.0, -1.0]),
    st.one_of(st.none(), st.floats(-2000, 2000, width=32)),
    st.sampled_from([2, 3, 4, 8]),
)
def test_scales_are_said_to_hold_just_where_no_value_moves_further(
    size: float, sign: float, zero_point: float | None, bits: int
) -> None:
    scales = np.array([0.01, size * sign], np.float32)
    points = np.array([] if zero_point is None else [0.0, zero_point], np.float32)
    holds = fate_of(scales, points, bits) is Fp16.HOLDS
    assert holds == (not moves_further(size * sign, zero_point, bits))


def test_scales_beyond_fp16_end_the_packing_of_what_is_quantized_anew() -> None:
    made = stored(np.random.default_rng(4), (1, 64), 8, 0, scales=np.array([[7e4]], np.float32))
    with pytest.raises(
        UnquantizableWeights, match=r"layer 'm\.w'.*beyond the range of fp16.*mixed_precision"
    ):
        CodeBlocks("Q8_0", "m.w").pack(0, made.rows)


def test_an_empty_scale_of_zeros_stays_zeros() -> None:
    made = stored(np.random.default_rng(6), (1, 32), 4, 0, scales=np.zeros((1, 1), np.float32))
    assert not decoded(CodeBlocks("Q4_0", "w"), made.rows).any()
