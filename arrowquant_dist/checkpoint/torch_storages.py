"""Finds the record of a PyTorch file that holds a tensor's values, using only public names of torch and Python.

torch's weights_only loads the pickle onto the meta device: shapes, strides and offsets, but no values. It does not
tell the storage's key. That is in the pickle, which Python's own unpickler reads a second time, with a stand-in for
each name that pickle_scan.py allows, so that nothing of torch is built or called. Both readings have to describe the
same tensors, or the file is refused.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.checkpoint.torch_zip import TorchArchive, rebuild_archive

_DEEPEST = 2  # dicts of tensors are at the top level, or under a key there
# A complete list: newer dtypes come with untyped storages.
_DTYPES_OF_STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
    "UntypedStorage": "uint8",
}


@contextmanager
def loaded(archive: TorchArchive) -> Iterator[tuple[Any, Callable[[Any], str | None]]]:
    """What weights_only makes of the pickle, and a function that tells the key of a tensor's storage, for tensors in
    dicts at the top level, or in dicts in these. Raises ValueError or an unpickler's error if the two readings
    differ."""
    import torch

    buffer, _ = rebuild_archive(archive)
    values = torch.load(buffer, map_location="meta", weights_only=True)
    described = _Describer(io.BytesIO(archive.pickle), encoding="utf-8").load()
    keys = dict(_matched(values, described, _DEEPEST))
    yield values, lambda tensor: keys.get(id(tensor))


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: Any


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as the pickle describes it. offset, strides: in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any

    def describes(self, tensor: Any) -> bool:
        found = tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype
        return found == (self.offset, self.shape, self.strides, self.dtype)


def _matched(value: Any, described: Any, depth: int) -> Iterator[tuple[int, str]]:
    """(id of a tensor, key of its storage) for each tensor."""
    import torch

    if isinstance(value, torch.Tensor) and isinstance(described, _Tensor) and described.describes(value):
        yield id(value), described.storage.key
    elif isinstance(value, dict) and isinstance(described, dict):
        if depth:
            for inner, inner_described in zip(value.values(), described.values(), strict=True):
                yield from _matched(inner, inner_described, depth - 1)
    elif isinstance(value, torch.Tensor | dict):
        raise ValueError("torch and Python read its pickle differently")


class _Describer(pickle.Unpickler):
    """Builds containers, and descriptions in place of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if name in _STAND_INS:
            return _STAND_INS[name]
        dtype = getattr(torch, _DTYPES_OF_STORAGES.get(name, name), None)
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"{module}.{name} is not known")
        return dtype

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, _count = pid
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError(f"{kind!r} is not a storage")
        return _Storage(key, dtype)


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_rest: Any
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides), storage.dtype)


def _tensor_of_dtype(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _needs_gradient: Any,
    _hooks: Any,
    dtype: Any,
    *_rest: Any,
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides), dtype)


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _called(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    return function(*arguments)


# By the last part of the names that pickle_scan.py allows.
_STAND_INS: dict[str, Any] = {
    "OrderedDict": OrderedDict,
    "Counter": Counter,
    "set": set,
    "complex": complex,
    "encode": lambda text, _encoding="latin1": text.encode("latin1"),
    "Size": lambda values=(): tuple(values),
    "device": lambda *names: names,
    "Tensor": object(),
    "Parameter": object(),
    "_get_layout": _first,
    "_rebuild_parameter": _first,
    "_rebuild_parameter_with_state": _first,
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_of_dtype,
    "_rebuild_from_type_v2": _called,
}
