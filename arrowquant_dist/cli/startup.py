"""What a `quantize` process does not need, and would take half of a small run's time to import.

pyarrow imports pandas, where it is installed, to ask whether a list is a Series; numba imports scipy.linalg to
see if there is a BLAS for `np.dot`, which no kernel here uses. Both ask once and remember the answer. Only the
program does this, before it has threads: a library must not hide modules from its process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any


def skip_unused_imports() -> None:
    """Lets pyarrow and numba find pandas and scipy.linalg absent; others still import them afterwards."""
    with _hidden("pandas"):
        import pyarrow as pa

        pa.array([0])
    with _hidden("scipy.linalg"):
        from arrowquant_dist.kernels.numba_private import look_for_blas

        look_for_blas()


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """`import module` fails inside, unless it was imported before."""
    finder = _Absent(module)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Absent(MetaPathFinder):
    """Finds one module absent."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == self._module:
            raise ModuleNotFoundError(f"{fullname} is not looked for", name=fullname)
