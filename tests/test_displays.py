"""Objects show themselves in a line and as a table, however large they are and whatever names they contain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist import (
    ArrowQuantizer,
    QuantizationConfig,
    Report,
    RunConfig,
    WeightLoader,
    quantize_tensor,
)
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.displays import REPR_CHARS, html_table
from tests.report.report_samples import golden_report
from tests.sources import save_checkpoint

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e" + "a" * 5_000


def of_everything(tmp_path: Path) -> list[object]:
    source = save_checkpoint(tmp_path / "source", {"a.weight": torch.ones(8, 64)})
    config = QuantizationConfig("int4", per_channel=False)
    report = ArrowQuantizer(config).quantize(source, tmp_path / "out")
    overrides = [LayerOverride(HOSTILE[:250], quant_type="int4")] * 1_000
    many = QuantizationConfig(
        overrides=overrides, row_dims={HOSTILE[:250]: 2}, hessians="s3://me:secret@m/h?sig=secret"
    )
    tensor = quantize_tensor(np.zeros((2, 0), np.float32), config)
    run = RunConfig(address=HOSTILE, transfer={"retries": 3}, storage_options={"key": "secret"})  # type: ignore[arg-type]
    configs = [config, many, QuantizationConfig(), run, RunConfig()]
    return [report, WeightLoader(tmp_path / "out"), tensor, *configs, ArrowQuantizer(many, run)]


def test_what_an_object_shows_is_short_and_inert(tmp_path: Path) -> None:
    for shown in [*of_everything(tmp_path), Report.of(golden_report(), None)]:
        line, table = repr(shown), shown._repr_html_()  # type: ignore[attr-defined]
        assert line.startswith(type(shown).__name__)
        assert len(line) <= REPR_CHARS
        assert line.isprintable()
        assert table.replace("\n", "").isprintable()
        assert table.startswith("<table")
        assert not any(word in table for word in ("<script", "http", "src=", "url(", "secret"))
        assert "secret" not in line


def test_a_line_says_what_is_other_than_usual() -> None:
    assert (
        repr(QuantizationConfig("int4", symmetric=False))
        == "QuantizationConfig(quant_type='int4', symmetric=False)"
    )
    assert repr(QuantizationConfig()) == "QuantizationConfig(quant_type='int8')"
    assert repr(RunConfig()) == "RunConfig()"
    run = RunConfig(workers=2, transfer={"retries": 3})  # type: ignore[arg-type]
    assert repr(run) == "RunConfig(workers=2, transfer={'retries': 3})"
    config = "QuantizationConfig(quant_type='int8')"
    assert repr(ArrowQuantizer(QuantizationConfig(), run)) == f"ArrowQuantizer(config={config}, run={run!r})"


def test_a_tensors_line_says_its_error() -> None:
    tensor = quantize_tensor(np.arange(64, dtype=np.float32).reshape(2, 32), QuantizationConfig("int8"))
    assert "shape=[2, 32], quant_type='int8'" in repr(tensor)
    assert f"cosine={tensor.metrics['cosine']:.6g}" in repr(tensor)


@pytest.mark.parametrize("text", ["<b>", "a & b", HOSTILE])
def test_a_cell_is_text(text: str) -> None:
    table = html_table(text, (text,), [(text,)])
    assert text not in table
    assert table.replace("\n", "").isprintable()
