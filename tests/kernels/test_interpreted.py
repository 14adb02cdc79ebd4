"""With Numba's compiler turned off (NUMBA_DISABLE_JIT=1), kernels run as Python, slowly, and give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist.kernels.zstd.frames import Workspace, block_count, blocks_bound, write_blocks
from arrowquant_dist.tensor import quantize_values
from tests.conftest import CHECKOUT
from tests.datasets import weights_of
from tests.kernels.digests import _SHAPE, _specs, _weights, decoded_sources
from tests.kernels.weights import codes

_ROWS = 1
_INTERPRETED = {**os.environ, "NUMBA_DISABLE_JIT": "1"}


def quantized_digests() -> dict[str, str]:
    """Of a row by every type, method, scope and kind of zero points, from each dtype, and decoded to each."""
    found = {}
    for dtype in ("float32", "bfloat16", "float16"):
        nbytes = _weights(dtype).size // _SHAPE[0]
        for spec in _specs():
            q = quantize_values(_weights(dtype)[: _ROWS * nbytes], (_ROWS, _SHAPE[1]), dtype, spec)
            parts = (
                q.codes,
                q.scales,
                q.zero_points,
                *(q.values(to) for to in ("float32", "bfloat16", "float16")),
            )
            found[f"{dtype} {spec}"] = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    return found


def frame_digest() -> str:
    """Of zstd's blocks, some of which are Huffman-coded."""
    values = codes(30_000, 9.0)
    out, sizes = np.zeros(blocks_bound(values.size), np.uint8), np.zeros(block_count(values.size), np.int64)
    end = write_blocks(values, out, 0, sizes, Workspace())
    assert end < 0.8 * values.size
    return hashlib.sha256(out[:end].tobytes()).hexdigest()


def all_digests() -> dict[str, str]:
    decoded = hashlib.sha256(decoded_sources().tobytes()).hexdigest()
    return {**quantized_digests(), "frame": frame_digest(), "sources": decoded}


@pytest.mark.slow
def test_kernels_make_the_same_bytes_without_machine_code() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.kernels.test_interpreted"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT, env=_INTERPRETED)
    assert json.loads(done.stdout) == all_digests()


@pytest.mark.slow
def test_a_model_is_quantized_and_verified_without_machine_code(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    layers = {
        "a.weight": torch.randn(12, 70, generator=generator),
        "b.weight": torch.randn(9, 33, generator=generator).bfloat16(),
        "norm.weight": torch.ones(7),
    }
    save_file(layers, tmp_path / "model.safetensors")
    program = [sys.executable, "-m", "arrowquant_dist"]
    options = ["--quant", "int4", "--group-size", "32", "--asymmetric", "--engine", "inline"]
    for name, environment in (("compiled", dict(os.environ)), ("interpreted", _INTERPRETED)):
        run = [*program, "quantize", str(tmp_path / "model.safetensors"), str(tmp_path / name), *options]
        subprocess.run(run, check=True, capture_output=True, cwd=CHECKOUT, env=environment)
    look = [*program, "verify", str(tmp_path / "interpreted")]
    subprocess.run(look, check=True, capture_output=True, cwd=CHECKOUT, env=_INTERPRETED)
    assert weights_of(tmp_path / "interpreted") == weights_of(tmp_path / "compiled")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(all_digests()))
