"""Kernels are compiled in a phase of their own, and progress says what for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from safetensors.numpy import save_file

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.worker.kernels import Kernels

_RUN = """
import json, sys
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.driver import quantize

if __name__ == "__main__":
    said = []
    source, target, quant_type = sys.argv[1:]
    config = QuantizationConfig(quant_type, per_channel=False, symmetric=False)
    outcome = quantize(source, target, config, RunConfig(workers=1), lambda progress: said.append(progress.compiling))
    print(json.dumps([said, outcome.report.timing.phases]))
"""


def run(source: Path, target: Path, quant_type: str, cache: Path) -> tuple[list[str], dict[str, float]]:
    """What was compiled, in order, and the workers' seconds by phase; in a process of its own."""
    command = [sys.executable, "-c", _RUN, str(source), str(target), quant_type]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    said, phases = json.loads(done.stdout.splitlines()[-1])
    return list(dict.fromkeys(filter(None, said))), phases


def test_what_this_thread_compiles_is_told_once_and_that_it_is_over() -> None:
    said: list[str] = []
    with SourceReader() as reader:
        kernels = Kernels(reader, said.append)
        with kernels.told("nothing"):
            pass
        first, second = numba.njit(_double), numba.njit(_triple)
        with kernels.told("int4 by mse"):
            assert (first(2), second(2)) == (4, 6)
        with kernels.told("int4 by mse, again"):
            assert (first(2), second(2)) == (4, 6)
        with kernels.told("what another thread does"), ThreadPoolExecutor(1) as other:
            assert other.submit(numba.njit(_double), 2.0).result() == 4
    assert said == ["int4 by mse", ""]


def _double(value: float) -> float:
    return 2 * value


def _triple(value: float) -> float:
    return 3 * value


@pytest.mark.slow
def test_it_is_said_what_is_compiled_for_and_not_what_is_found_in_the_cache(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file({"a": np.eye(64, dtype=np.float32)}, source / "model.safetensors")
    first, phases = run(source, tmp_path / "first", "int4", tmp_path / "cache")
    assert first == ["int4 by mse", "compression"]
    assert phases["compile"] > 0
    again, _ = run(source, tmp_path / "again", "int4", tmp_path / "cache")
    assert again == []
