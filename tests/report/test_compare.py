"""Reports side by side, and tables on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from arrowquant_dist.reduce import Report
from arrowquant_dist.report.compare import comparison
from arrowquant_dist.report.markdown import table_markdown
from arrowquant_dist.report.page import comparison_page
from arrowquant_dist.report.terminal import print_report, print_table
from tests.report.report_samples import golden_report


@pytest.fixture(scope="module")
def report() -> Report:
    return golden_report()


@pytest.fixture(scope="module")
def other(report: Report) -> Report:
    return replace(report, accuracy=None, totals=replace(report.totals, parts_nbytes=100))


def test_a_comparison_has_a_column_a_report(report: Report, other: Report) -> None:
    table = comparison([("out/int8", report), ("out/other", other)])
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.headers == ("", "out/int8", "out/other")
    assert rows["× smaller than fp16"] == ("0.31×", "9.20×")
    assert rows["part files"] == ("3.00 kB", "100 B")
    assert rows["weight cosine, mean"][1] == "–"
    assert {len(row) for row in table.rows} == {3}


def test_a_comparison_is_drawn_in_every_form(report: Report, other: Report) -> None:
    reports = [("<b>int8", report), ("a|b", other)]
    page, markdown = comparison_page(reports), table_markdown(comparison(reports))
    assert "&lt;b&gt;int8" in page
    assert "Weight cosine is not accuracy" in page
    assert "a\\|b" in markdown
    out = io.StringIO()
    print_table(out, comparison(reports))
    assert "<b>int8" in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out_type", [io.StringIO, Terminal])
def test_no_name_acts_on_the_terminal(
    report: Report, out_type: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    hostile = replace(report, source={"uri": "\x1b]0;owned\x07[bold]x[/]", "format": "torch"})
    out = out_type()
    print_report(out, hostile)
    assert "\x1b]0" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "\\x1b]0;owned\\x07[bold]x[/]" in out.getvalue()


def test_a_pipe_gets_aligned_lines_without_escape_sequences(report: Report) -> None:
    out = io.StringIO()
    print_report(out, report)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    head = next(line for line in lines if "min cosine" in line)
    assert (
        head.index("layers") + len("layers")
        == next(line for line in lines if line.startswith("  embeddings")).index(" 1 ") + 2
    )


def test_a_pipe_gets_whole_lines(report: Report) -> None:
    uri = "s3://bucket/" + "long-name/" * 30
    out = io.StringIO()
    print_report(out, replace(report, source={"uri": uri, "format": "torch"}))
    assert uri in out.getvalue()
