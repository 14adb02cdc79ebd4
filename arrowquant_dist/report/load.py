"""What is at a target, for pages and comparisons, by one look at its manifest. Raises what `load_report` and its like
raise."""

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
    """All that is known."""
    store = open_store(uri, storage)
    manifest = manifest_at(store)
    return replace(figures_at(uri, store, manifest), layers=layer_rows_at(store, manifest))


def load_figures(uri: str, storage: Storage = DEFAULT_STORAGE) -> Reported:
    """All but the layers."""
    store = open_store(uri, storage)
    return figures_at(uri, store, manifest_at(store))


def figures_at(uri: str, store: Store, manifest: Manifest | None) -> Reported:
    """The same of the dataset at `store`, which is called `uri`, with the manifest that `manifest_at` found there."""
    evaluations = read_evaluations(store, manifest) if manifest is not None else ()
    return Reported(redact(uri), report_at(store, manifest), evaluations)
