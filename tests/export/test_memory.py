"""An export stays within its budget for weights, whatever the model and its largest layer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.config.choices import CompressionName
from tests.conftest import CHECKOUT
from tests.export.datasets import made_dataset
from tests.servers.fixtures import Bucket

MIB = 1 << 20
MEASURED = """
import json
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
target, out, workers, budget, options = sys.argv[1:]
run = RunConfig(engine="inline", workers=int(workers), storage_options=json.loads(options))
export_dataset(target, out, ExportOptions(memory_budget=budget), run)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_its_peak_is_the_budget_and_64_mib_at_most(tmp_path: Path, compression: CompressionName) -> None:
    """One layer of three times the budget, and smaller ones."""
    generator = torch.Generator().manual_seed(1)
    tensors = {"large.weight": torch.randn(12288, 4096, generator=generator)}
    tensors |= {f"{i}.weight": torch.randn(2048, 4096, generator=generator) for i in range(4)}
    run = RunConfig(compression=compression)
    dataset = made_dataset(tmp_path, tensors, QuantizationConfig("int8"), run)
    for workers in (1, 4):
        for budget in (64, 256):
            out = tmp_path / f"out-{workers}-{budget}"
            assert peak_of(dataset, str(out), workers, budget) <= (budget + 64) * MIB, (workers, budget)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [128, 256, 1024])
def test_between_buckets_its_peak_is_the_budget_and_64_mib_at_most(
    tmp_path: Path, bucket: Bucket, budget: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{i}.weight": torch.randn(4096, 4096, generator=generator) for i in range(12)}
    made = made_dataset(tmp_path, tensors, QuantizationConfig("int8"), RunConfig(block_bytes=16 * MIB))
    bucket.objects.upload_folder(Path(made), f"{bucket.uri}/dataset")
    places = f"{bucket.uri}/dataset", f"{bucket.uri}/out"
    assert peak_of(*places, 2, budget, bucket.storage_options) <= (budget + 64) * MIB


def peak_of(
    dataset: str, out: str, workers: int, budget: int, options: Mapping[str, Any] | None = None
) -> int:
    """Bytes above what its process had before; budget: MiB."""
    given = [dataset, out, str(workers), f"{budget}MiB", json.dumps(options or {})]
    command = [sys.executable, "-c", MEASURED, *given]
    return int(subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout)
