"""Some rows of a layer on gptq's target, quantized by the very code that quantizes all rows.

Given the layer's statistics, rows do not depend on each other, so some of them show what all codes are like, after the
correction and with the feedback of errors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.methods.gptq import rounding_of
from arrowquant_dist.methods.groups import error_sums
from arrowquant_dist.methods.statistics import LayerStatistics, Prepared
from arrowquant_dist.methods.target_tiles import TargetTile
from arrowquant_dist.sizing.measure import Measured, block_nbytes, outermost_share
from arrowquant_dist.sizing.sample import LayerSample, Run
from arrowquant_dist.tensor import row_nbytes
from arrowquant_dist.tensor.source import kernel_bits, read_only

_VALUES = 1 << 17  # number of a layer's values: its codes' bytes are then known to about a thousandth
_RUNS = 16
_MATRICES = 4  # number of fused experts, since each has a Hessian to be factored


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    tile: TargetTile
    target: np.ndarray
    prepared: Prepared
    rows: int


class TargetRows:
    """The rows of a sample, corrected by the layer's statistics. sample: its values have to be finite."""

    def __init__(self, sample: LayerSample, statistics: LayerStatistics) -> None:
        self._sample = sample
        self._parts = [
            _corrected(runs, sample, statistics) for runs in _by_matrix(sample, statistics.rows_each)
        ]

    def measure(self, spec: QuantSpec, frames: ZstdFrames) -> Measured:
        """Measures the rows. spec: one of gptq, with a step."""
        found, codes, scales = np.zeros(4), [], []
        nbytes = row_nbytes(spec.quant_type, self._sample.columns, self._sample.layer.dtype)
        for part in self._parts:
            rounding = rounding_of(spec)(part.target, part.prepared)
            codes.append(np.empty((part.rows, nbytes), np.uint8))
            part.tile.quantize(rounding, spec, codes[-1], found)
            scales.append(rounding.scales.reshape(-1))
        rows = sum(part.rows for part in self._parts)
        packed = np.concatenate(codes).reshape(-1)
        blocks, sums = self._sample.blocks, error_sums(rows * self._sample.columns, found)
        return Measured(
            spec,
            sums.sum_e2 / sums.sum_w2 if sums.sum_w2 > 0.0 else 0.0,
            sums,
            outermost_share(packed, spec.bits),
            block_nbytes(blocks, rows, packed, frames),
            block_nbytes(blocks, rows, np.concatenate(scales).view(np.uint8), frames),
            tuple(0 for _ in blocks),
        )


def _corrected(runs: list[Run], sample: LayerSample, statistics: LayerStatistics) -> _Rows:
    prepared = statistics.of(runs[0].row_start // statistics.rows_each)
    values = np.concatenate([run.values for run in runs])
    rows = sum(run.rows for run in runs)
    bits = read_only(kernel_bits(values, sample.layer.dtype)).reshape(rows, sample.columns)
    residuals = [statistics.residual(run.row_start, run.rows) for run in runs] if prepared.is_seen else []
    found = [residual for residual in residuals if residual is not None]
    tile = TargetTile(bits, prepared, np.concatenate(found) if found else None)
    return _Rows(tile, tile.target(), prepared, rows)


def _by_matrix(sample: LayerSample, rows_each: int) -> list[list[Run]]:
    """Runs from some matrices of the layer, with about _VALUES values together."""
    found: dict[int, list[Run]] = defaultdict(list)
    for run in _cut(sample, rows_each):
        found[run.row_start // rows_each].append(run)
    matrices = sorted(found)
    chosen = [
        matrices[i] for i in np.linspace(0, len(matrices) - 1, min(_MATRICES, len(matrices))).astype(int)
    ]
    wanted = max(1, _VALUES // (max(1, sample.columns) * len(chosen)))
    return [_thinned(found[matrix], wanted) for matrix in chosen]


def _cut(sample: LayerSample, rows_each: int) -> Iterator[Run]:
    """The sample's runs, cut so that each is within one matrix."""
    for run in sample.runs:
        start, stop = run.row_start, run.row_start + run.rows
        while start < stop:
            end = min(stop, (start // rows_each + 1) * rows_each)
            yield _part(run, start - run.row_start, end - start)
            start = end


def _thinned(runs: list[Run], wanted: int) -> list[Run]:
    """Runs with about `wanted` rows, spread over `runs`."""
    rows = sum(run.rows for run in runs)
    if wanted * 5 >= rows * 4:
        return runs
    pieces = max(1, min(_RUNS, wanted))
    length = wanted // pieces
    if len(runs) >= pieces:
        picked = [runs[i] for i in np.linspace(0, len(runs) - 1, pieces).astype(int)]
        return [_part(run, 0, min(run.rows, length)) for run in picked]
    each = -(-pieces // len(runs))
    starts = [(run, int(at)) for run in runs for at in np.linspace(0, max(0, run.rows - length), each)]
    return [_part(run, start, min(length, run.rows)) for run, start in starts]


def _part(run: Run, first: int, rows: int) -> Run:
    nbytes = run.values.size // run.rows
    return Run(run.row_start + first, rows, run.values[first * nbytes : (first + rows) * nbytes])
