"""Datasets by size and accuracy, and which of them no other one beats."""

from __future__ import annotations

import itertools

from arrowquant_dist.report.pictures.pareto import Point, beaten_by, beside_dots, frontier, pareto

SMALL, MIDDLE, LARGE = (
    Point("A", "int2", 2.0, 0.5),
    Point("B", "int4", 4.0, 0.9),
    Point("C", "int8", 8.0, 0.99),
)
WASTED = Point("D", "wasted", 5.0, 0.8)


def test_those_that_another_beats_are_not_on_the_line() -> None:
    points = [LARGE, WASTED, SMALL, MIDDLE]
    assert frontier(points) == [SMALL, MIDDLE, LARGE]
    assert beaten_by(WASTED, points) == MIDDLE
    assert all(beaten_by(point, points) is None for point in (SMALL, MIDDLE, LARGE))


def test_equal_ones_do_not_beat_each_other_and_one_with_the_same_bits_does() -> None:
    twin, better = Point("E", "twin", 2.0, 0.5), Point("F", "better", 2.0, 0.6)
    assert beaten_by(SMALL, [SMALL, twin]) is None
    assert beaten_by(SMALL, [SMALL, better]) == better


def test_the_picture_names_what_is_beaten() -> None:
    picture = pareto("Bits against outputs", "cosine", [SMALL, MIDDLE, WASTED])
    assert picture is not None
    assert "D is beaten by B" in picture.caption
    assert picture.svg.count("beaten-point") == 1
    assert pareto("Bits against outputs", "cosine", [SMALL]) is None


def test_equal_ones_are_both_on_the_line_and_said_to_be_equal() -> None:
    twin = Point("E", "twin", SMALL.bits, SMALL.good)
    assert frontier([SMALL, twin, MIDDLE]) == [SMALL, twin, MIDDLE]
    picture = pareto("Bits against outputs", "cosine", [SMALL, twin])
    assert picture is not None
    assert picture.caption == "All are equal."
    assert "beaten-point" not in picture.svg


def test_letters_cover_neither_dots_nor_each_other() -> None:
    dots = [(100.0, 100.0), (106.0, 98.0), (112.0, 96.0)]
    letters = beside_dots(dots)
    for one, other in itertools.combinations(letters, 2):
        assert abs(one[0] - other[0]) > 11 or abs(one[1] - other[1]) > 12
    assert letters[0][0] < dots[0][0]
