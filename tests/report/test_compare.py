"""Reports side by side, and tables on the terminal."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape

import pytest

from arrowquant_dist.reduce import ReportFigures
from arrowquant_dist.report.compare import Line, comparison, sections
from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.differences import differing_layers
from arrowquant_dist.report.headings import headings
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.markdown import table_markdown
from arrowquant_dist.report.page import comparison_page
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.shared_error import shared_sqnr
from arrowquant_dist.report.terminal import print_report, print_table
from arrowquant_dist.report.unlike import unlike
from tests.report.layer_samples import ENERGY, NORM, layer
from tests.report.report_samples import golden_report


@pytest.fixture(scope="module")
def report() -> ReportFigures:
    return golden_report()


@pytest.fixture(scope="module")
def other(report: ReportFigures) -> ReportFigures:
    return replace(report, accuracy=None, totals=replace(report.totals, parts_nbytes=100))


def test_a_comparison_has_a_column_a_report(report: ReportFigures, other: ReportFigures) -> None:
    table = comparison(Compared([Reported("out/int8", report), Reported("out/other", other)]))
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.headers == ("", "out/int8", "out/other")
    assert rows["× smaller than fp16"] == ("0.31×", "9.20×")
    assert rows["part files"] == ("3.00 kB", "100 B")
    assert rows["weight cosine, mean"][1] == "–"
    assert {len(row) for row in table.rows} == {3}


def test_a_comparison_is_drawn_in_every_form(report: ReportFigures, other: ReportFigures) -> None:
    reports = [Reported("<b>int8", report), Reported("a|b", other)]
    page, markdown = comparison_page(Compared(reports)), table_markdown(comparison(Compared(reports)))
    assert "&lt;b&gt;int8" in page
    assert "Weight cosine is not accuracy" in page
    assert "a\\|b" in markdown
    out = io.StringIO()
    print_table(out, comparison(Compared(reports)))
    assert "<b>int8" in out.getvalue()


def lines_of(datasets: list[Reported]) -> dict[str, Line]:
    return {line.label: line for section in sections(Compared(datasets)) for line in section.lines}


def test_the_best_of_each_row_is_marked_and_nothing_where_all_look_equal(
    report: ReportFigures, other: ReportFigures
) -> None:
    lines = lines_of([Reported("a", report), Reported("b", other), Reported("c", other)])
    assert lines["part files"].best == (False, True, True)
    assert lines["× smaller than fp16"].best == (False, True, True)
    assert not any(lines["wall time"].best)
    assert not any(lines["weight cosine, mean"].best)  # of the one that has it
    assert not any(lines["stored as"].best)


def test_a_run_that_went_on_with_earlier_ones_is_not_called_the_fastest(report: ReportFigures) -> None:
    def taking(seconds: float, *resumed: int) -> ReportFigures:
        run, timing = (
            replace(report.run, resumed_shards=resumed),
            replace(report.timing, wall_seconds=seconds),
        )
        return replace(report, run=run, timing=timing)

    runs = [taking(9.0), taking(1.0, 4, 5), taking(8.0)]
    line = lines_of([Reported(str(i), one) for i, one in enumerate(runs)])["wall time"]
    assert line.cells == ("9.00 s", "1.00 s of the last run", "8.00 s")
    assert line.best == (False, False, True)


def test_method_and_groups_are_those_of_the_layers(report: ReportFigures) -> None:
    rows = (layer("a", method="mse"), layer("b", method="rtn", group_size=0), layer("c", method="mse"), NORM)
    defaulted = replace(report, config={"method": None})
    lines = lines_of([Reported("new", defaulted, layers=rows), Reported("old", defaulted)])
    assert lines["method"].cells == ("mse (2), rtn (1)", "–")
    assert lines["scales of"].cells == ("groups of 128 (2), rows (1)", "–")


def test_datasets_stand_in_their_order_under_what_tells_them_apart(report: ReportFigures) -> None:
    names = ["s3://b/out/int8", "s3://b/out/int4", "s3://b/out/a/int4", "s3://b/out/int2", "s3://b/out/mixed"]
    page = comparison_page(Compared([Reported(name, report) for name in names]))
    heads = re.findall(r'<th scope="col" title="(.*?)"><span class="letter">(.)</span> (.*?)</th>', page)
    assert [name for name, _, _ in heads[:5]] == names
    assert [letter for _, letter, _ in heads[:5]] == list("ABCDE")
    assert [short for _, _, short in heads[:5]] == ["int8", "int4", "a/int4", "int2", "mixed"]
    assert {one.short for one in headings([Reported("x", report), Reported("x", report)])} == {"x"}


def test_the_layers_that_differ_most_come_first(report: ReportFigures) -> None:
    names = [f"layer{i}" for i in range(30)]
    good = tuple(layer(name, 40.0) for name in names)
    bad = tuple(layer(name, 8.0 + i) for i, name in enumerate(names))
    kept = tuple(replace(NORM, layer_name=name, shape=layer(name).shape) for name in names)
    lines = differing_layers(Compared([Reported("a", report, layers=each) for each in (bad, good, kept)]))
    assert [line.label for line in lines] == names[:20]
    assert lines[0].cells == ("8.0 dB (int4)", "40.0 dB (int4)", "kept (none)")
    assert lines[0].best == (False, False, True)
    assert differing_layers(Compared([Reported("a", report, layers=good), Reported("b", report)])) == ()
    assert differing_layers(Compared([Reported("a", report, layers=good)] * 2)) == ()


def test_what_a_dataset_keeps_counts_for_its_error(report: ReportFigures) -> None:
    """Two layers of one energy, 10 and 20 dB; who keeps the first has the noise of the second alone."""

    both = (layer("a", 10.0), layer("b", 20.0))
    one = (replace(NORM, layer_name="a"), both[1])
    none = (replace(NORM, layer_name="a"), replace(NORM, layer_name="b"))
    codes = (replace(both[0], method="source"), both[1])
    datasets = [Reported("x", report, layers=rows) for rows in (both, one, none, codes, both[:1], None)]
    found = shared_sqnr(datasets)
    assert found[:2] == pytest.approx([10 * math.log10(2 / 0.11), 10 * math.log10(2 / 0.01)])
    assert found[2:] == [math.inf, None, None, None]


def test_what_loses_nothing_is_the_best_and_is_said_to_be_lossless(report: ReportFigures) -> None:
    lossy = tuple(layer(name, 20.0) for name in "ab")
    kept = tuple(replace(NORM, layer_name=row.layer_name, shape=row.shape) for row in lossy)
    better = tuple(layer(name, 30.0) for name in "ab")
    datasets = [Reported(f"out/{i}", report, layers=rows) for i, rows in enumerate((lossy, kept, better))]
    line = lines_of(datasets)["SQNR overall, over the same layers"]
    assert line.cells == ("20.0 dB", "lossless", "30.0 dB")
    assert line.best == (False, True, False)
    assert "Lossless, so not drawn: B." in comparison_page(Compared(datasets))


MSE = ENERGY * 10**-0.9  # at 9 dB
SAME = "the same name and shape in both"


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ((layer("a", 9.0), layer("c", 9.0)), f"it has 2 layers, the other 2, and 1 has {SAME}"),
        (
            (layer("a", 9.0, shape=(8, 1024)), layer("b", 9.0)),
            f"it has 2 layers, the other 2, and 1 has {SAME}",
        ),
        ((layer("a", 9.0),), f"it has 1 layer, the other 2, and 1 has {SAME}"),
        ((layer("c", 9.0),), f"it has 1 layer, the other 2, and none has {SAME}"),
        ((layer("a", 9.0), layer("b", 9.0), NORM), f"it has 3 layers, the other 2, and 2 have {SAME}"),
        ((layer("a", 9.0, mse=1.02 * MSE), layer("b", 9.0)), "1 layer had other weights before quantization"),
    ],
)
def test_of_datasets_of_different_models_none_is_called_better(
    report: ReportFigures, rows: tuple[LayerRow, ...], why: str
) -> None:
    first = Reported("out/a", report, layers=(layer("a", 20.0), layer("b", 20.0)))
    small = replace(report, totals=replace(report.totals, parts_nbytes=100))
    datasets = [first, Reported("out/x", small, layers=rows)]
    assert why in unlike(datasets)[0]
    assert not any(any(line.best) for line in lines_of(datasets).values())
    assert differing_layers(Compared(datasets)) == ()
    page = unescape(comparison_page(Compared(datasets)))
    assert f"B (x) is not of the same model as A (a): {why}" in page
    assert "<figure>" not in page
    assert "★ marks" not in page


def test_datasets_of_one_model_are_compared_whatever_they_keep(report: ReportFigures) -> None:
    rounded = (layer("a", 9.0, mse=1.0005 * MSE), replace(NORM, layer_name="b", shape=layer("b").shape))
    datasets = [
        Reported("out/a", report, layers=(layer("a", 20.0), layer("b", 20.0))),
        Reported("out/x", report, layers=rounded),
        Reported("out/y", report),
    ]
    assert unlike(datasets) == ()
    larger = replace(report, totals=replace(report.totals, params=7))
    assert "and 7 values, not" in unlike([*datasets, Reported("out/z", larger)])[0]


def test_datasets_are_told_apart_by_their_layers_even_if_those_of_the_first_are_not_known(
    report: ReportFigures,
) -> None:
    moved = (layer("a", 9.0, mse=1.02 * MSE),)
    datasets = [
        Reported("out/a", report),
        Reported("out/x", report, layers=(layer("a", 20.0),)),
        Reported("out/y", report, layers=moved),
    ]
    why = "1 layer had other weights before quantization"
    assert unlike(datasets)[0] == f"C (y) is not of the same model as B (x): {why}."
    assert not any(any(line.best) for line in lines_of(datasets).values())


def test_no_layer_is_marked_as_the_best_beside_a_dataset_of_another_model(report: ReportFigures) -> None:
    known = [Reported(name, report, layers=(layer("a", sqnr),)) for name, sqnr in (("x", 8.0), ("y", 20.0))]
    assert len(differing_layers(Compared([*known, Reported("z", report)]))) == 1
    larger = replace(report, totals=replace(report.totals, params=7))
    assert differing_layers(Compared([*known, Reported("z", larger)])) == ()


def test_a_page_judges_its_datasets_once(report: ReportFigures, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[object] = []

    def counting(datasets: Sequence[Reported]) -> tuple[str, ...]:
        judged.append(datasets)
        return unlike(datasets)

    monkeypatch.setattr("arrowquant_dist.report.compared.unlike", counting)
    comparison_page(Compared([Reported(name, report, layers=(layer("a"),)) for name in "xyz"]))
    assert len(judged) == 1


def test_a_hostile_layer_is_inert_among_those_that_differ(report: ReportFigures) -> None:
    name = "</code><script>alert(1)</script>\u202e\x1b"
    page = comparison_page(
        Compared([Reported("a", report, layers=(layer(name, sqnr),)) for sqnr in (8.0, 20.0)])
    )
    assert "<script>" not in page
    assert not set("\u202e\x1b") & set(page)
    assert "&lt;script&gt;" in page


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out_type", [io.StringIO, Terminal])
def test_no_name_acts_on_the_terminal(
    report: ReportFigures, out_type: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    hostile = replace(report, source={"uri": "\x1b]0;owned\x07[bold]x[/]", "format": "torch"})
    out = out_type()
    print_report(out, hostile)
    assert "\x1b]0" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "\\x1b]0;owned\\x07[bold]x[/]" in out.getvalue()


def test_a_pipe_gets_aligned_lines_without_escape_sequences(report: ReportFigures) -> None:
    out = io.StringIO()
    print_report(out, report)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    head = next(line for line in lines if "min cosine" in line)
    assert (
        head.index("layers") + len("layers")
        == next(line for line in lines if line.startswith("  embeddings")).index(" 1 ") + 2
    )


def test_a_pipe_gets_whole_lines(report: ReportFigures) -> None:
    uri = "s3://bucket/" + "long-name/" * 30
    out = io.StringIO()
    print_report(out, replace(report, source={"uri": uri, "format": "torch"}))
    assert uri in out.getvalue()
