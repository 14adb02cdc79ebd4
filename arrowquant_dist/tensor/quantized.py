"""A tensor or row block in the form that V2 stores, and its decoded values."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config import BITS
from arrowquant_dist.config.checks import shown
from arrowquant_dist.displays import Displayed
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.tensor.source import kernel_bits, matrix_shape, read_only

if TYPE_CHECKING:
    import torch


_LEAST_GROUP = 8  # columns: with fewer in a group, scales take as much space as codes


def row_nbytes(quant_type: str, columns: int, dtype: str) -> int:
    """Bytes of one stored row: packed codes, which begin on a byte boundary, or raw values (fp16: 2 bytes each)."""
    if quant_type in BITS:
        return -(-columns * BITS[quant_type] // 8)
    return columns * (2 if quant_type == "fp16" else DTYPES[dtype].itemsize)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantizedTensor(Displayed):
    """A tensor or row block in memory, in the form that V2 stores: packed codes with their scales.

    shape: shape of this tensor ([rows, *rest] for a row block). dtype: name of the source's dtype.
    quant_type: int8, int4, int3, int2, fp16 or none. codes: uint8 [rows · row bytes], packed as in V2's `data`; raw
    little-endian values if nothing is quantized. scales, zero_points: float32 [rows · groups per row], or [1] for one
    scale per tensor; both are empty if nothing is quantized, and zero_points also if symmetric.
    quant_axis: -1 for one scale per tensor, 0 for scales by row or group. group_size: values per group; 0 if there is
    one scale per row or per tensor. row_dims: number of leading dimensions that make up the rows of the matrix view.
    errors: error sums against the source, None if they were not measured.
    """

    shape: tuple[int, ...]
    dtype: str
    quant_type: str
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    quant_axis: int
    group_size: int
    row_dims: int = 1
    errors: ErrorSums | None = None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of the tensor seen as a matrix."""
        return matrix_shape(self.shape, self.row_dims)

    @property
    def nbytes(self) -> int:
        """Size in bytes of codes, scales and zero points."""
        return self.codes.nbytes + self.scales.nbytes + self.zero_points.nbytes

    @property
    def metrics(self) -> dict[str, float]:
        """cosine, precision_loss, mse, sqnr_db and max_error against the source; {} if nothing was measured."""
        if self.errors is None:
            return {}
        names = ("cosine", "precision_loss", "mse", "sqnr_db", "max_error")
        return {name: getattr(self.errors, name) for name in names}

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Rows [start, stop) of the matrix view, as a tensor of shape [rows, *rest] that shares this one's memory.

        Raises IndexError unless 0 ≤ start ≤ stop ≤ rows."""
        rows, columns = self.matrix_shape
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start}:{stop} of {rows}")
        width = row_nbytes(self.quant_type, columns, self.dtype)
        per_row = self.scales.size // rows if self.quant_axis == 0 and rows else 0
        part = slice(start * per_row, stop * per_row) if per_row else slice(None)
        return replace(
            self,
            shape=(stop - start, *self.shape[self.row_dims :]),
            row_dims=1,
            codes=self.codes[start * width : stop * width],
            scales=self.scales[part],
            zero_points=self.zero_points[part],
            errors=None,
        )

    def values(self, dtype: str | None = None) -> np.ndarray:
        """Decoded values [*shape] in newly allocated memory.

        dtype: name of a floating-point dtype, or of the source's dtype, which is the default. bfloat16 is returned as
        its bits in uint16, float8 in uint8. x̂ = (q - zero_point) · scale in float32, then rounded to `dtype`; finite
        values stay finite. Raises InvalidConfig for any other dtype.
        """
        wanted = self._wanted(dtype)
        out = np.empty(self.shape, DTYPES[wanted].bits)
        self.values_into(out.reshape(-1).view(np.uint8), wanted)
        return out

    def bytes_as(self, dtype: str, take: Allocate = fresh) -> np.ndarray:
        """`values(dtype)` as uint8 [num_params · itemsize].

        dtype: as for `values`. take: allocates the memory of the result, which is not needed if the stored bytes are
        such values already; they are then returned themselves."""
        stored = "float16" if self.quant_type == "fp16" else self.dtype
        if self.quant_type not in BITS and stored == dtype:
            return self.codes
        out = take(math.prod(self.shape) * DTYPES[dtype].itemsize)
        self.values_into(out, dtype)
        return out

    def values_into(self, out: np.ndarray, dtype: str, columns: range | None = None) -> None:
        """Decodes into `out`: uint8, one itemsize of `dtype` per value, aligned to the itemsize.

        dtype: as for `values`. columns: range of columns of the matrix view to decode in every row; None for all.
        """
        if not out.size:
            return
        is_stored_so = self.quant_type == "none" and dtype == self.dtype
        if is_stored_so and columns is None:
            np.copyto(out, self.codes)
            return
        if columns is None:
            columns = range(self.matrix_shape[1])
        if self.quant_type in BITS:
            self._decode(out, dtype, columns)
        elif is_stored_so:
            np.copyto(out.reshape(self.matrix_shape[0], -1), self._bytes_of(columns))
        else:
            stored = "float16" if self.quant_type == "fp16" else self.dtype
            _convert(np.ascontiguousarray(self._bytes_of(columns)).reshape(-1), stored, out, dtype)

    def columns(self, start: int, stop: int) -> QuantizedTensor:
        """Columns [start, stop) of the matrix view, as a tensor of shape [rows, columns] with memory of its own.

        The decoded values are the same. If `start` is not a multiple of the group size, the groups become as large as
        the greatest common divisor of both and scales are repeated, so that a group begins at `start`. Raises
        InvalidConfig if such groups would have fewer than 8 columns, and IndexError unless
        0 ≤ start ≤ stop ≤ columns.
        """
        from arrowquant_dist.kernels.pack import take_columns

        rows, columns = self.matrix_shape
        if not 0 <= start <= stop <= columns:
            raise IndexError(f"columns {start}:{stop} of {columns}")
        taken = replace(self, shape=(rows, stop - start), row_dims=1, errors=None)
        if self.quant_type not in BITS:
            return replace(taken, codes=self._bytes_of(range(start, stop)).reshape(-1).copy())
        bits = BITS[self.quant_type]
        codes = np.empty((rows, row_nbytes(self.quant_type, stop - start, self.dtype)), np.uint8)
        if codes.size:
            scratch = np.empty(stop - start + 8, np.uint8)
            take_columns(read_only(self.codes).reshape(rows, -1), bits, start, stop - start, scratch, codes)
        taken = replace(taken, codes=codes.reshape(-1))
        return taken._with_groups_of(self, start, stop) if self.group_size else taken

    def _with_groups_of(self, whole: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
        group = math.gcd(whole.group_size, start)
        if group < min(_LEAST_GROUP, whole.group_size):
            message = (
                f"columns cannot start at {start}: it is not a multiple of the group size {whole.group_size}, nor of a "
                f"divisor of it that is at least {_LEAST_GROUP}; start elsewhere, or read decoded values"
            )
            raise InvalidConfig(message)
        rows = self.matrix_shape[0]
        of = np.arange(start, stop, group) // whole.group_size  # the old group of each new one

        def numbers(old: np.ndarray) -> np.ndarray:
            return old.reshape(rows, -1)[:, of].reshape(-1) if old.size else old.copy()

        return replace(
            self, group_size=group, scales=numbers(whole.scales), zero_points=numbers(whole.zero_points)
        )

    def _bytes_of(self, columns: range) -> np.ndarray:
        """uint8 [rows, bytes]: the stored bytes of these columns of unquantized values; shares memory."""
        rows, width = self.matrix_shape
        itemsize = row_nbytes(self.quant_type, 1, self.dtype)
        codes = self.codes.reshape(rows, width * itemsize)
        return codes[:, columns.start * itemsize : columns.stop * itemsize]

    def _decode(self, out: np.ndarray, dtype: str, columns: range) -> None:
        from arrowquant_dist.kernels.decode import dequantize_rows

        rows, width = self.matrix_shape
        if dtype not in ("float32", "bfloat16", "float16"):
            wide = np.empty(rows * len(columns), np.float32)
            self._decode(wide.view(np.uint8), "float32", columns)
            _convert(wide.view(np.uint8), "float32", out, dtype)
            return
        dequantize_rows(
            read_only(self.codes).reshape(rows, -1),
            BITS[self.quant_type],
            self.group_size or width,
            self._by_row(self.scales, rows),
            self._by_row(self.zero_points, rows),
            columns.start,
            np.empty(len(columns) + 8, np.uint8),
            kernel_bits(out, dtype).reshape(rows, -1),
        )

    def _by_row(self, scales: np.ndarray, rows: int) -> np.ndarray:
        """Scales or zero points as [rows, groups per row]; a single one for the whole tensor is repeated."""
        return read_only(np.tile(scales, (rows, 1)) if self.quant_axis < 0 else scales.reshape(rows, -1))

    def dequantize(self, dtype: torch.dtype | str | None = None) -> torch.Tensor:
        """Decoded values as a torch tensor with its own memory. dtype: as for `values`, a torch dtype or its name."""
        import torch

        name = self._wanted(str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype)
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=getattr(torch, name))
        # numpy allocates the memory, because it asks for huge pages: decoding into torch's took five times as long
        tensor = torch.from_numpy(self.values(name).reshape(-1).view(np.uint8))
        return tensor.view(getattr(torch, name)).reshape(self.shape)

    def _wanted(self, dtype: str | None) -> str:
        if dtype is None:
            return self.dtype
        is_known = isinstance(dtype, str) and dtype in DTYPES
        if not is_known or not (DTYPES[dtype].is_float or dtype == self.dtype):
            raise InvalidConfig(
                f"dtype: cannot decode to {shown(dtype)}; pass torch.float32 or torch.bfloat16"
            )
        return dtype

    def _summary(self) -> Mapping[str, object]:
        figures = {name: float(f"{value:.6g}") for name, value in self.metrics.items()}
        bits = (
            {"stored_bits": round(8 * self.nbytes / math.prod(self.shape), 3)} if 0 not in self.shape else {}
        )
        return {"shape": self.shape, "quant_type": self.quant_type} | self.to_dict() | bits | figures

    def to_dict(self) -> dict[str, Any]:
        """The scalar fields and metrics, for people and logs."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "quant_type": self.quant_type,
            "quant_axis": self.quant_axis,
            "group_size": self.group_size,
            "row_dims": self.row_dims,
            "nbytes": self.nbytes,
            **self.metrics,
        }


