"""The report that Python callers get: the figures, those of every layer, and the page."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, Report
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, MissingDependency, NotFound
from arrowquant_dist.report.layers import LAYERS_SCHEMA
from tests.report.test_evaluations import of_embeddings
from tests.sources import save_checkpoint

QUANTIZER = ArrowQuantizer(QuantizationConfig())


@pytest.fixture
def source(tmp_path: Path) -> str:
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    return save_checkpoint(tmp_path / "source", {"a.weight": values, "b.bias": values[0].clone()})


def test_a_report_is_the_same_however_one_comes_by_it(source: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    report = QUANTIZER.quantize(source, target)
    assert report.totals.layers == 2
    assert f"compression='{report.totals.compression_vs_fp16:.2f}×" in repr(report)
    assert "weight_cosine='mean 0.99" in repr(report)
    assert QUANTIZER.quantize(source, target) == report  # finished already
    assert Report.load(target) == report
    assert report.layers == (target / "report" / "layers.parquet").read_bytes()


def test_to_pandas_has_a_row_a_layer(source: str, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    frame = QUANTIZER.quantize(source, tmp_path / "out").to_pandas()
    assert list(frame.columns) == LAYERS_SCHEMA.names
    table = pq.read_table(tmp_path / "out" / "report" / "layers.parquet")
    assert frame["layer_name"].tolist() == table["layer_name"].to_pylist() == ["a.weight", "b.bias"]
    assert frame["cosine"][0] == table["cosine"][0].as_py()


def test_without_pandas_it_says_what_to_install(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = QUANTIZER.quantize(source, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependency, match="pip install pandas"):
        report.to_pandas()


def test_layers_that_are_gone_or_damaged_are_said(source: str, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    report = QUANTIZER.quantize(source, tmp_path / "out")
    with pytest.raises(NotFound, match=r"layers\.parquet"):
        replace(report, layers=None).to_pandas()
    with pytest.raises(InvalidCheckpoint, match="damaged"):
        replace(report, layers=b"PAR1").to_pandas()


def test_save_html_writes_the_page_of_the_target(source: str, tmp_path: Path) -> None:
    report = QUANTIZER.quantize(source, tmp_path / "out")
    report.save_html(tmp_path / "page.html")
    own = (tmp_path / "out" / "report" / "report.html").read_text()
    assert own.startswith((tmp_path / "page.html").read_text())
    with pytest.raises(InvalidConfig, match="URL"):
        report.save_html("s3://bucket/page.html")


def test_a_notebook_shows_what_was_evaluated(source: str, tmp_path: Path) -> None:
    report = QUANTIZER.quantize(source, tmp_path / "out")
    assert "Outputs against" not in report._repr_html_()
    shown = replace(report, evaluations=(of_embeddings(),))._repr_html_()
    assert "Outputs against the original&#x27;s" in shown
    assert "embedding cosine" in shown
