"""Reads the headers of safetensors files as layers. Nothing in a header is trusted before it is checked.

The format: 8 bytes little-endian header length, the header (JSON: name → dtype, shape, data_offsets), the values. The
tensors' ranges follow each other without gaps or overlaps and end where the file ends. Some writers give tied tensors
the same range; such files, which the format's own library refuses, are read as one tensor with several names.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, NoReturn

from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dtypes import BY_SAFETENSORS
from arrowquant_dist.errors import InvalidCheckpoint, counted
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, Store
from arrowquant_dist.strict_json import parse_json

MAX_HEADER_NBYTES = 100_000_000  # the format's own limit
MAX_DIMS = 64  # numpy's and torch's limit
_LENGTH_NBYTES = 8
_FIRST_READ_NBYTES = 1 << 18  # most headers fit, so that a file takes one request
_MAX_VALUE = 2**63 - 1
_MAX_NAME = 4096
_PAIRS = "float4_e2m1fn_x2"
_AGAIN = "download the file again"


def read_layers(store: Store, info: ObjectInfo) -> tuple[list[Layer], dict[str, str]]:
    """The layers of one file, in file order, and {name: stored name} of those with the same range, dtype and shape.

    Raises InvalidCheckpoint, naming file, tensor and reason.
    """
    uri = store.url(info.path)
    header_nbytes, header = _read_header(store, info, uri)
    entries = _parse_json(header, uri)
    _check_metadata(entries.pop("__metadata__", None) or {}, uri)
    data_start = _LENGTH_NBYTES + header_nbytes
    layers = [_layer(name, entry, data_start, uri) for name, entry in entries.items()]
    layers.sort(key=lambda layer: (layer.offset, layer.nbytes))
    aliases = _same_ranges(layers)
    if aliases:
        layers = [layer for layer in layers if layer.name not in aliases]
    _check_ranges(layers, data_start, info.nbytes, uri)
    return layers, aliases


def _same_ranges(layers: list[Layer]) -> dict[str, str]:
    """The aliases among layers sorted by range. Layers that share a range but not dtype and shape are left for
    `_check_ranges` to refuse."""
    aliases: dict[str, str] = {}
    first: Layer | None = None
    for layer in layers:
        same = (
            first is not None
            and layer.nbytes
            and (layer.offset, layer.nbytes) == (first.offset, first.nbytes)
        )
        if first is not None and same and (layer.dtype, layer.shape) == (first.dtype, first.shape):
            aliases[layer.name] = first.name
        else:
            first = layer
    return aliases


def _read_header(store: Store, info: ObjectInfo, uri: str) -> tuple[int, bytes]:
    if info.nbytes < _LENGTH_NBYTES + 2:
        _refuse(
            f"the file has {counted(info.nbytes, 'byte')}, too few for a safetensors header; {_AGAIN}", uri
        )
    first = store.read_range(info.path, ByteRange(0, min(info.nbytes, _FIRST_READ_NBYTES))).tobytes()
    nbytes = int.from_bytes(first[:_LENGTH_NBYTES], "little")
    if nbytes > MAX_HEADER_NBYTES:
        _refuse(
            f"its header claims {rounded_size(nbytes)}, over the format's 100 MB; this is not a safetensors file",
            uri,
        )
    stop = _LENGTH_NBYTES + nbytes
    if stop > info.nbytes:
        _refuse(
            f"cut off: the header needs {counted(stop, 'byte')}, the file has {info.nbytes}; {_AGAIN}", uri
        )
    if not first.startswith(b"{", _LENGTH_NBYTES):
        _refuse("its header does not begin with '{'; this is not a safetensors file", uri)
    if stop <= len(first):
        return nbytes, first[_LENGTH_NBYTES:stop]
    return nbytes, first[_LENGTH_NBYTES:] + store.read_range(info.path, ByteRange(len(first), stop)).tobytes()


def _parse_json(header: bytes, uri: str) -> dict[str, Any]:
    # A tensor takes 50 characters and three brackets. Many more brackets or numbers are a memory bomb: parsed, a
    # bracket takes 64 bytes, a number 8.
    if header.count(b"[") + header.count(b"{") > 1000 + len(header) // 10:
        _refuse("its header is nested JSON, not a table of tensors", uri)
    if header.count(b",") > 1000 + len(header) // 3:
        _refuse("its header is a list of numbers, not a table of tensors", uri)

    try:
        return dict(parse_json(header))
    except (TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"its header is not readable JSON ({error}); {_AGAIN}", uri=uri) from error


def _layer(name: str, entry: Any, data_start: int, uri: str) -> Layer:
    _check_name(name, uri)
    if not isinstance(entry, dict):
        _refuse("its entry is not an object with dtype, shape and data_offsets", uri, name)
    code = entry.get("dtype")
    dtype = BY_SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = ", ".join(BY_SAFETENSORS)
        _refuse(f"dtype {reprlib.repr(code)} is not supported; convert it to one of {known}", uri, name)
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if shape is None or len(shape) > MAX_DIMS:
        given = reprlib.repr(entry.get("shape"))
        _refuse(f"shape {given} is not a list of at most {MAX_DIMS} sizes; {_AGAIN}", uri, name)
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        given = reprlib.repr(entry.get("data_offsets"))
        _refuse(f"data_offsets {given} are not a start and an end; {_AGAIN}", uri, name)
    if dtype.name == _PAIRS:
        shape = _halved(shape, uri, name)
    start, stop = offsets
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != stop - start:
        given = f"{reprlib.repr(list(shape))} of {dtype.name}"
        _refuse(
            f"{given} takes {counted(nbytes, 'byte')}, its data_offsets hold {stop - start}; {_AGAIN}",
            uri,
            name,
        )
    return Layer(name, shape, dtype.name, uri, data_start + start, nbytes)


def _halved(shape: tuple[int, ...], uri: str, name: str) -> tuple[int, ...]:
    """The shape as torch counts values of float4_e2m1fn_x2, which are pairs; the format counts each half."""
    if not shape or shape[-1] % 2:
        _refuse(
            f"shape {reprlib.repr(list(shape))} of F4 does not fill whole bytes in each row; {_AGAIN}",
            uri,
            name,
        )
    return (*shape[:-1], shape[-1] // 2)


def _check_ranges(layers: list[Layer], data_start: int, file_nbytes: int, uri: str) -> None:
    """Checks that the tensors, sorted by offset, cover the file from `data_start` to its end, each byte once."""
    stop = data_start
    for layer in layers:
        if layer.offset != stop:
            kind = "overlap the tensor" if layer.offset < stop else "leave a gap"
            _refuse(
                f"its bytes {kind} before it: they begin at {layer.offset}, expected {stop}", uri, layer.name
            )
        stop += layer.nbytes
    if stop > file_nbytes:
        cut = next(layer.name for layer in layers if layer.offset + layer.nbytes > file_nbytes)
        _refuse(
            f"cut off: the tensors need {counted(stop, 'byte')}, the file has {file_nbytes}; {_AGAIN}",
            uri,
            cut,
        )
    if stop < file_nbytes:
        left = counted(file_nbytes - stop, "byte")
        belong = "belongs" if file_nbytes - stop == 1 else "belong"
        _refuse(f"{left} after the last tensor {belong} to no tensor; {_AGAIN}", uri)


def _counts(values: Any) -> tuple[int, ...] | None:
    """`values` as a tuple if it is a list of non-negative int64 (JSON's true is not a number here), else None."""
    if isinstance(values, list) and all(type(v) is int and 0 <= v <= _MAX_VALUE for v in values):
        return tuple(values)
    return None


def _check_name(name: str, uri: str) -> None:
    if len(name) > _MAX_NAME:
        _refuse(f"the name {reprlib.repr(name)} of a tensor has {len(name)} characters", uri)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidCheckpoint(f"the name {name!r} of a tensor is not valid Unicode", uri=uri) from error


def _check_metadata(metadata: Any, uri: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("its __metadata__ is not an object of strings", uri)


def _refuse(message: str, uri: str, layer: str | None = None) -> NoReturn:
    raise InvalidCheckpoint(message, layer=layer, uri=uri)
