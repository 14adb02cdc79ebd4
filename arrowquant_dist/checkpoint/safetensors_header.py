"""Makes the beginning of a safetensors file, for all code that writes one. safetensors.py reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TENSOR_ALIGNMENT = 8  # of the first tensor, so that readers may use tensors in place
METADATA_KEY = "__metadata__"  # the only key of a header that does not name a tensor


class StoredTensor(NamedTuple):
    """A tensor to be written. dtype: as safetensors names it."""

    name: str
    dtype: str
    shape: Sequence[int]
    nbytes: int


def header_of(tensors: Iterable[StoredTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the tensors, which follow in this order without gaps: 8 bytes with the header's length, and
    the header, {name: {dtype, shape, data_offsets}} as JSON in UTF-8."""
    entries: dict[str, Any] = {} if metadata is None else {METADATA_KEY: dict(metadata)}
    offset = 0
    for tensor in tensors:
        stop = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": [*tensor.shape],
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % TENSOR_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
