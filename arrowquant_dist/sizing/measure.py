"""Measures a sample under a spec: its error, and the bytes that the layer takes in the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.config.spec import kept_spec
from arrowquant_dist.format.compression import ZstdFrames
from arrowquant_dist.format.parquet.pages import blob_prefix
from arrowquant_dist.methods import Given
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.sizing.candidates import row_weight, size_spec
from arrowquant_dist.sizing.sample import LayerSample, Run
from arrowquant_dist.tensor import QuantizedTensor, quantize_values

MOST_CUT = 5e-5  # maximum part of a layer's codes at the ends of int4's range


@dataclass(frozen=True, slots=True)
class Measured:
    """A layer under a spec.

    error: Σ(w-ŵ)² / Σw² of the sampled rows; for an embedding the mean over runs of rows, by their weight
    (candidates.py). sums: of the sampled rows. outermost: part of the codes at the ends of their type's range, beyond
    which values are cut off. data_nbytes, scales_nbytes, zero_points_nbytes: compressed sizes for each row block.
    too_wide: whether 16 bits are asked for, but fp16 does not hold the sampled values, which stay as they are.
    """

    spec: QuantSpec
    error: float
    sums: ErrorSums
    outermost: float
    data_nbytes: tuple[int, ...]
    scales_nbytes: tuple[int, ...]
    zero_points_nbytes: tuple[int, ...]
    too_wide: bool = False

    @property
    def nbytes(self) -> int:
        return sum(self.data_nbytes) + sum(self.scales_nbytes) + sum(self.zero_points_nbytes)

    @property
    def cuts_off(self) -> bool:
        """Whether more than almost nothing is cut off at the ends of the type's range, so a wider one is needed."""
        return self.outermost > MOST_CUT


def measure(sample: LayerSample, spec: QuantSpec, frames: ZstdFrames) -> Measured:
    """Measures a sample. spec: of a layer that is kept, or of a method whose side input, if any, is the sample's.

    Raises UnquantizableWeights for NaN or inf among the sampled values, unless the spec keeps them.
    """
    found = [_quantized(sample, run, spec) for run in sample.runs]
    too_wide = spec.quant_type == "fp16" and any(one.quant_type != "fp16" for one in found)
    if too_wide:
        # A single value that fp16 does not hold keeps its whole row block as it is, and few blocks there have none.
        found = [_quantized(sample, run, kept_spec()) for run in sample.runs]
    plain = found
    if sample.side is not None and sample.side.sensitivity is not None:
        # Errors that make up for each other are larger and do less harm: at most that of errors that do not.
        alone = replace(sample, side=replace(sample.side, sensitivity=None))
        plain = [_quantized(alone, run, spec) for run in sample.runs]
    errors = [one.errors or ErrorSums() for one in plain]
    data, scales, zero_points = (
        _nbytes_of_blocks(sample, [getattr(one, name).view(np.uint8).reshape(-1) for one in found], frames)
        for name in ("codes", "scales", "zero_points")
    )
    return Measured(
        spec,
        _weighted_error(sample, spec, errors),
        sum(errors, start=ErrorSums()),
        _outermost(found, spec),
        data,
        scales,
        zero_points,
        too_wide,
    )


def _weighted_error(sample: LayerSample, spec: QuantSpec, errors: Sequence[ErrorSums]) -> float:
    total = 0.0
    for run, sums in zip(sample.runs, errors, strict=True):
        error = sums.sum_e2 / sums.sum_w2 if sums.sum_w2 > 0.0 else 0.0
        total += _weight(sample, spec, run) * run.rows * error
    return total / (max(1, sample.sampled_rows) * sample.relative_step**2)


def _weight(sample: LayerSample, spec: QuantSpec, run: Run) -> float:
    """Weight of the run's mean error. The counts of neighbouring rows differ, and where rows have steps of their own,
    so do their errors, in proportion to the inverse of their weight."""
    if sample.side is None:
        return row_weight(run.row_start + run.rows / 2, sample.row_steps)
    unit = size_spec(sample.blocks[0], "int8", 1.0, sample.row_steps)
    squares = np.square(sample.side.steps(unit, run.row_start, run.rows))
    return float(1.0 / squares.mean() if spec.row_exponent else (1.0 / squares).mean())


def _quantized(sample: LayerSample, run: Run, spec: QuantSpec) -> QuantizedTensor:
    layer = sample.layer
    if spec.method == "size" and sample.side is not None:
        spec = replace(spec, method="counted")
    return quantize_values(
        run.values,
        (run.rows, sample.columns),
        layer.dtype,
        replace(spec, row_dims=1),
        given=Given(side=sample.side, row_start=run.row_start),
        layer=layer.name,
        layer_shape=layer.shape,
        first_value=run.row_start * sample.columns,
    )


def _nbytes_of_blocks(
    sample: LayerSample, sampled: Sequence[np.ndarray], frames: ZstdFrames
) -> tuple[int, ...]:
    """Compressed size of each row block. sampled: values of each of the sample's runs."""
    rows = sample.sampled_rows
    if len(sampled) == 1 or rows == sample.rows:
        return block_nbytes(sample.blocks, rows, np.concatenate(sampled), frames)
    of_sample = sum(part.size for part in sampled)
    sizes = [of_sample * block.rows // max(1, rows) for block in sample.blocks]
    found = frames.predicted_of_parts(blob_prefix(sizes[0]), sampled, sum(sizes))
    return tuple(round(found * size / max(1, sum(sizes))) for size in sizes)


def block_nbytes(
    blocks: Sequence[RowBlock], rows: int, sampled: np.ndarray, frames: ZstdFrames
) -> tuple[int, ...]:
    """Predicted size of each row block's frame, for a value like the sampled one. sampled: uint8, of `rows` rows."""
    sizes = [sampled.size * block.rows // max(1, rows) for block in blocks]
    return tuple(frames.predicted_nbytes(blob_prefix(nbytes), sampled.data, nbytes) for nbytes in sizes)


def outermost_share(codes: np.ndarray, bits: int) -> float:
    """Part of the codes at the ends of their range. codes: uint8, packed as in V2, of 8 or 4 bits."""
    if bits == 8:  # -128 and 127
        return float(np.count_nonzero(codes + np.uint8(129) < 2) / codes.size)
    # each code in turn in the upper half of a byte, whose lower half does not matter: -8 and 7 are 0 and 15 in V2
    ends = sum(np.count_nonzero(each + np.uint8(16) < 32) for each in (codes << 4, codes))
    return float(ends / (2 * codes.size))


def _outermost(found: Sequence[QuantizedTensor], spec: QuantSpec) -> float:
    """Part of outermost codes in int8 and int4, the containers of method `size`; 0 for specs without steps."""
    if not spec.step:
        return 0.0
    return outermost_share(np.concatenate([one.codes for one in found]), spec.bits)
