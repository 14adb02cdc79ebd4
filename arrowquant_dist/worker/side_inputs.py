"""What a layer's method is given beside the values, prepared when the layer's first row block arrives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from arrowquant_dist.checkpoint.digests import digests_name
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.format.digests import CHUNK_NBYTES, DIGEST_NBYTES, first_wrong_chunk
from arrowquant_dist.methods import method_of
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.storage.uris import redact

_RUN = CHUNK_NBYTES // 4  # values per digest


class SidePreparer:
    """Keeps what was prepared for one layer, so that its consecutive row blocks share it.

    Side tensors are read while nothing else happens: a method that needs them computes far longer than it takes to
    read them. reader: for the side inputs' files.
    """

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._layer: str | None = None
        self._prepared: Any = None

    def side_of(self, block: RowBlock) -> Any:
        """The prepared side input for the block's method; None if the method needs none."""
        if block.layer.name != self._layer:
            self.release()  # before preparing: the bound of a worker's memory counts one layer at a time
            if block.side_tensors and block.spec.chooses_codes:
                self._prepared = self._prepare(block)
            self._layer = block.layer.name
        return self._prepared

    def release(self) -> None:
        """Releases what is kept."""
        self._layer = self._prepared = None

    def _prepare(self, block: RowBlock) -> Any:
        side_input = method_of(block.spec).side_input
        if side_input is None:
            raise TypeError(f"{block.spec.method} takes no side input")
        layer, read = block.layer, StoredParts(self._reader, block.side_parts)
        return side_input.prepare(layer.name, layer.shape, block.spec.row_dims, read)


class StoredParts:
    """A methods.PartReader for stored tensors."""

    def __init__(self, reader: SourceReader, parts: Mapping[str, Layer]) -> None:
        self._reader, self.parts = reader, parts

    def __call__(self, part: str, start: int, stop: int) -> np.ndarray:
        """See methods.PartReader. Verifies parts that have digests; raises CorruptWeights, naming the range of bytes
        in the file."""
        stored, digests = self.parts[part], self.parts.get(digests_name(part))
        if digests is None or start == stop:
            (values,) = self._reader.read([(stored, start, stop)])
            return values.view("<f4")
        first, last = start // _RUN, -(-stop // _RUN)
        low, high = first * _RUN, min(last * _RUN, stored.num_params)
        own = digests, first * DIGEST_NBYTES, last * DIGEST_NBYTES
        values, expected = self._reader.read([(stored, low, high), own])
        wrong = first_wrong_chunk(values.view(np.uint8), 0, expected.view(np.uint8))
        if wrong is not None:
            begin = stored.offset + (first + wrong) * CHUNK_NBYTES
            end = min(begin + CHUNK_NBYTES, stored.offset + stored.nbytes)
            message = "the calibrated values are damaged; calibrate again with --overwrite"
            raise CorruptWeights(message, layer=stored.name, uri=redact(stored.uri), byte_range=(begin, end))
        return values.view("<f4")[start - low : stop - low]
