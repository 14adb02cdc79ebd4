"""A report and all that belongs to it is read with a single look at the manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, Report, RunConfig
from arrowquant_dist.cli import app
from arrowquant_dist.storage.local import LocalStore
from tests.sources import random_weights, save_checkpoint


@pytest.fixture
def target(tmp_path: Path) -> Path:
    source = save_checkpoint(tmp_path / "source", random_weights(1, 8, 16, torch.float32))
    ArrowQuantizer(QuantizationConfig(), RunConfig(engine="inline")).quantize(source, tmp_path / "target")
    return tmp_path / "target"


@pytest.fixture
def reads(target: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """{path: how often it was read}, from when the dataset is there."""
    counts: Counter[str] = Counter()
    own = LocalStore.read

    def read(store: LocalStore, path: str, *others: Any) -> bytes:
        counts[path] += 1
        return own(store, path, *others)

    monkeypatch.setattr(LocalStore, "read", read)
    return counts


ONCE = {"manifest.json": 1, "report/report.json": 1, "report/layers.parquet": 1, "report/evaluation.json": 1}


def test_a_page_reads_each_file_once(target: Path, reads: Counter[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        app(args=["report", str(target), "--html", str(tmp_path / "page.html")])
    assert not end.value.code
    assert reads == ONCE


def test_a_report_in_python_reads_each_file_once(target: Path, reads: Counter[str]) -> None:
    assert Report.load(target).layers
    assert reads == ONCE
