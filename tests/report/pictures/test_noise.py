"""Pictures of errors: each layer at the place that its figures give, a note for what is left out, bounded in size."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import pytest

from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.pictures.noise import bins, by_bits, by_depth, histogram
from arrowquant_dist.report.pictures.svg import Picture
from tests.report.layer_samples import NORM, layer

Drawn = Callable[[Sequence[LayerRow]], Picture | None]
DRAWN = pytest.mark.parametrize("drawn", [by_depth, by_bits, histogram])


def dots(picture: Picture | None) -> dict[str, tuple[float, float]]:
    """{layer: where its dot is}."""
    assert picture is not None
    return {
        (circle.findtext("title") or "").split(":")[0]: (
            float(circle.attrib["cx"]),
            float(circle.attrib["cy"]),
        )
        for circle in ElementTree.fromstring(picture.svg).iter("circle")  # noqa: S314 - our own
    }


def test_a_layer_stands_over_its_block_and_higher_with_less_error() -> None:
    rows = [
        layer("layers.0.a", 10.0),
        layer("layers.1.a", 20.0),
        layer("layers.3.a", 20.0),
        layer("head", 20.0),
    ]
    at = dots(by_depth(rows))
    outside, first, second, last = (at[name] for name in ("head", "layers.0.a", "layers.1.a", "layers.3.a"))
    assert outside[0] < first[0] < second[0] < last[0]
    assert last[0] - second[0] == pytest.approx(2 * (second[0] - first[0]), abs=0.2)
    assert first[1] > second[1] == last[1]


def test_a_layer_stands_at_its_stored_bits() -> None:
    at = dots(by_bits([layer("a", stored_nbytes=4096), layer("b", stored_nbytes=8192), NORM]))
    assert at["a"][0] < at["b"][0]
    assert set(at) == {"a", "b"}


def test_where_one_layer_takes_many_more_bits_the_others_are_still_told_apart() -> None:
    rows = [layer("a", stored_nbytes=4096), layer("b", stored_nbytes=4400), layer("c", stored_nbytes=120_000)]
    at = dots(by_bits(rows))
    assert at["b"][0] - at["a"][0] >= 5
    assert at["c"][0] <= 350


def test_a_histogram_counts_every_layer_once() -> None:
    picture = histogram([layer("a", 8.0), layer("b", 8.1), layer("c", 30.0)])
    assert picture is not None
    assert sum(map(int, re.findall(r"dB: (\d+) layer", picture.svg))) == 3


@pytest.mark.parametrize(
    "values", [[20.0] * 5, [8.0, 8.1, 8.2, 60.0], [float(i % 37) / 3 for i in range(500)]]
)
def test_bins_follow_the_data(values: list[float]) -> None:
    low, step, counts = bins(values)
    assert sum(counts) == len(values)
    assert low <= min(values)
    assert max(values) <= low + step * len(counts)
    assert 1 <= len(counts) <= 42
    assert counts[0]
    assert counts[-1]


@DRAWN
def test_what_has_no_noise_is_counted_and_nothing_is_drawn_without_any(drawn: Drawn) -> None:
    assert drawn([NORM, layer("exact", None)]) is None
    picture = drawn([layer("layers.0.a"), layer("exact", None), NORM])
    assert picture is not None
    assert "Not shown: 1 quantized layer without" in picture.caption


@pytest.fixture(scope="module")
def many() -> list[LayerRow]:
    return [layer(f"layers.{i % 60}.experts.{i}.up", 8 + (i * 7919 % 9973) / 500) for i in range(20_000)]


@DRAWN
def test_twenty_thousand_layers_make_no_larger_picture_than_fits_on_it(
    drawn: Drawn, many: list[LayerRow]
) -> None:
    picture = drawn(many)
    assert picture is not None
    assert len(picture.svg) < 200_000


@DRAWN
def test_a_name_is_inert_in_a_picture(drawn: Drawn) -> None:
    picture = drawn([layer("</title></svg><script>x</script>\u202e\x1b")])
    assert picture is not None
    ElementTree.fromstring(picture.svg)  # noqa: S314 - our own
    assert "<script" not in picture.svg
    assert "\u202e" not in picture.svg
