"""Tables fit the width of a terminal: names are shortened, prose is wrapped, columns are dropped, panels are drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest

from arrowquant_dist.report.terminal import print_command, print_notes, print_table, print_yaml
from arrowquant_dist.report.text import LayerName, shortened_names
from arrowquant_dist.report.view import Table

NAME = "model.layers.0.self_attn.q_proj.weight"
LAYERS = Table("Layers", ("layer", "dtype", "size"), "llr", ((LayerName(NAME), "bfloat16", "34.5 kB"),))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(table: Table, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")  # rich does not ask a dumb one for its width
    out = Terminal()
    print_table(out, table)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


@pytest.mark.parametrize(
    ("columns", "name"),
    [(60, NAME), (56, "model…0.self_attn.q_proj.weight"), (50, "model…0…q_proj.weight")],
)
def test_a_name_is_shortened_in_the_middle_and_keeps_its_block(
    columns: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(LAYERS, columns, monkeypatch)
    assert text.splitlines()[3].split() == [name, "bfloat16", "34.5", "kB"]
    assert max(map(len, text.splitlines())) <= columns


def test_columns_go_in_the_order_that_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("T", ("layer", "dtype", "size"), "llr", LAYERS.rows, drop=("size", "dtype"))
    heads = [shown(table, columns, monkeypatch).splitlines()[1].split() for columns in (60, 36, 24)]
    assert heads == [["layer", "dtype", "size"], ["layer", "dtype"], ["layer"]]


def test_what_is_too_wide_is_several_tables_with_the_first_column_in_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = Table("T", ("", "a", "b", "c"), "lrrr", (("size", *("123456789" for _ in "abc")),))
    text = shown(figures, 30, monkeypatch)
    assert [line.split() for line in text.splitlines() if "size" in line] == [
        ["size", "123456789", "123456789"],
        ["size", "123456789"],
    ]


NAMES = [
    f"encoder.layer.{i}.{part}.weight" for i in (0, 1) for part in ("attention.output.dense", "output.dense")
]


@pytest.mark.parametrize("width", range(24, 46))
def test_names_of_a_column_stay_apart_and_fit(width: int) -> None:
    made = shortened_names(NAMES, width)
    assert len({*made}) == len(NAMES)
    assert max(map(len, made)) <= width


def test_names_without_parts_are_cut_and_stay_apart() -> None:
    names = ["x" * 300 + ".weight", "y" * 300 + ".weight"]
    made = shortened_names(names, 30)
    assert made == ["x" * 9 + "…" + "x" * 13 + ".weight", "y" * 9 + "…" + "y" * 13 + ".weight"]


def test_a_number_stays_with_its_unit_and_a_path_is_shortened_between_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = (("time", "over all of the workers 1 min 37 s"), ("source", "/a/folder/somewhere/in/there/model"))
    lines = shown(Table("Facts", ("", ""), "ll", facts), 34, monkeypatch).splitlines()
    assert lines[1:3] == ["  time    over all of the workers", "          1 min 37 s"]
    assert lines[3] == "  source  /a/…/in/there/model"


def test_a_command_that_is_folded_can_still_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    print_command(out, "next", ["arrowquant", "report", "a folder/t", "--html", "page.html"])
    assert out.getvalue() == "next: arrowquant report \\\n   'a folder/t' \\\n   --html page.html\n"


def test_yaml_stays_the_same_where_its_comments_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# all of this\nrun:\n  url: 'a # b, a value of many words' # where it goes\n  workers: 2  # as many\n"
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    print_yaml(out, text)
    folded = "  # where it goes\n  url: 'a # b, a value of many words'\n  # as many\n  workers: 2\n"
    assert out.getvalue() == "# all of this\nrun:\n" + folded
    print_yaml(plain := io.StringIO(), text)
    assert plain.getvalue() == text


def test_ten_thousand_rows_are_fitted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(
        (LayerName(f"model.layers.{i}.self_attn.q_proj.weight"), "bfloat16", "34.5 kB") for i in range(10_000)
    )
    lines = shown(Table("Layers", LAYERS.headers, "llr", rows), 60, monkeypatch).splitlines()
    assert len(lines) == 10_004
    assert max(map(len, lines)) <= 60


def test_a_table_that_fits_is_drawn_within_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(LAYERS, 80, monkeypatch)
    assert "──" in text
    assert max(map(len, text.splitlines())) <= 80


def test_facts_are_folded_in_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Table("Facts", ("", ""), "ll", (("layers", "many " * 40),)), 40, monkeypatch)
    assert max(map(len, text.splitlines())) <= 40
    assert text.split().count("many") == 40


NOTES = ("mse instead of gptq for 2 layers of which nobody knows why", "short", "third", "fourth")


def noted(out: io.StringIO, notes: Sequence[str]) -> list[str]:
    print_notes(out, notes, 2)
    return out.getvalue().splitlines()


def test_notes_are_whole_where_no_terminal_is() -> None:
    assert noted(io.StringIO(), NOTES) == [f"note: {note}" for note in NOTES]


def test_notes_on_a_terminal_are_a_line_each_and_the_others_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert noted(Terminal(), NOTES) == [
        "note: mse instead of gptq for 2 layers …",
        "and 3 more notes in the report",
    ]
    assert noted(Terminal(), NOTES[:2]) == ["note: mse instead of gptq for 2 layers …", "note: short"]
    assert noted(Terminal(), ()) == []
