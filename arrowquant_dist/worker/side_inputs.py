"""What a layer's method is given beside the values: read and prepared when the layer's first row block comes."""

from __future__ import annotations

from typing import Any

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.methods import method_of
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.tensor.source import read_only
from arrowquant_dist.worker.clock import Clock


class SidePreparer:
    """Keeps what was prepared for one layer, so that its row blocks, which come one after the other, share it.

    It is read while nothing else is done: a method that needs such tensors computes far longer than they take to come.
    reader: of the side inputs' files.
    """

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._layer: str | None = None
        self._prepared: Any = None

    def side_of(self, block: RowBlock, clock: Clock) -> Any:
        """What the block's method is given; None where it needs nothing."""
        if block.layer.name != self._layer:
            self.release()  # first: what a worker may take is counted for one layer at a time
            if block.side_tensors:
                self._prepared = self._prepare(block, clock)
            self._layer = block.layer.name
        return self._prepared

    def release(self) -> None:
        """Lets go of what is kept."""
        self._layer = self._prepared = None

    def _prepare(self, block: RowBlock, clock: Clock) -> Any:
        side_input = method_of(block.spec).side_input
        if side_input is None:
            raise TypeError(f"{block.spec.method} takes no side input")
        with clock.phase("read"):
            values = self._reader.read([(stored, 0, stored.num_params) for stored in block.side_tensors])
        parts = side_input.shapes(block.layer.shape, block.spec.row_dims)
        tensors: dict[str, np.ndarray] = {
            part: read_only(raw.view("<f4").reshape(shape))
            for (part, shape), raw in zip(parts.items(), values, strict=True)
        }
        with clock.phase("quantize"):
            return side_input.prepare(tensors, block.spec)
