"""Memory that is needed within one product is used again, and never by two products at once."""

from __future__ import annotations

import pytest
import torch

from arrowquant_dist.modules import QuantLinear, scratch
from arrowquant_dist.modules.scratch import borrowed
from tests.modules.matrices import random_matrix

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty() -> None:
    scratch._waiting.clear()


def test_what_was_given_back_is_handed_out_again() -> None:
    with borrowed(3 << 20, CPU) as first:
        place = first.data_ptr()
    for nbytes in (1 << 20, 3 << 20, 8):
        with borrowed(nbytes, CPU) as again:
            assert (again.data_ptr(), again.numel(), again.dtype) == (place, nbytes, torch.uint8)


def test_two_that_are_in_use_are_two() -> None:
    with borrowed(1 << 20, CPU) as first, borrowed(1 << 20, CPU) as second:
        first.fill_(1)
        second.fill_(2)
        assert int(first.sum()) == 1 << 20


def test_a_piece_that_is_too_small_gives_way_to_a_larger_one() -> None:
    with borrowed(1 << 20, CPU):
        pass
    with borrowed(2 << 20, CPU) as larger:
        assert larger.numel() == 2 << 20
    assert [piece.nbytes for piece in scratch._waiting] == [2 << 20]


def test_what_fails_gives_it_back() -> None:
    with pytest.raises(ZeroDivisionError), borrowed(1 << 20, CPU):
        _ = 1 // 0
    assert len(scratch._waiting) == 1


def test_products_of_any_number_of_inputs_take_one_piece() -> None:
    layer = QuantLinear(random_matrix(300, 400, 4, 16).weight)
    for inputs in (1, 70, 3, 500, 64):
        layer(torch.randn(inputs, 400))
    assert len(scratch._waiting) == 1
    (piece,) = scratch._waiting
    assert piece.nbytes < 6 * 300 * 400 + 64


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_one_mode_used_another_may_write(mode: type) -> None:
    layer, values = QuantLinear(random_matrix(30, 40, 4, 16).weight), torch.randn(70, 40)
    with torch.inference_mode():
        expected = layer(values)
    with mode():
        assert torch.equal(layer(values), expected)
