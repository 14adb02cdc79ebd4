"""Codes of a dataset made by --size take no more bytes after a training than before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist import QuantizationConfig, WeightLoader, distill
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.distillation import training
from arrowquant_dist.distillation.codes import TrainedCodes
from arrowquant_dist.distillation.rate import Rate
from arrowquant_dist.tensor import quantize_layer
from tests.distillation.test_distill import FEW
from tests.evaluation.models import TEXTS, quantize, save_bert

COARSE = QuantizationConfig("int8", symmetric=True, method="size", step=1.0, rate=0.1155)


def trained_codes(quant_type: str = "int8", *, step: float = 1.0) -> TrainedCodes:
    values = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    spec = QuantSpec(quant_type, method="size", step=step, rate=0.1)
    stored = quantize_layer(values.view(np.uint8).reshape(-1), values.shape, "float32", spec, {}, "layer")
    return TrainedCodes(stored, torch.from_numpy(values))


def test_bits_are_the_entropy_of_the_codes() -> None:
    codes = trained_codes()
    _, counts = np.unique(codes.found()["codes"].numpy(), return_counts=True)
    p = counts / counts.sum()
    assert Rate({"layer": codes}).first == pytest.approx(-(counts * np.log2(p)).sum(), rel=1e-9)


@pytest.mark.parametrize("sign", [-1, 1])
def test_what_is_added_to_a_gradient_makes_codes_smaller(sign: int) -> None:
    codes = trained_codes(step=0.5)
    rate = Rate({"layer": codes})
    codes.offsets.grad = torch.ones_like(codes.offsets) * 1e-3
    rate.add_gradients()
    added = codes.offsets.grad - 1e-3
    found = codes.found()["codes"]
    large = (sign * found) >= 2
    assert large.sum() > 100
    assert (sign * added[large] > 0).float().mean() > 0.95
    assert float(added[found == 0].abs().mean()) < float(added[large].abs().mean())


def test_layers_in_groups_have_no_rate_to_keep() -> None:
    values = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    for spec in (
        QuantSpec("int4", per_channel=False, group_size=8),
        QuantSpec("int4", symmetric=False),
        QuantSpec("int2"),
    ):
        stored = quantize_layer(values.view(np.uint8).reshape(-1), values.shape, "float32", spec, {}, "layer")
        rate = Rate({"layer": TrainedCodes(stored, torch.from_numpy(values))})
        assert rate.first == 0.0
        assert rate.fits()
        rate.add_gradients()
        rate.after(5)


def price(rate: Rate) -> float:
    return float(rate.state()["multiple"])


def test_a_bit_costs_as_much_for_as_long_as_codes_take_what_they_took() -> None:
    rate = Rate({"layer": trained_codes()})
    before = price(rate)
    for step in range(5, 1000, 5):
        rate.after(step)
    assert price(rate) == before


@pytest.mark.parametrize(("factor", "sign"), [(1.5, 1), (0.5, -1)])
def test_a_bit_costs_more_while_codes_take_more_and_less_while_they_take_less(
    factor: float, sign: int
) -> None:
    codes = trained_codes()
    rate = Rate({"layer": codes})
    before = price(rate)
    with torch.no_grad():
        codes.offsets.copy_((factor - 1.0) * codes.found()["codes"])
    rate.after(5)
    assert np.sign(price(rate) - before) == sign


def test_a_state_goes_on_as_it_was() -> None:
    one, other = Rate({"layer": trained_codes()}), Rate({"layer": trained_codes(step=0.7)})
    one.after(5)
    other.put_state(one.state())
    assert {name: value.tolist() for name, value in other.state().items()} == {
        name: value.tolist() for name, value in one.state().items()
    }


def test_a_dataset_of_coarse_codes_gets_better_and_no_larger(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "model")
    quantize(model, tmp_path / "quantized", COARSE)
    settings = replace(FEW, steps=40)
    found = distill(model, tmp_path / "quantized", tmp_path / "trained", TEXTS, settings=settings)
    assert found.best > 0
    assert found.losses[found.best] < 0.97 * found.losses[0]

    def bits(target: Path) -> float:
        total = 0.0
        with WeightLoader(target, dequantize=False) as loader:
            for name in loader.keys():  # noqa: SIM118 - a loader gives pairs
                if loader[name].quant_type == "int8":
                    _, counts = np.unique(loader[name].codes, return_counts=True)
                    total -= float((counts * np.log2(counts / counts.sum())).sum())
        return total

    assert bits(tmp_path / "trained") <= 1.004 * bits(tmp_path / "quantized")


def test_what_takes_more_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Larger(Rate):
        """At each look."""

        def fits(self) -> bool:
            return False

    monkeypatch.setattr(training, "Rate", Larger)
    model = save_bert(tmp_path / "model")
    quantize(model, tmp_path / "quantized", COARSE)
    found = distill(model, tmp_path / "quantized", tmp_path / "trained", TEXTS, settings=FEW)
    assert (found.best, min(found.losses.values()) < found.losses[0]) == (0, True)
    with (
        WeightLoader(tmp_path / "quantized", dequantize=False) as old,
        WeightLoader(tmp_path / "trained", dequantize=False) as new,
    ):
        for name in old.keys():  # noqa: SIM118 - a loader gives pairs
            assert np.array_equal(old[name].codes, new[name].codes)
