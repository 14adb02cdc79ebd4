"""The choice of one option a layer, against every combination."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.sizing.knapsack import Option, least_error

OPTIONS = st.builds(Option, st.floats(0, 100).map(lambda x: round(x, 3)), st.integers(1, 50))
LAYERS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def best_error(layers: list[list[Option]], room: int) -> float | None:
    errors = [
        sum(option.error for option in chosen)
        for chosen in product(*layers)
        if sum(option.nbytes for option in chosen) <= room
    ]
    return min(errors, default=None)


@settings(deadline=None, max_examples=300)
@given(LAYERS, st.integers(0, 250))
def test_it_fits_and_misses_the_least_error_by_at_most_one_layer_s(
    layers: list[list[Option]], room: int
) -> None:
    options = {f"layer {index}": each for index, each in enumerate(layers)}
    best, chosen = best_error(layers, room), least_error(options, room)
    if chosen is None:
        assert best is None
        return
    assert best is not None
    picked = [options[name][index] for name, index in chosen.items()]
    assert len(picked) == len(layers)
    assert sum(option.nbytes for option in picked) <= room
    largest = max(max(o.error for o in each) - min(o.error for o in each) for each in layers)
    assert sum(option.error for option in picked) <= best + largest + 1e-9


@settings(deadline=None, max_examples=100)
@given(LAYERS)
def test_with_room_for_all_each_layer_has_its_least_error(layers: list[list[Option]]) -> None:
    options = {f"layer {index}": each for index, each in enumerate(layers)}
    chosen = least_error(options, 10_000)
    assert chosen is not None
    assert all(
        options[name][index].error == min(o.error for o in options[name]) for name, index in chosen.items()
    )
