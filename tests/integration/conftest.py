"""MiniLM, quantized once per config and session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from arrowquant_dist import ArrowQuantizer, RunConfig
from arrowquant_dist.config import load_config
from tests.conftest import CHECKOUT


class Targets:
    """MiniLM's datasets by the names of configs/: `targets["int8"]` is quantized at its first use."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, config: str) -> Path:
        target = self._root / config
        if not target.exists():
            quantization, run = load_config(str(CHECKOUT / "configs" / f"{config}.yaml"))
            ArrowQuantizer(quantization, run).quantize("minilm", str(target))
        return target


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return Targets(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="session")
def int8(targets: Targets) -> Path:
    return targets["int8"]


@pytest.fixture(scope="session")
def int2(targets: Targets) -> Path:
    return targets["int2"]


@pytest.fixture(scope="session")
def weights(minilm: Path) -> dict[str, np.ndarray]:
    """The original weights, read by the safetensors package."""
    return dict(load_file(minilm / "model.safetensors"))


@pytest.fixture(scope="session")
def one_worker() -> RunConfig:
    return RunConfig(engine="inline", workers=1)
