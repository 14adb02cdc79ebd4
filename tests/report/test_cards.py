"""Cards: a verdict for each figure, with the threshold that it follows from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arrowquant_dist.reduce import ReportFigures
from arrowquant_dist.report.cards import BAD, FACT, GOOD, LOOK, OPEN, Card, cards, output_card
from arrowquant_dist.report.layer_rows import LayerRow
from tests.reduce.attempts import BOUND, attempt
from tests.report.layer_samples import NORM, layer
from tests.report.report_samples import golden_report, timed_report
from tests.report.test_evaluations import of_next_tokens


def card(title: str, report: ReportFigures, rows: tuple[LayerRow, ...] | None = ()) -> Card:
    return next(one for one in cards(report, (), rows) if one.title == title)


def with_sqnr(overall: float) -> ReportFigures:
    report = golden_report()
    assert report.accuracy is not None
    return replace(report, accuracy=replace(report.accuracy, overall_sqnr_db=overall))


@pytest.mark.parametrize(("overall", "verdict"), [(20.0, GOOD), (19.9, LOOK), (10.0, LOOK), (9.9, BAD)])
def test_weights_are_judged_by_their_noise(overall: float, verdict: str) -> None:
    found = card("Weights", with_sqnr(overall))
    assert found.verdict == verdict
    assert "20 dB" in found.why
    assert "10 dB" in found.why


@pytest.mark.parametrize(("nbytes", "verdict"), [(100, GOOD), (3000, LOOK)])
def test_a_dataset_that_is_larger_than_the_source_at_fp16_is_pointed_at(nbytes: int, verdict: str) -> None:
    report = golden_report()
    assert (
        card("Size", replace(report, totals=replace(report.totals, parts_nbytes=nbytes))).verdict == verdict
    )


def test_what_became_larger_is_not_called_smaller() -> None:
    report = golden_report()
    why = card("Size", report).why
    assert "3.26× larger than fp16" in why
    assert "1.94× larger than the source" in why


def test_what_part_files_take_beside_values_is_said_where_it_is_much() -> None:
    report = golden_report()
    totals = replace(report.totals, stored_nbytes=650, parts_nbytes=1000)
    assert "35 % of it is overhead of Parquet" in card("Size", replace(report, totals=totals)).why
    close = replace(totals, stored_nbytes=950)
    assert "overhead" not in card("Size", replace(report, totals=close)).why


def test_outputs_that_nobody_measured_are_not_called_good() -> None:
    found = card("Outputs", golden_report())
    assert (found.figure, found.verdict) == ("not measured", OPEN)
    assert "`arrowquant evaluate`" in found.why
    assert "It does not change this page: `arrowquant report TARGET --html FILE` makes a new one" in found.why


@pytest.mark.parametrize(
    ("excess", "kl", "verdict"),
    [
        (0.01, 0.02, GOOD),
        (0.011, 0.02, LOOK),
        (0.01, 0.021, LOOK),
        (0.051, 0.0, BAD),
        (0.0, 0.11, BAD),
        (-0.14, 1.91, BAD),  # an untrained model at 2 bits: other tokens, by chance likelier ones
    ],
)
def test_a_perplexity_below_the_original_s_is_not_good_by_itself(
    excess: float, kl: float, verdict: str
) -> None:
    found = of_next_tokens()
    assert found.next_tokens is not None
    one = output_card(replace(found, next_tokens=replace(found.next_tokens, excess=excess, kl_mean=kl)))
    assert one.verdict == verdict
    assert f"KL {kl:.3g} nats" in one.figure
    assert "0.1 nats" in one.why


def test_a_layer_far_below_the_others_is_pointed_at() -> None:
    rows = (layer("a", 20.0), layer("b", 21.0), layer("c", 22.0))
    assert card("Outliers", golden_report(), rows).verdict == GOOD
    found = card("Outliers", golden_report(), (*rows, layer("odd", 13.0)))
    assert (found.figure, found.verdict) == ("1 layer", LOOK)
    assert "Worst: odd, 13.0 dB." in found.why
    many = (*rows, layer("a." * 300 + "\u202e", 3.0))
    assert len(card("Outliers", golden_report(), many).why) < 200
    assert "\u202e" not in card("Outliers", golden_report(), many).why


def test_kept_layers_that_take_much_of_the_size_are_pointed_at() -> None:
    report = golden_report()
    stored = report.totals.stored_nbytes
    found = card("Not quantized", report, (replace(NORM, stored_nbytes=stored // 2),))
    assert found.verdict == LOOK
    assert card("Not quantized", report, (replace(NORM, stored_nbytes=0),)).verdict == GOOD


@pytest.mark.parametrize(("peak", "verdict"), [(BOUND, GOOD), (BOUND + 1, LOOK)])
def test_a_process_above_the_plans_bound_is_pointed_at(peak: int, verdict: str) -> None:
    report = timed_report([attempt(0, 1.0, 1.0)])
    found = card("Run", replace(report, timing=replace(report.timing, peak_memory_nbytes=peak)))
    assert found.verdict == verdict
    assert ("above the plan's bound of 419.4 MB" in found.why) == (verdict == LOOK)


def test_workers_of_one_process_have_the_bounds_of_all_of_them() -> None:
    report = timed_report([attempt(i, 1.0, 1.0, thread=i) for i in range(2)])
    two = replace(report, timing=replace(report.timing, peak_memory_nbytes=2 * BOUND))
    assert card("Run", two).verdict == GOOD


def test_a_first_run_says_how_much_of_its_time_compiled_kernels() -> None:
    golden = golden_report()
    first = replace(golden, run=replace(golden.run, resumed_shards=()))
    phases = {"compile": 3.0, "read": 0.5, "quantize": 0.5}
    compiling = replace(first, timing=replace(first.timing, phases=phases))
    assert "75 % of it went into making kernels ready" in card("Run", compiling).why
    assert "kernels" not in card("Run", first).why
    resumed = replace(compiling, run=replace(first.run, resumed_shards=(0,)))  # with phases of other runs too
    assert "kernels" not in card("Run", resumed).why
    assert f"Earlier runs finished 1 of {golden.totals.shards} shards." in card("Run", resumed).why
    assert "Earlier runs" not in card("Run", first).why


def test_what_is_not_known_has_no_card_and_no_verdict() -> None:
    report = replace(golden_report(), work=None, accuracy=None)
    found = cards(report, (), None)
    assert [one.title for one in found] == ["Size", "Outputs", "Run"]
    assert found[-1].verdict == FACT
