"""What a safetensors file begins with, for all that write one; safetensors.py reads it, and believes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TENSOR_ALIGNMENT = 8  # where the first tensor begins, so that readers may view tensors where they lie
METADATA_KEY = "__metadata__"  # the key of a header that is no tensor's


class StoredTensor(NamedTuple):
    """dtype: as safetensors names it."""

    name: str
    dtype: str
    shape: Sequence[int]
    nbytes: int


def header_of(tensors: Iterable[StoredTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the tensors, which follow in this order without gaps: 8 of the header's length, and the header,
    {name: {dtype, shape, data_offsets}} as JSON in UTF-8."""
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
