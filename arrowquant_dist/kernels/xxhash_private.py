"""What the kernels use of the library `xxhash` beyond its Python functions. Written for xxhash 4.1.

Its shared object exports XXH3_128bits (xxhash.h), which hashes bytes at any address without Python. If the symbol is
missing, or gives something else, chunks are read and hashed by Python.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from typing import Any

import xxhash

_FILE, _SYMBOL = "xxhash._xxhash", "XXH3_128bits"
_PROBE = bytes(range(256))


def xxh3_128bits() -> Any:
    """XXH3_128bits as a ctypes function: (address, size in bytes) → two 64-bit words, the low one first. None if it is
    not available, or differs from xxh3_128_digest."""
    found = find_spec(_FILE)
    if found is None or found.origin is None:
        return None
    try:
        digest = getattr(ctypes.CDLL(found.origin), _SYMBOL)
    except (AttributeError, OSError):
        return None
    words = ctypes.c_uint64 * 2
    digest.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    digest.restype = type("Digest", (ctypes.Structure,), {"_fields_": [("words", words)]})
    low, high = digest(_PROBE, len(_PROBE)).words
    return digest if (high << 64 | low).to_bytes(16, "big") == xxhash.xxh3_128_digest(_PROBE) else None
