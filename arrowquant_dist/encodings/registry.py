"""All encodings that are known. Each is imported when a source or a plan uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from arrowquant_dist.encodings.encoding import Encoding

# {kind: (module in this package, type)}; columns of plans are in this order.
_TYPES = {
    "raw": ("raw", "Raw"),
    "strided": ("strided", "Strided"),
    "float8": ("float8", "Float8Blocks"),
    "int8": ("int8", "Int8"),
    "packed": ("packed", "PackedInts"),
    "microscaled": ("microscaled", "Microscaled"),
    "transposed_microscaled": ("transposed", "TransposedMicroscaled"),
    "gptq": ("gptq", "Gptq"),
    "awq": ("awq", "Awq"),
    "awq_rows": ("awq", "AwqRows"),
    "affine": ("affine", "Affine"),
    "llm_int8": ("llm_int8", "LlmInt8"),
    "nvfp4": ("nvfp4", "Nvfp4"),
    "nvfp4_row_pairs": ("row_pairs", "Nvfp4RowPairs"),
    "dataset": ("dataset", "DatasetRows"),
}


class _Encodings(Mapping[str, type[Encoding]]):
    def __getitem__(self, kind: str) -> type[Encoding]:
        module, name = _TYPES[kind]
        found: type[Encoding] = getattr(import_module(f"arrowquant_dist.encodings.{module}"), name)
        return found

    def __contains__(self, kind: object) -> bool:
        return kind in _TYPES

    def __iter__(self) -> Iterator[str]:
        return iter(_TYPES)

    def __len__(self) -> int:
        return len(_TYPES)


ENCODINGS: Mapping[str, type[Encoding]] = _Encodings()  # by kind
