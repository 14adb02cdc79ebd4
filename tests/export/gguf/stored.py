"""V2 rows made by hand, and the values that their codes stand for, by other means than the package's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowquant_dist.tensor import QuantizedTensor


@dataclass(frozen=True)
class Stored:
    """rows: the rows as V2 has them. codes: codes q, int [rows, columns]. scales, zero_points: those of each value,
    float64 [rows, columns]."""

    rows: QuantizedTensor
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray


def stored(
    rng: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    scales: np.ndarray | None = None,
) -> Stored:
    """Rows with random codes, scales and zero points. group: values per group; 0: a scale per row; -1: one scale for
    all."""
    count, columns = shape
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)
    groups = 1 if group <= 0 else -(-columns // group)
    if scales is None:
        scales = rng.uniform(1e-3, 2e-2, (1 if group < 0 else count, groups)).astype(np.float32)
    points = (
        rng.uniform(-20, 20, scales.shape).astype(np.float32)
        if not symmetric
        else np.zeros((0, 0), np.float32)
    )

    def of_values(values: np.ndarray) -> np.ndarray:
        wide = np.repeat(values.astype(np.float64), group if group > 0 else columns, axis=1)[:, :columns]
        return np.broadcast_to(wide, shape)

    rows = QuantizedTensor(
        shape=shape,
        dtype="float32",
        quant_type=f"int{bits}",
        codes=packed(codes, bits),
        scales=scales.reshape(-1),
        zero_points=points.reshape(-1),
        quant_axis=-1 if group < 0 else 0,
        group_size=max(group, 0),
    )
    return Stored(rows, codes, of_values(scales), of_values(points) if points.size else np.zeros(shape))


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """V2's packing, written out, as uint8: `u = q + 2^(bits-1)`, low bits first, each row from a new byte."""
    if bits == 8:
        return codes.astype(np.int8).view(np.uint8).reshape(-1)
    unsigned = codes + (1 << (bits - 1))
    bits_of = (unsigned[..., None] >> np.arange(bits)) & 1
    return np.packbits(bits_of.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little").reshape(
        -1
    )
