"""An export holds its budget of weights, whatever the model and its largest layer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from tests.conftest import CHECKOUT
from tests.export.datasets import made_dataset

MIB = 1 << 20
MEASURED = """
import sys
from pathlib import Path
import numpy as np
from arrowquant_dist import QuantizationConfig, RunConfig, quantize_tensor
from arrowquant_dist.export import ExportOptions, decoded, export_dataset
from arrowquant_dist.engine import inline

def resident(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split(maxsplit=1)[0]) << 10

quantize_tensor(np.ones((4, 64), np.float32), QuantizationConfig("int8")).values()  # loads the kernels
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the most is taken from now on
target, out, workers, budget = sys.argv[1:]
export_dataset(
    target, out, ExportOptions(memory_budget=budget), RunConfig(engine="inline", workers=int(workers))
)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_its_peak_is_the_budget_and_64_mib_at_most(tmp_path: Path, compression: str) -> None:
    """One layer of three times the budget, and smaller ones."""
    generator = torch.Generator().manual_seed(1)
    tensors = {"large.weight": torch.randn(12288, 4096, generator=generator)}
    tensors |= {f"{i}.weight": torch.randn(2048, 4096, generator=generator) for i in range(4)}
    run = RunConfig(compression=compression)
    dataset = made_dataset(tmp_path, tensors, QuantizationConfig("int8"), run)
    for workers in (1, 4):
        for budget in (64, 256):
            out = tmp_path / f"out-{workers}-{budget}"
            command = [sys.executable, "-c", MEASURED, dataset, str(out), str(workers), f"{budget}MiB"]
            done = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
            assert int(done.stdout) <= (budget + 64) * MIB, (workers, budget)
