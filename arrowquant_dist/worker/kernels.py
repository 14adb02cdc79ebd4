"""Makes kernels ready before the first row block that needs them, in a phase of their own. They are compiled, which
takes seconds per kernel and happens once on a machine, or loaded from Numba's cache, which takes milliseconds.

So the reported pace of a run does not depend on who compiled, and no row block waits in the middle of a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.kernels.numba_private import when_compiling
from arrowquant_dist.methods import side_input_of
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.tensor import quantize_layer
from arrowquant_dist.worker.clock import Clock
from arrowquant_dist.worker.job import OnCompile

COMPILE = "compile"  # name of the phase
_SAMPLE_COLUMNS = 2
_SAMPLE_NBYTES = 1 << 20  # maximum read for a sample row; layers with longer rows compile at their first read


class Kernels:
    """The kernels that a worker has made ready. on_compile: called only if something is compiled."""

    def __init__(self, reader: SourceReader, on_compile: OnCompile) -> None:
        self._reader, self._on_compile = reader, on_compile
        self._ready: set[tuple[Any, ...]] = set()

    @contextmanager
    def told(self, purpose: str) -> Iterator[None]:
        """Context manager: reports compilation inside it as being for `purpose`."""
        said: list[str] = []

        def tell() -> None:
            if not said:
                said.append(purpose)
                self._on_compile(purpose)

        try:
            with when_compiling(tell):
                yield
        finally:
            if said:
                self._on_compile("")

    def prepare(self, blocks: Iterable[RowBlock], clock: Clock) -> None:
        """Makes ready all kernels that these row blocks need. Reads one row of a layer for each way in which codes
        are stored."""
        new = {key: block for block in blocks if (key := _key(block)) not in self._ready}
        if not new:
            return
        with clock.phase(COMPILE):
            for key, block in new.items():
                if block.num_params and block.layer.encoding != RAW:
                    self._decode(block)
                self._quantize(block.layer.dtype, block.spec)
                self._ready.add(key)

    def prepare_specs(self, specs: Iterable[tuple[str, QuantSpec]], clock: Clock) -> None:
        """Makes ready the kernels for quantizing values of each dtype by its spec, wherever the values come from."""
        new = {*specs} - self._ready
        if not new:
            return
        with clock.phase(COMPILE):
            for dtype, spec in new:
                self._quantize(dtype, spec)
        self._ready |= new

    def _quantize(self, dtype: str, spec: QuantSpec) -> None:
        if spec.chooses_codes:
            with self.told(f"{spec.quant_type} by {spec.method}"):
                _quantize_sample(dtype, spec)

    def _decode(self, block: RowBlock) -> None:
        layer, columns = block.read_as, block.columns
        ranges = layer.encoding.slice(layer, 0, columns).ranges
        if ranges and sum(piece.stop - piece.start for piece in ranges) <= _SAMPLE_NBYTES:
            with self.told(f"reading {layer.encoding.label}"):
                self._reader.read([(layer, 0, columns)])


def _key(block: RowBlock) -> tuple[Any, ...]:
    return block.layer.dtype, block.spec, type(block.layer.encoding)


def _quantize_sample(dtype: str, spec: QuantSpec) -> None:
    shape = (*[1] * spec.row_dims, _SAMPLE_COLUMNS)
    side_input = side_input_of(spec.method)
    shapes = side_input.shapes(shape, spec.row_dims) if side_input is not None else {}
    tensors = {
        part: np.zeros(shapes[part], np.float32)
        for part in (side_input.needed(spec)[:1] if side_input else ())
    }
    values = np.zeros(_SAMPLE_COLUMNS * DTYPES[dtype].itemsize, np.uint8)
    quantize_layer(values, shape, dtype, spec, tensors)
