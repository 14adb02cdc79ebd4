"""Digests of what the kernels make of fixed weights: `python -m tests.kernels.digests` prints them as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import product

import numpy as np

from arrowquant_dist.config import BITS, QuantSpec
from arrowquant_dist.kernels import code_kinds, sources
from arrowquant_dist.tensor import QuantizedTensor, quantize_values

_SHAPE = (60, 203)
_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


def _weights(dtype: str) -> np.ndarray:
    """Rows of values of different magnitude and shape, as uint8 bytes, made by integer arithmetic alone."""
    numbers = np.arange(_SHAPE[0] * _SHAPE[1], dtype=np.uint64)
    mixed = (numbers * 2654435761 + 12345) % 1000003 % 2001
    values = ((mixed.astype(np.float32) - 1000) / 1024).reshape(_SHAPE) ** 3
    values *= np.resize(np.array([1, 0.01, 4, 0.3, 2, 100], np.float32), (_SHAPE[0], 1))
    values += np.resize(np.array([0, 0, 1, 0, -5, 0], np.float32), (_SHAPE[0], 1))
    if dtype == "bfloat16":
        values = (values.view("<u4") >> 16).astype("<u2")
    return values.astype(_DTYPES[dtype]).reshape(-1).view(np.uint8)


def _specs() -> list[QuantSpec]:
    scopes = [(True, 0), (False, 64), (False, 0)]
    kinds = [(True, False), (False, False), (False, True)]
    return [
        QuantSpec(quant_type, per_channel, group_size, symmetric, method, whole)
        for quant_type, method, (per_channel, group_size), (symmetric, whole) in product(
            BITS, ("rtn", "mse"), scopes, kinds
        )
    ]


def _digest(q: QuantizedTensor) -> str:
    parts = (q.codes, q.scales, q.zero_points, q.values())
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def halves_to_floats() -> tuple[np.ndarray, np.ndarray]:
    """Every finite float16, and the float32 that the kernels read it as: a group of one value decodes to it exactly."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    spec = QuantSpec("int8", per_channel=True, group_size=0, symmetric=False)
    return halves, quantize_values(halves.view(np.uint8), (halves.size, 1), "float16", spec).values(
        "float32"
    )[:, 0]


def floats_to_halves() -> tuple[np.ndarray, np.ndarray]:
    """float32 numbers on and next to each tie between two float16 numbers, and the float16 that the kernels round them
    to."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    tiny = np.array([1e-45, 2.9e-8, 3e-8, 65519.0, 65520.0, 1e30], np.float32)
    floats = np.concatenate([halves, ties, np.nextafter(ties, 0), np.nextafter(ties, np.float32(9e9)), tiny])
    floats = np.concatenate([floats, -floats]).astype(np.float32)
    ones = np.ones(floats.size, np.uint8)
    q = QuantizedTensor((floats.size, 1), "float32", "int8", ones, floats, np.empty(0, np.float32), 0, 0)
    return floats, q.values("float16")[:, 0]


def decoded_sources() -> np.ndarray:
    """Every code of each kind decoded with scales from tiny to too large, to each dtype of sources, as uint8 bytes."""
    scales = np.array([[1.0], [0.37], [2**-130], [1e-30], [3e4], [1e38], [np.inf], [np.nan]], np.float32)
    codes = np.broadcast_to(np.arange(256, dtype=np.uint8), (len(scales), 256)).copy()
    found = []
    for kind, bits, columns in sources_kinds():
        for dtype in ("<i4", "<u2", "<i2"):
            out = np.empty((len(scales), columns), dtype)
            zeros = scales[:, :1] if kind == code_kinds.AFFINE else scales[:, :0]  # one per scale, or none
            scratch = np.empty(columns, np.uint8)
            rows, groups = np.arange(len(scales)), np.empty(0, np.int32)
            sources.decode_rows(kind, bits, codes, rows, columns, groups, scales, zeros.copy(), scratch, out)
            found.append(out.view(np.uint8).reshape(-1))
    return np.concatenate(found)


def sources_kinds() -> list[tuple[int, int, int]]:
    """(kind, bits, values in 256 bytes) for each kind of codes."""
    packed = [(code_kinds.PACKED, bits, 256 * 8 // bits) for bits in (2, 4, 8)]
    plain = [(kind, 8, 256) for kind in (code_kinds.E4M3, code_kinds.E5M2, code_kinds.INT8)]
    packed += [(code_kinds.AFFINE, bits, 256 * 8 // bits) for bits in (3, 4)]
    return [*plain, *packed, (code_kinds.E2M1, 4, 512), (code_kinds.INT8_OF_127, 8, 256)]


def digests(dtypes: list[str]) -> dict[str, str]:
    """{spec: digest} of codes, scales, zero points and decoded values, for weights of each dtype."""
    found = {
        f"{dtype} {spec}": _digest(quantize_values(_weights(dtype), _SHAPE, dtype, spec))
        for dtype, spec in product(dtypes, _specs())
    }
    for convert in (halves_to_floats, floats_to_halves):
        found[convert.__name__] = hashlib.sha256(convert()[1].tobytes()).hexdigest()[:16]
    found["decoded_sources"] = hashlib.sha256(decoded_sources().tobytes()).hexdigest()[:16]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(digests(sys.argv[1:])))
