from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import arrowquant_dist

_SCALE = """
import numpy as np
from arrowquant_dist import QuantizationConfig, quantize_tensor
print(quantize_tensor(np.float32([[127, 1]]), QuantizationConfig()).scales[0])
"""


def test_a_change_in_one_kernel_recompiles_those_that_call_it(tmp_path: Path) -> None:
    package = tmp_path / "arrowquant_dist"
    shutil.copytree(
        Path(arrowquant_dist.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )

    def scale() -> str:
        command = [sys.executable, "-B", "-c", _SCALE]
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert scale() == "1.0"
    callee = package / "kernels/rtn.py"
    callee.write_text(
        callee.read_text().replace("np.float64(top), np.float64(qmax)", "np.float64(top), 2.0 * qmax")
    )
    assert scale() == "0.5"
