"""Bytes that are left go to single exchanges; compared with trying every exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.sizing.knapsack import Option, exchanged

OPTIONS = st.builds(Option, st.floats(0, 100).map(lambda x: round(x, 3)), st.integers(1, 50))
LAYERS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)
Options = Mapping[str, Sequence[Option]]


def nbytes(options: Options, chosen: Mapping[str, int]) -> int:
    return sum(options[name][index].nbytes for name, index in chosen.items())


def error(options: Options, chosen: Mapping[str, int]) -> float:
    return sum(options[name][index].error for name, index in chosen.items())


@settings(max_examples=300)
@given(LAYERS, st.integers(0, 100))
def test_it_fits_and_no_single_exchange_that_fits_has_less_error(
    layers: list[list[Option]], spare: int
) -> None:
    options = {f"layer {index}": each for index, each in enumerate(layers)}
    first = dict.fromkeys(options, 0)
    room = nbytes(options, first) + spare
    found = exchanged(options, first, room)
    assert [*found] == [*options]
    assert nbytes(options, found) <= room
    others = [found | {name: other} for name, each in options.items() for other in range(len(each))]
    within = [error(options, other) for other in others if nbytes(options, other) <= room]
    assert error(options, found) <= min(within) + 1e-9
    assert error(options, found) <= error(options, first) + 1e-9


@settings(max_examples=100)
@given(LAYERS)
def test_with_room_for_all_each_layer_has_its_least_error(layers: list[list[Option]]) -> None:
    options = {f"layer {index}": each for index, each in enumerate(layers)}
    chosen = exchanged(options, dict.fromkeys(options, 0), 10_000)
    assert all(
        options[name][index].error == min(o.error for o in options[name]) for name, index in chosen.items()
    )


def test_the_largest_gain_that_fits_comes_first() -> None:
    options = {
        "small": [Option(10.0, 10), Option(4.0, 20)],
        "large": [Option(10.0, 10), Option(1.0, 21)],
        "larger": [Option(90.0, 10), Option(0.0, 60)],
    }
    first = dict.fromkeys(options, 0)
    assert exchanged(options, first, 41) == {"small": 0, "large": 1, "larger": 0}
    assert exchanged(options, first, 50) == {"small": 0, "large": 1, "larger": 0}
    assert exchanged(options, first, 51) == {"small": 1, "large": 1, "larger": 0}
    assert exchanged(options, first, 80) == {"small": 0, "large": 0, "larger": 1}


def test_nothing_is_exchanged_for_what_gains_nothing() -> None:
    options = {"layer": [Option(1.0, 10), Option(1.0, 1), Option(2.0, 1)]}
    assert exchanged(options, {"layer": 0}, 100) == {"layer": 0}
