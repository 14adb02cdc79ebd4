"""A source has to be the checkpoint that was quantized, or it is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.config.choices import QuantType
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.export.source import correlation
from tests.export.codes_format import CodesFormat
from tests.export.datasets import made_dataset, same, tensors_of
from tests.servers.fixtures import Bucket
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


def _without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name != "layers.1.weight"}


_OTHERS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "a layer is missing": (_without, "other layers"),
    "it has another name": (
        lambda weights: {**_without(weights), "model.layers.1.weight": weights["layers.1.weight"]},
        "other layers",
    ),
    "another shape": (
        lambda weights: {**weights, "layers.1.weight": weights["layers.1.weight"].T.contiguous()},
        "other layers",
    ),
    "more dimensions": (
        lambda weights: {**weights, "layers.1.weight": weights["layers.1.weight"].reshape(2, 48, 64)},
        "other layers",
    ),
    "another dtype": (
        lambda weights: {**weights, "layers.1.weight": weights["layers.1.weight"].half()},
        "other layers",
    ),
    "other values": (
        lambda weights: {**weights, "layers.1.weight": weights["layers.1.weight"].roll(1, 1)},
        "other values",
    ),
    "NaN": (
        lambda weights: {
            **weights,
            "layers.1.weight": weights["layers.1.weight"].where(torch.arange(64) != 7, torch.nan),
        },
        "other values",
    ),
    "zeros": (
        lambda weights: {**weights, "layers.1.weight": torch.zeros(96, 64)},
        "other values",
    ),
}


@pytest.mark.parametrize(
    ("case", "place"),
    [*((case, "local") for case in _OTHERS), ("a layer is missing", "s3"), ("other values", "s3")],
)
def test_another_checkpoint_is_refused_by_its_layer_wherever_it_is(
    case: str, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    changed, problem = _OTHERS[case]
    weights = _weights()
    dataset = made_dataset(tmp_path, weights)
    source, run = save_checkpoint(tmp_path / "other", changed(weights)), RUN
    if place == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        source, run = _uploaded(Path(source), bucket), RUN.replace(storage_options=bucket.storage_options)
    with pytest.raises(
        InvalidCheckpoint, match=rf"other: it has {problem} than the dataset: layers\.1\.weight; use"
    ):
        export_dataset(dataset, str(tmp_path / "out"), ExportOptions(source=source), run)
    assert not (tmp_path / "out").exists()


def _uploaded(source: Path, bucket: Bucket) -> str:
    name = bucket.uri.removeprefix("s3://")
    for file in source.iterdir():
        bucket.objects.client.put_object(Bucket=name, Key=f"other/{file.name}", Body=file.read_bytes())
    return f"{bucket.uri}/other"


def test_the_source_s_values_are_the_same_from_s3(tmp_path: Path, bucket: Bucket) -> None:
    dataset = made_dataset(tmp_path, _weights(), QuantizationConfig("int2"))
    of_s3 = ExportOptions(source=_uploaded(tmp_path / "source", bucket))
    run = RUN.replace(storage_options=bucket.storage_options)
    export_dataset(dataset, str(tmp_path / "of-s3"), of_s3, run)
    export_dataset(dataset, str(tmp_path / "local"), ExportOptions(source=str(tmp_path / "source")), RUN)
    export_dataset(dataset, str(tmp_path / "without"), ExportOptions(), RUN)
    assert same(tensors_of(tmp_path / "of-s3"), tensors_of(tmp_path / "local"))
    assert not same(tensors_of(tmp_path / "of-s3"), tensors_of(tmp_path / "without"))


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
    weight: torch.Tensor, zero_points: str, quant_type: QuantType, tmp_path: Path
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
