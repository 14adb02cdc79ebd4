"""Loads what pages and comparisons need from a target, and reads its manifest only once.

The functions raise what `load_report`, `load_evaluations` and `load_layer_rows` raise.
"""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.report.evaluations import read_evaluations
from arrowquant_dist.report.layer_rows import layer_rows_at
from arrowquant_dist.report.render import manifest_at, report_at
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.target.manifest import Manifest


def load_reported(uri: str, storage: Storage = DEFAULT_STORAGE) -> Reported:
    """Loads the report, the evaluations and the layers of the dataset at `uri`."""
    store = open_store(uri, storage)
    manifest = manifest_at(store)
    return replace(figures_at(uri, store, manifest), layers=layer_rows_at(store, manifest))


def load_figures(uri: str, storage: Storage = DEFAULT_STORAGE) -> Reported:
    """Loads the report and the evaluations of the dataset at `uri`, without the layers."""
    store = open_store(uri, storage)
    return figures_at(uri, store, manifest_at(store))


def figures_at(uri: str, store: Store, manifest: Manifest | None) -> Reported:
    """As `load_figures`, for the dataset at `store`. uri: what to call it. manifest: what `manifest_at` returned."""
    evaluations = read_evaluations(store, manifest) if manifest is not None else ()
    return Reported(redact(uri), report_at(store, manifest), evaluations)
