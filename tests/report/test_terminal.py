"""Tables on a terminal: drawn where they fit, and in whole lines where they do not."""

from __future__ import annotations

import io
import re

import pytest

from arrowquant_dist.report.terminal import print_table
from arrowquant_dist.report.view import Table

NAME = "model.layers.0.self_attn.q_proj.weight"
LAYERS = Table("Layers", ("layer", "dtype", "size"), "llr", ((NAME, "bfloat16", "34.5 kB"),))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(table: Table, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")  # rich does not ask a dumb one for its width
    out = Terminal()
    print_table(out, table)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_a_name_is_never_torn_apart_by_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = [line for line in shown(LAYERS, columns, monkeypatch).splitlines() if NAME in line]
    assert line.split() == [NAME, "bfloat16", "34.5", "kB"]


def test_a_table_that_fits_is_drawn_within_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(LAYERS, 80, monkeypatch)
    assert "──" in text
    assert max(map(len, text.splitlines())) <= 80


def test_facts_are_folded_in_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Table("Facts", ("", ""), "ll", (("source", "s3://bucket/" + "x" * 40),)), 40, monkeypatch)
    assert max(map(len, text.splitlines())) <= 40
    assert "".join(text.split()).count("x") == 40
