from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.digests import digests

_DTYPES = ["float32", "bfloat16"]  # of float16 only the conversions, which is all that it has of its own


@pytest.mark.slow
def test_codes_and_scales_are_the_same_on_the_plainest_cpu(tmp_path: Path) -> None:
    """Compiled without this machine's vector instructions, and so with other widths and orders of the sums. Without any
    machine code: test_interpreted.py, which is quick."""
    plain = [
        _plain_digests(dtype, tmp_path / dtype) for dtype in _DTYPES
    ]  # side by side: it takes half a minute
    told = [json.loads(process.communicate()[0]) for process in plain]
    assert told == [digests([dtype]) for dtype in _DTYPES]


def _plain_digests(dtype: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kernels.digests", dtype],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": str(cache),
        },
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
