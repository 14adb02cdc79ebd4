from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

import arrowquant_dist
from arrowquant_dist.kernels import numba_private
from arrowquant_dist.kernels.compile import plus
from tests.kernels.without_names import WITHOUT_NUMBAS_NAMES

_SCALE = """
import numpy as np
from arrowquant_dist import QuantizationConfig, quantize_tensor
print(quantize_tensor(np.float32([[127, 1], [1, 1]]), QuantizationConfig()).scales[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", ["", WITHOUT_NUMBAS_NAMES], ids=["private", "public"])
def test_a_change_in_one_kernel_recompiles_those_that_call_it(tmp_path: Path, names: str) -> None:
    package = tmp_path / "arrowquant_dist"
    shutil.copytree(
        Path(arrowquant_dist.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )

    def scale() -> str:
        command = [sys.executable, "-B", "-c", names + _SCALE]
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


def test_this_numba_has_the_private_names() -> None:
    """What is said to be written for it is used with it."""
    assert numba_private.has_pointers()
    assert numba_private._knows_counts()
    assert numba_private._tie(plus, "any text")


def test_processes_that_compile_for_two_dtypes_at_once_load_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def file_in_a_process() -> Any:
        dispatcher = numba.njit(_double, cache=True)
        assert numba_private._tie(dispatcher, "text")
        dispatcher._cache._impl.locator.ensure_cache_path()
        return dispatcher._cache._cache_file

    one, other = file_in_a_process(), file_in_a_process()
    write = one._save_data

    def write_late(name: str, data: object) -> None:
        monkeypatch.setattr(other, "_load_index", dict)  # it looked before there was any
        other.save("float32", "code for float32")
        write(name, data)

    monkeypatch.setattr(one, "_save_data", write_late)
    one.save("float16", "code for float16")
    assert file_in_a_process().load("float32") == "code for float32"


def test_where_nothing_can_be_written_kernels_are_compiled_by_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    doubled = numba_private._compiled_in_folder(_double, "text", {"nogil": True})
    assert doubled(3) == 6
    assert str(tmp_path / "file") == numba.config.CACHE_DIR


def _double(value: int) -> int:
    return 2 * value
