"""Phases, memory, throughput and work, by run and by machine."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.reduce import ReportFigures
from tests.reduce.made import RUN, plan_of, receipts_of, reduce_receipts


def test_phases_add_up_over_workers_and_memory_is_the_largest(report: ReportFigures) -> None:
    assert report.timing.phases == {"read": 1.5, "quantize": 6.0, "write": 0.75}
    assert report.timing.peak_memory_nbytes == 102 << 20
    assert report.timing.params_per_second == report.totals.params / 2.0
    assert report.timing.source_nbytes_per_second == report.totals.source_nbytes / 2.0


def test_throughput_leaves_out_what_an_earlier_run_had_finished() -> None:
    resumed = reduce_receipts(receipts_of(), plan_of(), replace(RUN, resumed_shards=(0, 1)))
    assert resumed.timing.params_per_second == 128 / 2.0
    everything = reduce_receipts(receipts_of(), plan_of(), replace(RUN, resumed_shards=(0, 1, 2)))
    assert everything.timing.params_per_second is None


def test_work_is_told_apart_by_run_and_by_machine() -> None:
    receipts = receipts_of()  # shard i: worker w{i}, 1.5 + i seconds, i requests repeated
    receipts[2] = replace(receipts[2], node="m", worker="w0")
    facts = replace(RUN, resumed_shards=(0,), worker_seconds=12.0, wasted_seconds=3.0)
    work = reduce_receipts(receipts, plan_of(), facts).work
    assert work is not None
    source = [sum(row.source_nbytes for row in receipt.rows) for receipt in receipts]
    assert (work.earlier_runs.shards, work.earlier_runs.busy_seconds) == (1, 1.5)
    assert (work.this_run.shards, work.this_run.busy_seconds) == (2, 2.5 + 3.5)
    assert (work.this_run.request_retries, work.this_run.read_nbytes) == (3, 10_000)
    assert work.this_run.source_nbytes == source[1] + source[2]
    assert work.efficiency == 6.0 / 12.0
    assert work.wasted_share == 3.0 / 12.0
    assert work.read_per_source == 10_000 / (source[1] + source[2])
    nodes = {share.name: share for share in work.nodes}
    assert (nodes["n"].shards, nodes["n"].workers, nodes["n"].source_nbytes) == (2, 2, source[0] + source[1])
    assert nodes["m"].source_nbytes_per_second == source[2] / 3.5
    assert {share.name: share.shards for share in work.workers} == {"w0": 2, "w1": 1}
    rates = [share.source_nbytes_per_second or 0.0 for share in work.workers]
    assert rates == sorted(rates, reverse=True)


def test_a_run_that_found_all_finished_has_no_efficiency() -> None:
    work = reduce_receipts(receipts_of(), plan_of(), replace(RUN, resumed_shards=(0, 1, 2))).work
    assert work is not None
    assert work.this_run.shards == 0
    assert (work.efficiency, work.wasted_share, work.read_per_source) == (None, None, None)
