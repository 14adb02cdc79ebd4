"""What codes of quantized sources are, as numbers that kernels take. Importing them compiles nothing."""

from __future__ import annotations

E4M3, E5M2, INT8, PACKED, E2M1 = range(5)  # PACKED: offset binary, low bits first
