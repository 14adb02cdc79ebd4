"""Skips imports that a `quantize` process does not need, and that would take half of a small run's time.

If pandas is installed, pyarrow imports it to see whether a list is a Series; numba imports scipy.linalg to see if there
is a BLAS for `np.dot`, which no kernel here uses. Both ask once and remember the answer. Only the program does this,
before it has threads: a library must not hide modules from its process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any


def skip_unused_imports() -> None:
    """Makes pyarrow and numba believe that pandas and scipy.linalg are not installed. They can be imported later."""
    with _hidden("pandas"):
        import pyarrow as pa

        pa.array([0])
    with _hidden("scipy.linalg"):
        from arrowquant_dist.kernels.numba_private import look_for_blas

        look_for_blas()


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within the block, `import module` fails, unless the module was imported before."""
    finder = _Absent(module)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Absent(MetaPathFinder):
    """A finder for which one module does not exist."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == self._module:
            raise ModuleNotFoundError(f"{fullname} is not looked for", name=fullname)
