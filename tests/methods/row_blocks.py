"""Compares a layer quantized in one row block and in two, by a method that knows something about each row."""

from __future__ import annotations

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.methods import Given
from arrowquant_dist.methods.counted import CountedRows
from arrowquant_dist.tensor import QuantizedTensor, quantize_values


def check_row_blocks(
    whole: QuantizedTensor, values: np.ndarray, spec: QuantSpec, side: CountedRows, cut: int
) -> None:
    """Asserts that the rows before `cut`, and those from there on, get the codes that they have in `whole`.

    whole: the float32 values [rows, columns], quantized in one row block.
    """
    parts = [
        quantize_values(
            part.reshape(-1).view(np.uint8),
            part.shape,
            "float32",
            spec,
            given=Given(side=side, row_start=first),
        )
        for first, part in ((0, values[:cut]), (cut, values[cut:]))
    ]
    assert np.concatenate([part.codes for part in parts]).tobytes() == whole.codes.tobytes()
    assert np.concatenate([part.scales for part in parts]).tobytes() == whole.scales.tobytes()
