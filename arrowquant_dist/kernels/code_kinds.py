"""What codes of quantized sources are, as numbers that kernels take. Importing them compiles nothing."""

from __future__ import annotations

E4M3, E5M2, INT8, PACKED, E2M1, AFFINE, INT8_OF_127 = range(7)
# PACKED: offset binary, low bits first. AFFINE: unsigned, low bits first, with a number to add in each zero point's
# place. INT8_OF_127: scales are what 127 stands for.
