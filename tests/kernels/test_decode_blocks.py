"""One call decodes blocks that lie anywhere in one memory."""

from __future__ import annotations

import numpy as np
import pytest

from arrowquant_dist.kernels.decode import MOST_BLOCKS, decode_blocks
from tests.kernels import reference

_BITS = {"float32": np.int32, "float16": np.int16}


class Stored:
    """Blocks behind each other, none of them aligned; where each one's codes, scales and zero points are, from one byte
    to another; and the table that says what they are."""

    def __init__(self) -> None:
        self.memory = bytearray(b"\xaa")
        self.places: list[list[slice]] = []
        self.table: list[list[int]] = []
        self.expected: list[np.ndarray] = []

    def add(self, bits: int, rows: int, columns: int, group: int, *, symmetric: bool) -> None:
        rng = np.random.default_rng(len(self.memory))
        low, high = reference.limits(bits)
        codes = rng.integers(low, high + 1, (rows, columns))
        groups = -(-columns // group)
        scales = rng.uniform(0.5, 2.0, (rows, groups)).astype("<f4")
        zeros = (
            np.zeros((rows, groups), "<f4")
            if symmetric
            else rng.uniform(low, high, (rows, groups)).astype("<f4")
        )
        data = b"".join(reference.packed_row([int(q) for q in row], bits) for row in codes)
        values = (data, scales.tobytes(), b"" if symmetric else zeros.tobytes())
        self.places.append([self._put(value) for value in values])
        self.table.append([bits, rows, columns, groups, group])
        value = [
            [
                reference.decoded(int(codes[i, j]), scales[i, j // group], zeros[i, j // group])
                for j in range(columns)
            ]
            for i in range(rows)
        ]
        self.expected.append(np.array(value, np.float32))

    def decoded(self, dtype: str) -> tuple[int, list[np.ndarray]]:
        """What the kernel returns, and each block's values; 0 where it wrote none."""
        outs = [np.zeros(row[1] * row[2], _BITS[dtype]) for row in self.table]
        numbers = np.empty(2 * max(row[1] * row[3] for row in self.table), np.float32)
        scratch = np.empty(max(row[2] for row in self.table) + 8, np.uint8)
        table = np.array(self.table, np.int64)
        memory = np.frombuffer(bytes(self.memory), np.uint8)
        stored = ([memory[of[value]] for of in self.places] for value in range(3))
        arrays = [(*some, *[some[0][:0]] * (MOST_BLOCKS - len(some))) for some in (*stored, outs)]
        bad = decode_blocks(*arrays[:3], table, arrays[3], numbers, numbers.view(np.uint8), scratch)
        values = [out.view(dtype).reshape(row[1], row[2]) for out, row in zip(outs, self.table, strict=True)]
        return bad, values

    def _put(self, data: bytes) -> slice:
        at = len(self.memory)
        self.memory += data + b"\x55" * (1 + len(self.memory) % 2)
        return slice(at, at + len(data))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_of_every_width_are_decoded_as_plain_loops_decode_them(dtype: str) -> None:
    stored = Stored()
    for bits in (8, 4, 3, 2):
        stored.add(bits, 3, 21, 8, symmetric=True)
        stored.add(bits, 2, 37, 37, symmetric=False)
    bad, values = stored.decoded(dtype)
    assert bad == -1
    for got, expected in zip(values, stored.expected, strict=True):
        assert np.array_equal(got, expected.astype(dtype))


@pytest.mark.parametrize(("column", "number"), [(1, "-inf"), (2, "nan")])
def test_the_first_block_with_a_number_that_is_not_finite_ends_the_call(column: int, number: str) -> None:
    stored = Stored()
    for _ in range(3):
        stored.add(4, 2, 16, 8, symmetric=False)
    at = stored.places[1][column].start + 4 * 3
    stored.memory[at : at + 4] = np.float32(number).tobytes()
    bad, values = stored.decoded("float32")
    assert bad == 1
    assert np.array_equal(values[0], stored.expected[0])
    assert not values[1].any()
    assert not values[2].any()
