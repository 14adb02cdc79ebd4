from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.digests import digests

_DTYPES = ["float32", "bfloat16"]  # of float16 only the conversions, which is all that it has of its own


def test_codes_and_scales_are_the_same_on_the_plainest_cpu(tmp_path: Path) -> None:
    """Compiled without this machine's vector instructions, and so with other widths and orders of the sums."""
    plain = subprocess.run(
        [sys.executable, "-m", "tests.kernels.digests", *_DTYPES],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": str(tmp_path),
        },
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(plain.stdout) == digests(_DTYPES)
