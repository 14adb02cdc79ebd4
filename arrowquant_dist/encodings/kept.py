"""Codes that are kept unchanged: the spec with which V2 describes them, and their rows in V2's form.

Codes of b bits are offset binary, u = q + 2^(b-1), dense from the low bits up. That is V2's own form for 2, 3 and 4
bits; for 8 bits V2's form differs in the top bit of each byte. Codes of other widths are stored in the next wider type,
in which the same q has other bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arrowquant_dist.arena import Allocate
from arrowquant_dist.config.spec import BITS, SOURCE, NotKept, QuantSpec
from arrowquant_dist.encodings.encoding import Source, SourceRange, Stored
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.rows import RowSlice
from arrowquant_dist.encodings.zero_points import BesideScales
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.kernels.code_kinds import PACKED
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.tensor.kept import KeptRows, kept_nbytes
from arrowquant_dist.tensor.source import read_only

_LARGEST = {
    "float32": float(np.finfo(np.float32).max),
    "bfloat16": 2.0**127 * (2 - 2.0**-7),
    "float16": 65504.0,
}
_CHUNK_NBYTES = 1 << 20
_SCALE_NBYTES = 4  # as float32
_SIGN = np.uint8(128)

BY_ACTIVATION = NotKept(
    "their groups follow the order of activations (g_idx, desc_act), and a group of V2 is a run of columns"
)


def source_spec(layer: Stored, bits: int, group: int, *, symmetric: bool) -> QuantSpec | NotKept:
    """The spec of a layer with these codes, or why V2 cannot keep them. group: number of columns that share a scale; 0
    if the whole layer has one scale."""
    if len(layer.shape) < 2:
        return NotKept(f"{len(layer.shape)}-D codes have no rows")
    columns = layer.shape[-1]
    if group == 1 < columns:
        return NotKept("each column has its own scale, but V2 has scales per row or group only")
    return QuantSpec(
        quant_type=_type_of(bits),
        per_channel=group >= columns,
        group_size=0 if group >= columns else group,
        symmetric=symmetric,
        method=SOURCE,
        integer_zero_points=not symmetric,
        row_dims=len(layer.shape) - 1,
    )


def _type_of(bits: int) -> str:
    """The narrowest type that holds the codes."""
    return next(name for name, wide in sorted(BITS.items(), key=lambda item: item[1]) if bits <= wide)


def grid_spec(made: RowSlice, bits: int, source: Source, *, symmetric: bool) -> QuantSpec | NotKept:
    """Like source_spec, for a layer whose codes are stored row by row. made: any slice of it."""
    if made.groups is not None and not are_runs(made.groups, made.grid.block[1], source):
        return BY_ACTIVATION
    group = 0 if made.grid.single_scale else made.grid.block[1]
    return source_spec(made.layer, bits, group, symmetric=symmetric)


def are_runs(groups: Place, group: int, source: Source) -> bool:
    """Whether the groups in g_idx, int32 [columns], are runs of `group` columns; a -1 in it means so too."""
    found = np.empty(groups.nbytes, np.uint8)
    source.read_into(groups.uri, groups.offset, found)
    indices = found.view("<i4")
    if indices.min(initial=0) == -1:
        return True
    return np.array_equal(indices, np.arange(indices.size, dtype=np.int32) // group)


def stored_rows(place: Place, rows: int, source: Source) -> Iterator[tuple[range, np.ndarray]]:
    """Yields the rows of a stored matrix, some at a time: which rows, and their bytes, uint8."""
    row_nbytes = place.nbytes // rows
    some = max(1, _CHUNK_NBYTES // row_nbytes)
    for first in range(0, rows, some):
        taken = range(first, min(first + some, rows))
        found = np.empty(len(taken) * row_nbytes, np.uint8)
        source.read_into(place.uri, place.offset + first * row_nbytes, found)
        yield taken, found


def are_middle(beside: BesideScales, rows: int, columns: int, groups: int, source: Source) -> bool:
    """Whether the zero points of all groups are 0, the middle of signed codes. Stops reading at the first that is not.

    columns: number of scales in a row, of which the first `groups` are used."""
    return all(
        not beside.decode(found, taken, columns)[:, :groups].any()
        for taken, found in stored_rows(beside.place, rows, source)
    )


@dataclass(frozen=True, slots=True)
class KeptRowSlice:
    """Whole rows of codes. made: the slice of their values, which reads the same bytes. Memory: as for that slice, and
    two more copies of the scales, selected for each row and as magnitudes."""

    made: RowSlice
    spec: QuantSpec

    @classmethod
    def of(cls, made: RowSlice, spec: QuantSpec) -> KeptRowSlice:
        return cls(replace(made, groups=None), spec)  # groups are in order, or there would be no spec

    @property
    def ranges(self) -> list[SourceRange]:
        return self.made.ranges

    @property
    def decoded_nbytes(self) -> int:
        return kept_nbytes((len(self.made.rows), self.made.grid.columns), self.spec)

    @property
    def beside_nbytes(self) -> int:
        rows = len(self.made.rows)
        return self.made.beside_nbytes + 2 * rows * self.made.grid.scale_columns * _SCALE_NBYTES

    def values(self, found: Sequence[np.ndarray], _source: Source, allocate: Allocate) -> np.ndarray:
        out, made = allocate(self.decoded_nbytes), self.made
        kept = KeptRows.of(out, (len(made.rows), made.grid.columns), self.spec)
        codes, scales, zero_points = made.stored(iter(found))
        at = made.rows_of_scales[: len(kept.scales)]
        groups = kept.scales.shape[1]
        kept.scales[:] = scales[at, :groups]
        check_kept_scales(kept.scales, self.spec, made.layer)
        if not self.spec.symmetric:
            kept.zero_points[:] = zero_points[at, :groups]
        if made.codes.kind == PACKED:
            put_packed(codes, made.codes.bits, made.grid.columns, kept.codes, self.spec)
        else:
            kept.codes[:] = codes
        return out


def put_packed(codes: np.ndarray, bits: int, columns: int, out: np.ndarray, spec: QuantSpec) -> None:
    """Writes offset binary codes, dense from the low bits up, to `out` in V2's form.

    codes: uint8 [rows, bytes of `columns` codes or more]. out: uint8 [rows, row bytes of the spec]."""
    if bits == 8:
        np.bitwise_xor(codes[:, :columns], _SIGN, out=out)
    elif bits == spec.bits:
        out[:] = codes[:, : out.shape[1]]
        if columns * bits % 8:
            out[:, -1] &= (1 << columns * bits % 8) - 1  # clears the rest of the source's words
    else:
        from arrowquant_dist.kernels.pack import repack_rows

        repack_rows(read_only(np.ascontiguousarray(codes)), bits, np.empty(columns, np.uint8), spec.bits, out)


def check_kept_scales(scales: np.ndarray, spec: QuantSpec, layer: Stored) -> None:
    """Raises UnquantizableWeights for scales that are NaN, inf or so large that values may leave the layer's dtype."""
    largest = float(np.abs(scales).max(initial=0.0))  # NaN if any scale is NaN
    if not largest <= _LARGEST[layer.dtype] / ((1 << spec.bits) - 1):
        message = (
            f"has a scale of {largest:g}, with which values are not finite in {layer.dtype}; correct the source, or "
            "set in an override how the layer is quantized again"
        )
        raise UnquantizableWeights(message, layer=layer.name, uri=redact(layer.uri))
