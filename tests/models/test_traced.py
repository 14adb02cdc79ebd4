"""Traced tensors know what was done to them: values, places and rows are those that torch itself gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from arrowquant_dist.models.placements import placements_of
from arrowquant_dist.models.provenance import RowRun, row_runs
from arrowquant_dist.models.traced import (
    Call,
    Origin,
    Traced,
    UntraceableOperation,
    evaluated,
    make_changes,
    sources_of,
)

SHAPES = {"a": (6, 4), "b": (6, 4), "c": (2, 6, 4), "d": (8, 4)}
VALUES = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(7)) for name, shape in SHAPES.items()
}

Operation = Callable[..., Any]


def traced(name: str, changes: list[Call] | None = None, equal: frozenset[str] = frozenset()) -> Traced:
    like = torch.empty(SHAPES[name], device="meta")
    return Traced.of(Origin(name, like, lambda other: other not in equal, [] if changes is None else changes))


def rope(x: Tensor) -> Tensor:
    return x.view(2, 2, 2, 4).transpose(1, 2).reshape(8, 4)


def interleaved(x: Tensor) -> Tensor:
    return x.reshape(3, 2, 4).transpose(0, 1).reshape(6, 4).contiguous()


# (arguments, operation): one layer, and several that are put together.
OPERATIONS: list[tuple[str, Operation]] = [
    ("a", lambda a: a[...]),
    ("a", lambda a: a.to(torch.bfloat16)),
    ("a", lambda a: a.to(torch.bfloat16).to(torch.float32)),
    ("a", lambda a: a.T.contiguous()),
    ("a", lambda a: torch.chunk(a, 3)[1]),
    ("a", lambda a: torch.split(a, [1, 2, 3], dim=0)[2].contiguous()),
    ("a", lambda a: a.chunk(2, dim=1)[1]),
    ("a", interleaved),
    ("d", rope),
    ("a", lambda a: a[2:5]),
    ("a", lambda a: a * 2),
    ("ab", lambda a, b: torch.cat([a, b])),
    ("ab", lambda a, b: torch.cat([a, b], dim=1)),
    ("ab", lambda a, b: torch.stack([a, b], dim=0)),
    ("ab", lambda a, b: torch.stack([a, b], dim=-1)),
    ("ab", lambda a, b: torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=1).to(torch.bfloat16)),
    ("ab", lambda a, b: torch.stack([a, b]).transpose(1, 2).contiguous()),
    ("ab", lambda a, b: torch.stack([a.T, b.T]).reshape(8, 6)),
    ("ab", lambda a, b: torch.cat([a, b]).view(3, 4, 4).transpose(0, 1).reshape(12, 4)),
    ("ab", lambda a, b: torch.cat([a.to(torch.bfloat16), b.to(torch.bfloat16)]).to(torch.float32)),
    ("ab", lambda a, b: torch.cat([a.to(torch.bfloat16), b])),
    ("ab", lambda a, b: a + b),
    ("ac", lambda a, c: torch.cat([a.unsqueeze(0), c])),
    ("ac", lambda a, c: torch.cat([a, c.flatten(0, 1)])),
    ("ac", lambda a, c: torch.cat([a, torch.nn.functional.pad(c[0], (0, 0, 0, 1))])),
]


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_values_are_those_of_the_operation(number: int) -> None:
    names, operation = OPERATIONS[number]
    expected = operation(*(VALUES[name] for name in names))
    made = operation(*(traced(name) for name in names))
    assert (made.shape, made.dtype, made.device.type) == (expected.shape, expected.dtype, "cpu")
    assert isinstance(made, Traced)
    assert torch.equal(evaluated(made.node, VALUES), expected)
    assert {*sources_of(made.node)} == {*names}


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_placements_put_them_there_one_layer_after_another(number: int) -> None:
    names, operation = OPERATIONS[number]
    expected = operation(*(VALUES[name] for name in names))
    made: Traced = operation(*(traced(name) for name in names))
    out = torch.full_like(expected, torch.nan, memory_format=torch.contiguous_format)
    for placement in placements_of(made.node, out):
        placement.out.copy_(evaluated(placement.value, VALUES))
    assert torch.equal(out, expected)


def test_experts_are_taken_apart_into_layers_as_they_are() -> None:
    a, b = traced("a"), traced("b")
    made: Any = torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=1)
    found = [*placements_of(made.node, torch.empty(2, 12, 4))]
    assert [placement.sources for placement in found] == [("a",), ("b",), ("b",), ("a",)]
    assert all(placement.is_plain for placement in found)


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_row_runs_are_the_rows_or_nothing(number: int) -> None:
    names, operation = OPERATIONS[number]
    made = operation(*(traced(name) for name in names))
    runs = row_runs(made.node)
    if runs is not None:
        rows = torch.cat([VALUES[run.layer][run.start : run.stop] for run in runs])
        expected = operation(*(VALUES[name] for name in names))
        assert torch.equal(rows.to(expected.dtype), expected)


@pytest.mark.parametrize(
    ("names", "operation", "runs"),
    [
        ("a", lambda a: a[...].contiguous(), (RowRun("a", 0, 6),)),
        ("ab", lambda a, b: torch.cat([a, b]), (RowRun("a", 0, 6), RowRun("b", 0, 6))),
        ("ab", lambda a, b: torch.cat([a, b]).chunk(3)[1], (RowRun("a", 4, 6), RowRun("b", 0, 2))),
        ("a", lambda a: a.split([1, 5])[1], (RowRun("a", 1, 6),)),
        (
            "d",
            rope,
            tuple(RowRun("d", *rows) for rows in ((0, 1), (2, 3), (1, 2), (3, 5), (6, 7), (5, 6), (7, 8))),
        ),
        ("a", lambda a: a.T.contiguous(), None),
        ("ab", lambda a, b: torch.cat([a, b], dim=1), None),
        ("a", lambda a: a * 2, None),
    ],
)
def test_row_runs_of_what_conversions_do(
    names: str, operation: Operation, runs: tuple[RowRun, ...] | None
) -> None:
    assert row_runs(operation(*(traced(name) for name in names)).node) == runs


def test_equal_means_the_same_layers_in_the_same_way_or_equal_ones() -> None:
    assert torch.equal(traced("a"), traced("a"))
    assert torch.equal(traced("a", equal=frozenset("b")), traced("b"))
    assert not torch.equal(traced("a"), traced("b"))
    assert torch.equal(torch.cat([traced("a"), traced("b")]), torch.cat([traced("a"), traced("b")]))
    assert not torch.equal(torch.cat([traced("a"), traced("b")]), torch.cat([traced("b"), traced("a")]))
    assert not torch.equal(traced("a") * torch.ones(6, 1), traced("a") * torch.zeros(6, 1))


def test_a_change_in_place_is_made_to_the_real_tensor() -> None:
    changes: list[Call] = []
    parameter = torch.nn.Parameter(traced("a", changes))
    with torch.no_grad():
        parameter[1].zero_()
        parameter.data[2] = 3
        (parameter * 2).zero_()  # of something else: the parameter stays
    real = VALUES["a"].clone()
    make_changes(changes, {id(parameter): real})
    assert real[1].eq(0).all()
    assert real[2].eq(3).all()
    assert torch.equal(real[3:], VALUES["a"][3:])


def test_a_change_before_a_tensor_is_in_the_model_is_refused() -> None:
    changes: list[Call] = []
    converted = traced("a", changes)[...] * 1
    converted[0] = 0
    parameter = torch.nn.Parameter(converted)
    with pytest.raises(UntraceableOperation):
        make_changes(changes, {id(parameter): VALUES["a"].clone()})
