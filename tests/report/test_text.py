"""Figures and names as people read them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowquant_dist.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (22_713_216, "22.7 MB"),
        (999_499, "999.5 kB"),
        (999_600, "1.00 MB"),
        (int(1.5e12), "1.50 TB"),
        (10**19, "10000.0 PB"),
    ],
)
def test_bytes_have_decimal_units(value: int, shown: str) -> None:
    assert text.nbytes(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(5, "5"), (22_713_216, "22.7 M"), (671_000_000_000, "671.0 B")])
def test_params_are_counted_in_thousands(value: int, shown: str) -> None:
    assert text.params(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.50 s"), (59.994, "59.99 s"), (61, "1 min 01 s"), (3725.2, "1 h 02 min 05 s")],
)
def test_seconds_grow_into_hours(value: float, shown: str) -> None:
    assert text.seconds(value) == shown


@pytest.mark.parametrize("form", [text.times, text.cosine, text.small, text.decibel])
def test_a_figure_that_is_not_there_is_a_dash(form: text.Form) -> None:
    assert form(None) == text.MISSING


@given(st.text())
def test_nothing_that_a_terminal_acts_on_is_printable(name: str) -> None:
    shown = text.printable(name)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb", "a\\nb"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("größe", "größe"),
    ],
)
def test_control_characters_become_escapes(name: str, shown: str) -> None:
    assert text.printable(name) == shown


@pytest.mark.parametrize("at", ["2026-11-28T18:00:00+00:00", "2026-11-28T18:00:00.261903+00:00"])
def test_a_moment_is_to_the_second_and_names_its_zone(at: str) -> None:
    assert text.moment(at) == "2026-11-28 18:00:00 UTC"
