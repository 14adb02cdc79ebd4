"""The methods that are offered are the methods that exist."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from arrowquant_dist.cli import app
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.method_names import METHODS
from arrowquant_dist.methods import method_of, side_input_of
from arrowquant_dist.methods.registry import BY_GROUP, PER_TENSOR


def test_the_names_are_those_of_the_methods() -> None:
    assert METHODS.keys() == BY_GROUP.keys() | PER_TENSOR.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_name_says_where_the_method_s_side_input_is(name: str) -> None:
    side_input = side_input_of(name)
    assert METHODS[name] == (None if side_input is None else side_input.config_field)


@pytest.mark.parametrize(
    ("name", "group_size"), [*((name, 32) for name in BY_GROUP), *((name, 0) for name in PER_TENSOR)]
)
def test_a_spec_s_method_is_that_of_its_name(name: str, group_size: int) -> None:
    assert method_of(QuantSpec("int4", per_channel=False, group_size=group_size, method=name)).name == name


def test_scales_that_a_method_does_not_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PER_TENSOR, "mse")
    with pytest.raises(InvalidConfig, match="method: mse has no scale for a whole tensor; choose another"):
        method_of(QuantSpec("int4", per_channel=False, group_size=0, method="mse"))


def test_the_command_line_offers_them() -> None:
    shown = CliRunner().invoke(app, ["quantize", "--help"], terminal_width=200).stdout
    assert "|".join(METHODS) in shown
