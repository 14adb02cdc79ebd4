"""The files of report/ are complete, stable, and inert whatever a layer is called."""

from __future__ import annotations

import io
import json
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.reduce import LayerMetrics, ReportFigures
from arrowquant_dist.reduce.figures import KeptLayer
from arrowquant_dist.report.markdown import name as markdown_name
from arrowquant_dist.report.markdown import report_markdown
from arrowquant_dist.report.page import report_page
from arrowquant_dist.report.render import load_report, render, report_json
from arrowquant_dist.report.text import printable
from arrowquant_dist.report.view import WEIGHT_COSINE_NOTE
from arrowquant_dist.storage.open import open_store
from tests.reduce.attempts import cluster
from tests.report.layer_samples import layer
from tests.report.report_samples import golden_report, golden_values, layer_metrics, timed_report
from tests.report.test_evaluations import of_embeddings

VOID = {"meta", "input", "wbr"}
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            self.attributes.setdefault(key, set()).add(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report() -> ReportFigures:
    return golden_report()


@pytest.fixture(scope="module")
def layers(report: ReportFigures) -> tuple[LayerMetrics, ...]:
    """One lossy layer with the worst layer's name, one lossless, one without errors."""
    return (
        layer_metrics(report.worst_layers[0].layer_name, ErrorSums(64, 4.0, 3.0, 1.0, 0.5)),
        layer_metrics("lossless.weight", ErrorSums(64, 4.0, 4.0, 0.0, 0.0)),
        layer_metrics("position_ids", None),
    )


@pytest.fixture(scope="module")
def page(report: ReportFigures) -> Page:
    return Page(report_page(report))


def test_a_target_gets_four_files(report: ReportFigures, layers: tuple[LayerMetrics, ...]) -> None:
    assert set(render(report, layers)) == {
        "report/report.json",
        "report/report.md",
        "report/report.html",
        "report/layers.parquet",
    }


def test_version_2_reads_and_writes_what_it_always_did(report: ReportFigures) -> None:
    assert json.loads(report_json(report)) == {**golden_values(), "timeline": None}  # which it may lack


def test_the_schema_of_report_json_is_pinned(report: ReportFigures) -> None:
    values = json.loads(report_json(report))
    assert list(values) == [
        "report_version",
        "source",
        "config",
        "fingerprint",
        "part_compression",
        "run",
        "work",
        "totals",
        "layer_types",
        "quant_types",
        "accuracy",
        "distribution",
        "worst_layers",
        "kept_layers",
        "timing",
        "timeline",
        "notes",
    ]
    assert values["report_version"] == 2
    sizes = [
        "layers",
        "params",
        "source_nbytes",
        "fp16_nbytes",
        "data_nbytes",
        "scales_nbytes",
        "zero_points_nbytes",
        "stored_nbytes",
        "compression_vs_source",
        "compression_vs_fp16",
    ]
    assert sorted(values["totals"]) == sorted([*sizes, "parts_nbytes", "shards", "aliases"])
    assert list(values["layer_types"][0]) == ["layer_type", "sizes", "accuracy"]
    assert list(values["layer_types"][0]["sizes"]) == sizes
    assert list(values["accuracy"]) == [
        "layers",
        "unmeasured_layers",
        "cosine",
        "precision_loss",
        "mse",
        "sqnr_db",
        "max_error",
        "lossless_layers",
        "overall_cosine",
        "overall_mse",
        "overall_sqnr_db",
    ]
    assert list(values["accuracy"]["cosine"]) == ["mean", "min", "max", "std"]
    assert list(values["run"]) == [
        "engine",
        "workers",
        "started_at",
        "wall_seconds",
        "resumed_shards",
        "host",
        "phases",
        "shard_retries",
        "stolen",
        "wasted_seconds",
        "worker_seconds",
    ]
    work = values["work"]
    assert list(work) == [
        "this_run",
        "earlier_runs",
        "nodes",
        "workers",
        "efficiency",
        "wasted_share",
        "read_per_source",
    ]
    assert list(work["nodes"][0]) == list(work["workers"][0])


def test_the_page_shows_a_hostile_name_and_does_not_run_it(report: ReportFigures, page: Page) -> None:
    hostile = report.worst_layers[0].layer_name
    assert hostile.startswith("<script>")
    assert printable(hostile) in page.text
    assert hostile not in report_page(report)
    assert "script" not in page.tags  # there are no layers for the table's own


def test_the_page_of_a_run_has_its_own_script_and_data_and_nothing_else(
    report: ReportFigures, layers: tuple[LayerMetrics, ...]
) -> None:
    hostile = layer_metrics("</script><script>alert(1)</script>\u202e", ErrorSums(64, 4.0, 3.0, 1.0, 0.5))
    page = render(report, (*layers, hostile))["report/report.html"].decode()
    assert re.findall("<script.*?>", page) == [
        '<script type="application/json" id="layer-data">',
        "<script>",
    ]
    assert page.count("</script") == 2
    script = page.split("<script>")[1].split("</script>")[0]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page
    Page(page)


def test_the_page_loads_nothing(page: Page) -> None:
    assert not {"src", "href", "srcset", "action", "onload", "onclick"} & set(page.attributes)
    assert "url(" not in page.text
    assert {"svg", "table"} <= page.tags
    assert any("default-src 'none'" in content for content in page.attributes["content"])


def test_the_page_suits_light_and_dark(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.text


@pytest.mark.parametrize("form", [report_page, report_markdown])
def test_every_report_says_that_cosine_is_not_accuracy(report: ReportFigures, form: Any) -> None:
    content = form(report)
    assert "Weight cosine is not accuracy" in content
    assert "0.72" in content
    assert "0.03" in WEIGHT_COSINE_NOTE


def test_commands_in_sentences_are_code_and_numbers_stay_with_their_units(report: ReportFigures) -> None:
    page = report_page(replace(report, notes=("by `a <b>` 6 dB less", "a lone ` of 3 MB")))
    assert "by <code>a &lt;b&gt;</code> 6\xa0dB less" in page
    assert "a lone ` of 3\xa0MB" in page


@pytest.mark.parametrize("form", [report_page, report_markdown])
def test_no_control_character_gets_into_a_report(report: ReportFigures, form: Any) -> None:
    assert "\x1b" in report.worst_layers[0].layer_name
    hostile = replace(report, source={"uri": "a\x1b[2J\x9b"}, notes=("b\x07",), config={"c\x08": ["\x1b"]})
    assert not CONTROLS.search(form(hostile))


def test_a_page_of_ten_thousand_layers_and_as_many_shards_is_at_most_two_megabytes() -> None:
    names = (f"model.layers.{i // 160}.mlp.experts.{i % 160}.gate_up_proj.weight" for i in range(10_000))
    rows = [layer(name, 8 + i % 977 / 100, mse=1.23456e-5 + i * 1e-9) for i, name in enumerate(names)]
    report = timed_report(cluster(workers=256, shards=10_000))
    assert len(report_page(report, layers=rows).encode()) <= 2_000_000
    assert len(report_json(report)) - len(report_json(golden_report())) < 200_000


def test_each_picture_tells_its_figures_to_those_who_do_not_see_it() -> None:
    rows = [layer(f"layers.{i}.up.weight", 12.5 + i) for i in range(9)]
    page = report_page(timed_report(cluster(2, 4)), [of_embeddings()], rows)
    labels = dict(re.findall(r'role="img" aria-label="(.*?): (.*?)"', page))
    assert len(labels) == 8
    assert labels["Layers by their error"] == "9 layers, SQNR from 12.5 dB to 20.5 dB"
    assert labels["Error by role and block"].endswith("most noise in layers.0.up.weight, 12.5 dB")
    assert labels["Workers and shards over time"] == "4 shards by 2 workers in 10.00 s"
    assert all(re.search(r"\d", figures) for figures in labels.values())


@pytest.mark.parametrize(
    ("untimed", "why"),
    [(golden_report(), "did not record it"), (timed_report([]), "finished before this run")],
)
def test_a_page_without_pictures_over_time_says_why(untimed: ReportFigures, why: str) -> None:
    assert why in report_page(untimed)
    assert "Memory over time" not in report_page(untimed)
    assert why not in report_page(timed_report(cluster(2, 4)))
    assert "Memory over time" in report_page(timed_report(cluster(2, 4)))


def test_markdown_tables_keep_their_columns(report: ReportFigures) -> None:
    tables = re.findall(r"(?:^\|.*\|\n?)+", report_markdown(report), re.MULTILINE)
    assert len(tables) >= 7
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(columns) == 1, table


@pytest.mark.parametrize("name", ["a|b", "a`b", "<b>", "a\\|b", "a\nb", "[x](y)", "*a*", "![i](u)", "&lt;"])
def test_odd_names_are_inert_in_markdown(name: str) -> None:
    shown = markdown_name(name)
    inside = shown.removeprefix("<code>").removesuffix("</code>")
    assert inside != shown
    assert not set(re.sub(r"&#\d+;", "", inside)) & set("|`<>[]()*!\\&\n")


def test_ordinary_names_stay_readable_in_markdown() -> None:
    assert (
        markdown_name("model.layers.0.self_attn.q_proj.weight") == "`model.layers.0.self_attn.q_proj.weight`"
    )


def test_notes_and_reasons_are_escaped_too(report: ReportFigures, page: Page) -> None:
    assert "<i>matched</i>" in page.text
    assert "<kept>" in page.text
    markdown = report_markdown(report)
    assert "<i>" not in markdown
    assert "<kept>" not in markdown


@pytest.mark.parametrize("form", [report_page, report_markdown])
def test_who_did_the_work_and_what_was_lost_is_in_every_report(report: ReportFigures, form: Any) -> None:
    content = re.sub(r"\\|&lt;|&gt;", "", form(report))
    for said in (
        "2 (inline) on 2 nodes, 75.0 % of their time useful, 5.0 % wasted (0.50 s)",
        "2 shards, 1 more near the end; 3 requests",
        "planning 0.25 s, running 1.50 s, reducing 0.12 s, publishing 0.12 s",
        "1.10 kB read (1.10 per byte of weights), 2.00 kB written by this run's workers",
        "mean 179 B/s, min 114 B/s, max 272 B/s, of 3 processes",
    ):
        assert said in content.replace("&#39;", "'"), said
    assert "rate while busy" in content


def test_of_many_nodes_the_fastest_and_the_slowest_are_named(report: ReportFigures) -> None:
    assert report.work is not None
    nodes = tuple(replace(report.work.nodes[0], name=f"node-{i}") for i in range(300))
    markdown = report_markdown(replace(report, work=replace(report.work, nodes=nodes)))
    assert "Nodes, 20 of 300" in markdown
    assert "`node-9`" in markdown
    assert "`node-290`" in markdown
    assert "`node-150`" not in markdown


def test_a_thousand_kept_layers_are_counted_not_listed(report: ReportFigures) -> None:
    kept = tuple(KeptLayer(f"norm{i}", (8,), "float32", "fp16", 8 + i, "1-D") for i in range(1000))
    markdown = report_markdown(replace(report, kept_layers=kept))
    assert "`norm999`, `norm998`" in markdown
    assert "and 980 more" in markdown
    assert "`norm5`" not in markdown


def test_a_run_that_quantized_nothing_renders(report: ReportFigures) -> None:
    empty = replace(report, accuracy=None, worst_layers=(), distribution=())
    assert "nothing is quantized" in report_markdown(empty)
    Page(report_page(empty))


def test_layers_parquet_has_a_row_a_layer(report: ReportFigures, layers: tuple[LayerMetrics, ...]) -> None:
    table = pq.read_table(io.BytesIO(render(report, layers)["report/layers.parquet"]))
    rows = table.to_pylist()
    assert [row["layer_name"] for row in rows] == [layer.layer_name for layer in layers]
    lossy, lossless, integers = rows
    errors = layers[0].errors
    assert errors is not None
    assert (lossy["cosine"], lossy["mse"], lossy["sqnr_db"]) == (errors.cosine, errors.mse, errors.sqnr_db)
    assert (lossless["cosine"], lossless["sqnr_db"]) == (1.0, None)
    assert integers["cosine"] is None


def test_a_report_is_loaded_from_its_target(report: ReportFigures, layers: tuple[LayerMetrics, ...]) -> None:
    store = open_store("memory://report/target")
    for path, content in render(report, layers).items():
        store.write(path, content)
    assert load_report("memory://report/target") == report


def test_a_target_without_a_report_says_how_to_get_one() -> None:
    with pytest.raises(NotFound, match=r"report/report.json: no report here.*run the same"):
        load_report("memory://report/nothing")


def test_a_place_that_holds_nothing_or_an_export_is_told_from_a_run_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no report here, and nothing else; check the spelling"):
        load_report(tmp_path)
    with pytest.raises(NotFound, match=r"no report here, and nothing else; check the spelling"):
        load_report(tmp_path / "typo")
    record = {"format": "gguf", "origin": {"dataset": "s3://bucket/model"}}
    (tmp_path / "export.json").write_text(json.dumps(record))
    with pytest.raises(NotFound, match=r"this is an export as gguf, not a dataset.*s3://bucket/model"):
        load_report(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe{", b'{"report_version": 99}', b'{"report_version": 2}']
)
def test_a_damaged_report_names_its_file(content: bytes) -> None:
    open_store("memory://report/damaged").write("report/report.json", content)
    with pytest.raises(InvalidCheckpoint, match=r"damaged/report/report.json: "):
        load_report("memory://report/damaged")
