"""What is reported of a finished dataset."""

from __future__ import annotations

from pathlib import PurePosixPath

from arrowquant_dist.config import Storage
from arrowquant_dist.location import Location, location
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report.evaluations import dataset_identity
from arrowquant_dist.report.render import read_report
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.tracking.figures import metrics_of
from arrowquant_dist.tracking.tracked import DATASET_TAG, Ending


def ending_of_dataset(target: Location, storage: Storage, report: ReportFigures | None = None) -> Ending:
    """The dataset's figures and identity, and the files of its report. report: the figures, if they are known already.

    Raises what reading them raises.
    """
    store = open_store(location(target, "target"), storage)
    manifest = Manifest.read(store)
    files = {PurePosixPath(file.path).name: store.read(file.path) for file in manifest.report}
    tags = {"arrowquant.fingerprint": manifest.fingerprint, DATASET_TAG: dataset_identity(manifest)}
    return Ending(metrics_of(report or read_report(store, manifest)), tags, files)
