"""Converts Python values to Arrow arrays, from buffers, and back.

`pa.array` and `pa.table` of Python values or numpy arrays do the same, but import pandas where it is installed (0.3 s
and 80 MB, measured with pyarrow 26), even for a list of integers; so does `to_numpy`. A run makes only small tables of
metadata and must not pay that price.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa


def arrow_array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """An array of `dtype` from `values`, with None for null. dtype: a number, bool, string, binary, a list of these, or
    a struct of these, whose values are tuples.

    Raises OverflowError for numbers out of range of `dtype`, and for more bytes or items than its offsets can count.
    """
    validity = _validity(values)
    nulls = 0 if validity is None else sum(value is None for value in values)
    if nulls:
        zero = _zero(dtype)
        values = [zero if value is None else value for value in values]
    buffers, children = _buffers(values, dtype)
    return pa.Array.from_buffers(dtype, len(values), [validity, *buffers], nulls, children=children)


def arrow_batch(columns: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """A batch of `schema` from the values of its columns."""
    arrays = [arrow_array(column, f.type) for column, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def python_values(array: pa.Array) -> list[Any]:
    """The values of an array. Equal texts are one object, since tables have few that differ."""
    if not pa.types.is_string(array.type):
        return list(array.to_pylist())
    encoded = array.dictionary_encode(null_encoding="encode")
    texts = encoded.dictionary.to_pylist()
    return [texts[index] for index in encoded.indices.to_pylist()]


def fixed_values(array: pa.Array) -> np.ndarray:
    """The values of an array of numbers, over the same memory; values at nulls are undefined."""
    dtype = _numpy_dtype(array.type)
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def _buffers(values: Sequence[Any], dtype: pa.DataType) -> tuple[list[pa.Buffer], list[pa.Array]]:
    """The buffers after the validity buffer, and the child arrays."""
    if pa.types.is_boolean(dtype):
        return [pa.py_buffer(np.packbits(np.array(values, bool), bitorder="little"))], []
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return [pa.py_buffer(np.array(values, _numpy_dtype(dtype)))], []
    if pa.types.is_struct(dtype):
        columns = zip(*values, strict=True) if values else [()] * dtype.num_fields
        return [], [arrow_array(column, f.type) for column, f in zip(columns, dtype, strict=True)]
    offsets = _offset_dtype(dtype)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        child = arrow_array(list(chain.from_iterable(values)), dtype.value_type)
        return [_offsets(values, offsets)], [child]
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        values = [value.encode() for value in values]
    return [_offsets(values, offsets), pa.py_buffer(b"".join(values))], []


@cache
def _numpy_dtype(dtype: pa.DataType) -> np.dtype:
    """The numpy dtype of a number; pyarrow's own `to_pandas_dtype` is one more way to import pandas."""
    kind = "f" if pa.types.is_floating(dtype) else "i" if pa.types.is_signed_integer(dtype) else "u"
    return np.dtype(f"<{kind}{dtype.bit_width // 8}")


def _offset_dtype(dtype: pa.DataType) -> np.dtype:
    return np.dtype(np.int64 if str(dtype).startswith("large_") else np.int32)


def _offsets(values: Sequence[Any], dtype: np.dtype) -> pa.Buffer:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    if offsets[-1] > np.iinfo(dtype).max:
        raise OverflowError(f"{offsets[-1]} bytes or items do not fit {dtype} offsets")
    return pa.py_buffer(offsets.astype(dtype))


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    if None not in values:
        return None
    return pa.py_buffer(np.packbits([value is not None for value in values], bitorder="little"))


def _zero(dtype: pa.DataType) -> Any:
    """The value that stands in the buffers for null."""
    if pa.types.is_boolean(dtype) or pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return 0
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return ()
    if pa.types.is_struct(dtype):
        return tuple(_zero(f.type) for f in dtype)
    return "" if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) else b""
