"""The source of a validation: figures from the checkpoint's headers, and its values, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import Storage
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import SourceChanged, listed
from arrowquant_dist.location import Location
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.validation.figures import SourceFigures

PIECE_NBYTES = 64 << 20  # bytes of a layer that are read at a time


def refuse_changed(before: Checkpoint, source: Location, storage: Storage) -> None:
    """Raises SourceChanged, which names the files, if the checkpoint at `source` is no longer what it was: the figures
    would be from more than one checkpoint."""
    now = open_checkpoint(source, storage)
    known = {*before.files, *before.sidecar_files}
    changed = sorted({file.uri for file in known ^ {*now.files, *now.sidecar_files}})
    if changed:
        message = "changed during the validation; restore it, or validate again with --overwrite"
        raise SourceChanged(f"{listed([redact(uri) for uri in changed])}: {message}", uri=redact(before.uri))


def source_figures(checkpoint: Checkpoint, name: str) -> SourceFigures:
    """Figures of an opened checkpoint. name: how to call it in the report."""
    dtypes: Counter[str] = Counter()
    for layer in checkpoint.layers:
        dtypes[layer.dtype] += layer.num_params
    return SourceFigures(
        name=name,
        uri=redact(checkpoint.uri),
        format=checkpoint.format,
        layers=len(checkpoint.layers),
        params=sum(dtypes.values()),
        nbytes=sum(layer.source_nbytes for layer in checkpoint.layers),
        fp16_nbytes=sum(map(_fp16_nbytes, checkpoint.layers)),
        dtypes=dict(dtypes.most_common()),
        file_nbytes=sum(file.nbytes for file in checkpoint.files),
    )


def _fp16_nbytes(layer: Layer) -> int:
    return 2 * layer.num_params if DTYPES[layer.dtype].is_float else layer.source_nbytes


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A checkpoint whose values can be read."""

    checkpoint: Checkpoint
    reader: SourceReader

    def pieces(self, layer: Layer) -> Iterator[np.ndarray]:
        """The values of a layer in C order, as uint8 arrays."""
        step = max(1, PIECE_NBYTES // DTYPES[layer.dtype].itemsize)
        for start in range(0, layer.num_params, step):
            yield self.reader.read([(layer, start, min(start + step, layer.num_params))])[0]


@contextmanager
def opened_source(source: Location, storage: Storage) -> Iterator[OpenSource]:
    """Opens a checkpoint to read its values. Raises what `open_checkpoint` raises, and SourceChanged at the end if a
    file has changed."""
    checkpoint = open_checkpoint(source, storage)
    with SourceReader(storage, checkpoint.files) as reader:
        yield OpenSource(checkpoint, reader)
        reader.confirm()
