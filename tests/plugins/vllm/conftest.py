"""Fixtures: `vllm`, the real program in an environment of its own; `llama`, a small model that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.vllm.models import llama_config, save
from tests.plugins.vllm.serving import Vllm


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    program = Vllm(tmp_path_factory.mktemp("vllm"))
    yield program
    program.stop()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llama_config(), tmp_path_factory.mktemp("llama") / "model")
