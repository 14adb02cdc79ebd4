"""Numba without the private names that the package uses, as a later version might be."""

# Python code that a process runs before it imports a kernel.
WITHOUT_NUMBAS_NAMES = """
from arrowquant_dist.kernels import numba_private
numba_private._named = lambda _module, _name: None
numba_private._CACHE = numba_private._COUNTS = numba_private._CODEGEN = "_renamed"
"""
