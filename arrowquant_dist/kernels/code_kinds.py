"""The kinds of codes of quantized sources, as numbers that kernels take. Importing this compiles nothing."""

from __future__ import annotations

E4M3, E5M2, INT8, PACKED, E2M1, AFFINE, INT8_OF_127 = range(7)
# PACKED: offset binary, low bits first. AFFINE: unsigned, low bits first, with a bias to add instead of each zero
# point. INT8_OF_127: a scale is the value of code 127.
