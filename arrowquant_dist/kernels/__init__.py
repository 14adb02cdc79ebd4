"""Quantization kernels: arrays in, arrays out. Only Numba and numpy, except for a few loops made by LLVM (native.py).

Source values come as integer arrays that hold their bits (float32 as `int32`, bfloat16 as `uint16`, float16 as
`int16`), so that the same code serves every dtype, and NaN, inf, minimum and maximum are found by comparing integers. A
row or group is read from memory once: fitting its scale, rounding, packing and measuring happen while it is in the
cache.

No kernel uses fast-math where it chooses a scale or a code. Sums that choose a scale are sums of small integers held in
float32, which are exact in any order; only the sums of metrics may be reordered.
"""
