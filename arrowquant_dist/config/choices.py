"""Settings whose value is one of a few words: a type each, which editors complete and type checkers enforce. The tuples
of allowed values at run time are derived from these types."""

from __future__ import annotations

from typing import Literal

QuantType = Literal["int8", "int4", "int3", "int2", "fp16"]
Untouched = Literal["none"]  # quant_type of a config that stores layers without codes byte for byte
ScaleDtypeName = Literal["float32", "bfloat16"]
NonFinite = Literal["error", "keep"]
CompressionName = Literal["zstd", "none"]
EngineName = Literal["auto", "inline", "ray"]
DirectWrites = Literal["auto", "never"]
Activations = Literal["int8"]  # dtype of a product's quantized inputs, in exports and in memory
