"""Writes an evaluation to the report of the dataset that it is of.

The manifest does not name the two files: a dataset is complete without them, and `verify` does not ask for them. Each
is written as a whole, so readers see the old or the new content. An evaluation says of which run it is, and readers
ignore evaluations of a dataset that was there before (report/evaluations.py); `--overwrite` and `quantize` remove them
with the rest of the report. If two evaluations of one dataset end at the same moment, one of them may be lost; it can
be run again.
"""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import NotFound, StorageError, TargetConflict
from arrowquant_dist.location import Location, location
from arrowquant_dist.report.evaluated import figure_lines
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.evaluations import (
    EVALUATION_PATH,
    dataset_identity,
    evaluation_files,
    merged,
    read_evaluations,
)
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.manifest import Manifest


@dataclass(frozen=True, slots=True)
class EvaluatedDataset:
    """A finished dataset, as it was when the evaluation began."""

    store: Store
    manifest: Manifest

    @classmethod
    def of(cls, target: Location, storage: Storage) -> EvaluatedDataset:
        """Opens a dataset. Raises NotFound where there is no finished one, and InvalidCheckpoint where its evaluations
        cannot be added to."""
        store = open_store(location(target, "target"), storage)
        manifest = Manifest.of_finished(store, "of which an evaluation could be kept")
        place = cls(store, manifest)
        read_evaluations(store, manifest)
        return place

    @property
    def identity(self) -> str:
        return dataset_identity(self.manifest)

    def publish(self, found: Evaluation) -> None:
        """Adds an evaluation to those of the dataset. Raises TargetConflict where another dataset is there by then, and
        StorageError or NotFound, with the figures in the message, where it cannot be written."""
        try:
            is_there = dataset_identity(Manifest.read(self.store)) == self.identity
        except NotFound:
            is_there = False
        if not is_there:
            message = (
                "the dataset was replaced while it was evaluated, so nothing was written; evaluate it again"
            )
            raise TargetConflict(message, uri=self.store.uri)
        files = evaluation_files(merged(read_evaluations(self.store, self.manifest), found))
        try:
            for path in sorted(files, key=EVALUATION_PATH.__eq__):  # the JSON last, since it decides
                self.store.write(path, files[path])
        except (StorageError, NotFound) as error:
            figures = "; ".join(f"{label} {figure}" for label, figure in figure_lines(found))
            message = f"{error.message}; it was measured all the same: {figures}"
            raise type(error)(message, uri=error.uri) from error
