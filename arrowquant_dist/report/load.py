"""What is at a target, for pages and comparisons. Raises what `load_report` and its like raise."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.report.evaluations import load_evaluations
from arrowquant_dist.report.layer_rows import load_layer_rows
from arrowquant_dist.report.render import load_report
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.storage.uris import redact


def load_reported(uri: str, storage: Storage = DEFAULT_STORAGE) -> Reported:
    """All that is known."""
    return replace(load_figures(uri, storage), layers=load_layer_rows(uri, storage))


def load_figures(uri: str, storage: Storage = DEFAULT_STORAGE) -> Reported:
    """All but the layers."""
    return Reported(redact(uri), load_report(uri, storage), load_evaluations(uri, storage))
