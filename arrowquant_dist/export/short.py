"""Scales that every dtype of 16 bits has, found by their bits: all scales are looked at before an export begins."""

from __future__ import annotations

import numpy as np

SHORT_HALVES = 2.0**-17, 65280.0  # between these each bfloat16 number is a float16 one


def are_short(scales: np.ndarray) -> bool:
    """Whether all (float32) are bfloat16 numbers that are float16's too, as nearly always where the config asks for
    bfloat16: then they are passed over three times, and fifteen times else."""
    bits = np.ascontiguousarray(scales, "<f4").reshape(-1).view("<u4")
    if not bits.size or int(np.bitwise_or.reduce(bits)) & 0xFFFF:
        return False
    sizes = (bits & np.uint32(0x7FFFFFFF)).view("<f4")
    least, largest = SHORT_HALVES
    return bool(sizes.min() >= least and sizes.max() <= largest)
