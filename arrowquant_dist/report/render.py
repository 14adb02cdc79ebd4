"""Writes the files of a target's `report/` and reads the report back."""

from __future__ import annotations

import json
from collections.abc import Sequence

from arrowquant_dist.config import DEFAULT_STORAGE, Storage, check_storage
from arrowquant_dist.dataset.bare_folder import is_data, refuse_export, why_no_dataset
from arrowquant_dist.errors import CorruptWeights, InvalidCheckpoint, NotFound
from arrowquant_dist.location import Location, location
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.reduce.layers import LayerMetrics
from arrowquant_dist.report.layer_rows import LAYERS_PATH, measured_rows
from arrowquant_dist.report.layers import layers_parquet
from arrowquant_dist.report.markdown import report_markdown
from arrowquant_dist.report.named_file import WRITE_AGAIN, named_file, read_named
from arrowquant_dist.report.page import report_page
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.layout import PLAN_PATH
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest, StoredFile

REPORT_PATH = "report/report.json"
REPORT_PATHS = (REPORT_PATH, "report/report.md", "report/report.html", LAYERS_PATH)


def render(report: ReportFigures, layers: Sequence[LayerMetrics], run: str = "") -> dict[str, bytes]:
    """{path under the target: content} of report.json, report.md, report.html and layers.parquet.

    run: the run's id. It is written into each file, so that a file of another run is not mistaken for this one's.
    """
    mark = f"<!-- arrowquant.run {run} -->\n"
    return {
        REPORT_PATH: report_json(report, run),
        "report/report.md": f"{report_markdown(report)}\n{mark}".encode(),
        "report/report.html": f"{report_page(report, layers=measured_rows(layers))}\n{mark}".encode(),
        LAYERS_PATH: layers_parquet(layers, run),
    }


def report_json(report: ReportFigures, run: str = "") -> bytes:
    """The report as indented UTF-8 JSON without NaN or Infinity, ending with a newline. run: the run's id, written as
    `run_id`; left out if it is empty."""
    values = report.to_dict() | ({"run_id": run} if run else {})
    return json.dumps(values, indent=2, allow_nan=False).encode() + b"\n"


def load_report(uri: Location, storage: Storage = DEFAULT_STORAGE) -> ReportFigures:
    """The report of the finished dataset at `uri`, or of a copy of some of its files.

    Raises NotFound if there is no report (nothing is there, or the run did not finish), and InvalidCheckpoint if
    report.json or the manifest is damaged or of another version, or if report.json is not the one that the manifest
    names.
    """
    check_storage(storage)
    store = open_store(location(uri, "uri"), storage)
    return report_at(store, manifest_at(store))


def manifest_at(store: Store) -> Manifest | None:
    """The manifest of the finished dataset at `store`; None if there is none, such as in a copy of some of its files.

    Raises InvalidCheckpoint if it is damaged, and IncompleteDataset if it was left by a run that another one replaces.
    """
    try:
        manifest = Manifest.read(store)
    except CorruptWeights as error:
        raise InvalidCheckpoint(error.message, uri=error.uri) from error
    except NotFound:
        return None
    manifest.refuse_cleared(store)
    return manifest


def report_at(store: Store, manifest: Manifest | None) -> ReportFigures:
    """As `load_report`, for the dataset at `store`. manifest: what `manifest_at` returned."""
    return _report_without_manifest(store) if manifest is None else read_report(store, manifest)


def _report_without_manifest(store: Store) -> ReportFigures:
    """The report in a copy of some files of a dataset. Raises NotFound, which says what is there instead."""
    # A report beside a plan may belong to another run.
    if store.has_file(MANIFEST_PATH) or store.has_file(PLAN_PATH):
        raise _no_report(store.url(REPORT_PATH))
    refuse_export(store)
    if store.exists(""):
        raise NotFound("this is a file, not a dataset; give the target of a run", uri=store.uri)
    paths = [info.path for info in store.list()]
    if not paths:
        message = (
            "no report here, and nothing else; check the spelling, or run the same `quantize` command again"
        )
        raise NotFound(message, uri=store.url(REPORT_PATH))
    if REPORT_PATH not in paths and not any(is_data(path) for path in paths):
        raise NotFound(why_no_dataset(store, paths), uri=store.uri)
    return _read(store, REPORT_PATH)


def read_report(store: Store, manifest: Manifest) -> ReportFigures:
    """As `load_report`, for the dataset at `store` that has this manifest."""
    said = named_file(manifest, REPORT_PATH)
    return _read(store, REPORT_PATH) if said is None else _read(store, said.path, said)


def _read(store: Store, path: str, said: StoredFile | None = None) -> ReportFigures:
    """Reads a report. said: the manifest's entry for the file, if there is one."""
    try:
        content = read_named(store, path, said, "report")
    except NotFound as error:
        raise _no_report(store.url(path)) from error
    try:
        return _parsed(content)
    except InvalidCheckpoint as error:
        raise InvalidCheckpoint(error.message, uri=store.url(path)) from error


def _no_report(url: str) -> NotFound:
    message = (
        "no report here: this is not a target of this program, or its run did not finish; "
        "run the same `quantize` command again"
    )
    return NotFound(message, uri=url)


def _parsed(content: bytes) -> ReportFigures:
    try:
        values = parse_json(content)
    except ValueError as error:
        raise InvalidCheckpoint(f"the report is damaged ({error}); {WRITE_AGAIN}") from error
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"JSON, but not a report; {WRITE_AGAIN}")
    return ReportFigures.from_dict(values)
