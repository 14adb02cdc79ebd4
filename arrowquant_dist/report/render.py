"""The files of a target's `report/`, and the way back from them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from arrowquant_dist.reduce.figures import Report
from arrowquant_dist.reduce.layers import LayerMetrics
from arrowquant_dist.report.layers import layers_parquet
from arrowquant_dist.report.markdown import report_markdown
from arrowquant_dist.report.page import report_page
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.strict_json import parse_json

REPORT_PATH = "report/report.json"
_REWRITE = "write it again with `quantize --overwrite`"


def render(report: Report, layers: Sequence[LayerMetrics]) -> dict[str, bytes]:
    """{path under the target: content} of report.json, report.md, report.html and layers.parquet."""
    return {
        REPORT_PATH: report_json(report),
        "report/report.md": report_markdown(report).encode(),
        "report/report.html": report_page(report).encode(),
        "report/layers.parquet": layers_parquet(layers),
    }


def report_json(report: Report) -> bytes:
    """UTF-8 JSON, indented, never NaN or Infinity, ending with a newline."""
    return json.dumps(report.to_dict(), indent=2, allow_nan=False).encode() + b"\n"


def load_report(uri: str, storage: Storage = DEFAULT_STORAGE) -> Report:
    """The report of the finished dataset at `uri`.

    Raises NotFound where there is none (nothing there, or the run did not finish), InvalidCheckpoint where
    report.json is damaged or of another version.
    """
    return read_report(open_store(uri, storage))


def read_report(store: Store) -> Report:
    """As `load_report`, of the dataset at `store`."""
    try:
        content = store.read(REPORT_PATH)
    except NotFound as error:
        raise NotFound(
            "no report here: the target is not one of this program's, or its run did not finish; "
            "run the same `quantize` command again",
            uri=store.url(REPORT_PATH),
        ) from error
    try:
        return _parsed(content)
    except InvalidCheckpoint as error:
        raise InvalidCheckpoint(error.message, uri=store.url(REPORT_PATH)) from error


def _parsed(content: bytes) -> Report:
    try:
        values = parse_json(content)
    except ValueError as error:
        raise InvalidCheckpoint(f"the report is damaged ({error}); {_REWRITE}") from error
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"JSON, but not a report; {_REWRITE}")
    return Report.from_dict(values)
