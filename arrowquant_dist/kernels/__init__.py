"""Quantization kernels: arrays in, arrays out. Numba and numpy, nothing else, but for a few loops by LLVM (native.py).

Source values come as integer arrays that hold their bits (`int32` float32, `uint16` bfloat16, `int16` float16), so
that one kernel text serves every dtype and NaN, inf, minimum and maximum are integer comparisons. A row or group is
read from memory once: fitting its scale, rounding, packing and measuring happen while it is in the cache.

No kernel uses fast-math where a scale or a code is chosen. Sums that choose a scale are sums of small integers held in
float32, which are exact in any order; only the metrics' sums may be reordered.
"""
