"""The HTML report of a great many layers: its size, the time to write it, and how long a keystroke and a sort take in
Debian's chromium, including the layout of the new rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arrowquant_dist.report.page import report_page
from tests.benchmarks.table import Row, Table, at_most
from tests.report.chromium import PROGRAM, Tab, chromium
from tests.report.layer_samples import layer
from tests.report.report_samples import golden_report

LAYERS = 10_000
_EXPERTS = 160  # per block
# The slowest keystroke, and the slowest column to sort by, in milliseconds.
_TIMED = """(() => {
  const timed = (act) => {
    const from = performance.now();
    act();
    document.body.offsetHeight;
    return performance.now() - from;
  };
  const box = document.querySelector("#layers input");
  const typed = (words) => { box.value = words; box.dispatchEvent(new Event("input")); };
  const words = ["g", "ga", "experts.1", "experts.1 layers.3", "zzz", ""];
  const heads = [...document.querySelectorAll("#layers th button")];
  return {
    filter: Math.max(...words.map((each) => timed(() => typed(each)))),
    sort: Math.max(...heads.map((head) => timed(() => head.click()))),
  };
})()"""


def tables(layers: int, runs: int) -> Iterator[Table]:
    rows = [
        layer(
            f"model.layers.{i // _EXPERTS}.mlp.experts.{i % _EXPERTS}.gate_up_proj.weight",
            8 + i % 977 / 100,
            params=7_340_032 + i,
            stored_nbytes=3_700_000 + 7 * i,
            mse=1.23456e-5 + i * 1e-9,
            cosine=0.9 + i * 1e-6,
            max_error=0.01 + i * 1e-6,
        )
        for i in range(layers)
    ]
    report = golden_report()
    report_page(report)  # templates are compiled once per process
    started = time.process_time()
    page = report_page(report, layers=rows)
    written = time.process_time() - started
    found = [
        Row("size", len(page.encode()) / 1e6, "MB", target=at_most(2)),
        Row("to write it, CPU", written, "s"),
    ]
    if PROGRAM is not None:
        seen = _seen(page, runs)
        found += [
            Row(what, min(each[what] for each in seen), "ms", target=at_most(200))
            for what in ("filter", "sort")
        ]
    yield Table(f"HTML report of {layers:,} layers", tuple(found))


def _seen(page: str, runs: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        file = Path(name) / "page.html"
        file.write_text(page, encoding="utf-8")
        with chromium(Path(name) / "profile") as tab:
            return [_timed(tab, file) for _ in range(runs)]


def _timed(tab: Tab, file: Path) -> dict[str, Any]:
    tab.width(1280)
    tab.open(file)
    found: dict[str, Any] = tab.value(_TIMED)
    return found