_EXACT = {("float16", "float32"), ("float16", "float64"), ("float32", "float64")}


def _convert(source: np.ndarray, source_dtype: str, out: np.ndarray, dtype: str) -> None:
    """Converts between dtypes that no kernel covers (kept layers, float64, float8, integers), with torch's conversions.

    source, out: uint8. Finite values beyond the range of `dtype` become its largest, never inf or NaN.
    """
    # If the conversion is exact, numpy gives the same result. It takes ten times as long, but importing torch takes
    # more memory than a row block, and more than a second.
    if (source_dtype, dtype) in _EXACT and "torch" not in sys.modules:
        np.copyto(out.view(DTYPES[dtype].bits), source.view(DTYPES[source_dtype].bits))
        return
    if (source_dtype, dtype) == ("bfloat16", "float32") and "torch" not in sys.modules:
        np.left_shift(source.view("<u2"), 16, out=out.view("<u4"), dtype=np.uint32)
        return
    import torch

    tensor = torch.from_numpy(source if source.flags.writeable else source.copy())
    tensor = tensor.view(getattr(torch, source_dtype))
    wanted: torch.dtype = getattr(torch, dtype)
    if tensor.is_floating_point() and wanted.is_floating_point:
        limit = torch.finfo(wanted).max
        if limit < torch.finfo(tensor.dtype).max:
            wide = tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
            tensor = wide.clamp(-limit, limit).where(wide.isfinite(), wide)
    torch.from_numpy(out).view(wanted).copy_(tensor)
