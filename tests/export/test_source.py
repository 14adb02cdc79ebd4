"""A source is the checkpoint that was quantized, or it is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.export.source import correlation
from tests.export.codes_format import CodesFormat
from tests.export.datasets import made_dataset
from tests.sources import random_weights, save_checkpoint

RUN = RunConfig(engine="inline", workers=2)


@pytest.fixture(autouse=True)
def requantizing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "arrowquant_dist.export.run.format_of", lambda _: CodesFormat("int4", QuantSpec("int4"))
    )


def _weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name: torch.randn(96, 64).to(dtype) for name in random_weights(3, 1, 1, dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_model_of_the_same_shapes_is_refused_by_its_layers(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    weights = _weights(dtype)
    dataset = made_dataset(tmp_path, weights)
    changed = {**weights, "layers.1.weight": weights["layers.2.weight"].flip(0).contiguous()}
    source = save_checkpoint(tmp_path / "other", changed)
    with pytest.raises(
        InvalidCheckpoint, match=r"other: it has other values than the dataset: layers\.1\.weight;"
    ) as error:
        export_dataset(dataset, str(tmp_path / "out"), ExportOptions(source=source), RUN)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def _outlier() -> torch.Tensor:
    weight = torch.randn(96, 64)
    weight[50, 3] = 400.0  # behind the values that are compared, nearly all of whose codes are one then
    return weight


@pytest.mark.parametrize("quant_type", ["int8", "int2"])
@pytest.mark.parametrize("zero_points", ["none", "real"])
@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.randn(96, 64) * 1e-30, id="tiny"),
        pytest.param(torch.randn(96, 64).double(), id="float64"),
        pytest.param(torch.rand(96, 64).pow(20) + 5, id="offset"),
        pytest.param(_outlier(), id="outlier"),
        pytest.param(torch.zeros(96, 64), id="zeros"),
        pytest.param(torch.randn(2, 3), id="small"),
    ],
)
def test_the_source_itself_is_taken_however_coarse_the_codes_are(
    weight: torch.Tensor, zero_points: str, quant_type: str, tmp_path: Path
) -> None:
    is_symmetric = zero_points == "none"
    config = QuantizationConfig(quant_type, per_channel=False, group_size=0, symmetric=is_symmetric)
    dataset = made_dataset(tmp_path, {"a.weight": weight}, config)
    source = ExportOptions(source=str(tmp_path / "source"))
    export_dataset(dataset, str(tmp_path / "out"), source, RUN)
    assert (tmp_path / "out/export.json").exists()


def test_a_correlation_is_pearsons() -> None:
    one, other = np.array([1.0, 2.0, 3.0, 5.0]), np.array([2.0, 1.0, 6.0, 7.0])
    assert correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert correlation(one, np.ones(4)) == 0.0
