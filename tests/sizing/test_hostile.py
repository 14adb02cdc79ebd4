"""`size` with sources that are unlike any model: the size is met, or an error says which one can be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.driver import plan_only
from arrowquant_dist.errors import InvalidConfig, UnquantizableWeights
from tests.sizing.test_run import parts_nbytes
from tests.sources import save_checkpoint

Weights = dict[str, torch.Tensor]
ROWS, COLUMNS = 512, 256


def noise(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def zeros() -> Weights:
    return {"a.weight": noise(0), "b.weight": torch.zeros(ROWS, COLUMNS), "c.weight": torch.zeros(3, 5)}


def one_huge_row() -> Weights:
    """A million times the others; and rows from 1e-20 to 1e20."""
    huge, spread = noise(1), noise(2)
    huge[77] *= 1e6
    return {"a.weight": huge, "b.weight": spread * torch.logspace(-20, 20, ROWS)[:, None]}


def few_values() -> Weights:
    """A constant layer, one of two values, one of a single value in a row of zeros."""
    lonely = torch.zeros(ROWS, COLUMNS)
    lonely[:, 3] = noise(3)[:, 0]
    return {
        "a.weight": torch.full((ROWS, COLUMNS), 0.25),
        "b.weight": noise(4).sign(),
        "c.weight": lonely,
        "d": noise(5),
    }


def tiny_layers() -> Weights:
    """Mostly rows' own bytes and footers."""
    return {f"layers.{index}.weight": noise(index)[:8, :16].clone() for index in range(40)} | {
        "norm": noise(9)[0]
    }


def long_rows() -> Weights:
    return {"a.weight": noise(6).reshape(4, -1), "b.weight": noise(7).reshape(-1, 4)}


@pytest.mark.parametrize("make", [zeros, one_huge_row, few_values, tiny_layers, long_rows])
@pytest.mark.parametrize("share", [0.08, pytest.param(0.2, marks=pytest.mark.slow)])
def test_the_size_is_met_and_never_passed_or_the_least_is_said(
    make: object, share: float, tmp_path: Path
) -> None:
    """Of what the values take in float32. The least that is said can be had, and the prediction is within 3 %."""
    assert callable(make)
    weights: Weights = make()
    source = save_checkpoint(tmp_path / "source", weights)
    size = int(share * sum(4 * values.numel() for values in weights.values()))
    out = str(tmp_path / "out")
    try:
        plan = plan_only(source, out, QuantizationConfig(size=size), RunConfig())
    except InvalidConfig as error:
        found = re.search(
            rf"size: {size} bytes are too few for this source; choose at least (\d+)", str(error)
        )
        assert found is not None
        assert int(found[1]) > size
        size = int(found[1])
        plan = plan_only(source, out, QuantizationConfig(size=size), RunConfig())
    ArrowQuantizer(QuantizationConfig(size=size), RunConfig(engine="inline")).quantize(source, out)
    written = parts_nbytes(tmp_path / "out")
    said = re.search(r"the parts take about (\d+) of the (\d+) bytes asked for", plan.notes[-1])
    assert said is not None
    assert int(said[2]) == size
    least = (
        0.99 if make in (one_huge_row, long_rows) else 0.0
    )  # others have few ways, or all there is is enough
    assert least * size <= written <= size
    assert int(said[1]) == pytest.approx(written, rel=0.03)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_none_is_refused_by_its_layer_and_nothing_is_there(
    value: float, tmp_path: Path
) -> None:
    weights = zeros()
    weights["a.weight"][500, 200] = value
    source = save_checkpoint(tmp_path / "source", weights)
    with pytest.raises(UnquantizableWeights, match="500, 200") as raised:
        ArrowQuantizer(QuantizationConfig(size=60_000)).quantize(source, str(tmp_path / "out"))
    assert raised.value.layer == "a.weight"
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_dry_run_says_which_ways_were_chosen_and_what_they_take(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "source", few_values() | {"norm.weight": noise(8)[0]})
    plan = plan_only(source, str(tmp_path / "out"), QuantizationConfig(size=40_000), RunConfig())
    note = plan.notes[-1]
    ways = re.findall(r"(?:: |, )(\w+(?: \w+ (?:in steps|by row|per tensor|g\d+))?) (\d+) layers? ", note)
    assert sum(int(layers) for _, layers in ways) == 5
    assert ("none", "1") in ways
    assert any("in steps" in way for way, _ in ways)
